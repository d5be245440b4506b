use kuva::plot::annotations::ReferenceLine;
use kuva::prelude::BoxPlot;

use super::axis::{layout, nice_range, nice_step};
use super::{Panel, style};

/// A box per named group: quartiles and median, whiskers to the last value within 1.5 times the box's height. What lies beyond
/// is not drawn: of thousands of samples it would be a bar. Without a range, `y` fits the data; values that are not finite are
/// left out. `colour` is that of the series of this number in other panels.
#[must_use]
pub fn boxes(
    title: &str,
    x_label: &str,
    y_label: &str,
    groups: &[(String, Vec<f64>)],
    y_range: Option<(f64, f64)>,
    colour: usize,
) -> Panel {
    let mut plot = BoxPlot::new().with_color(style(colour).0).with_width(0.6);
    for (name, values) in groups {
        plot = plot.with_group(name.clone(), values.iter().copied().filter(|value| value.is_finite()));
    }
    let values = groups.iter().flat_map(|(_, values)| values.iter().copied());
    let y_range = y_range.unwrap_or_else(|| nice_range(values, 6));
    let x_range = (0.5, groups.len().max(1) as f64 + 0.5);
    let mut layout = layout(title, (x_label, x_range), (y_label, y_range))
        .with_x_categories(groups.iter().map(|(name, _)| name.clone()).collect())
        .with_y_tick_step(nice_step(y_range.1 - y_range.0, 6));
    if y_range.0 < 0. {
        layout = layout.with_reference_line(ReferenceLine::horizontal(0.).with_color("#4D4D4D"));
    }
    Panel {
        layers: if groups.is_empty() { Vec::new() } else { vec![plot.into()] },
        layout,
        legend: Vec::new(),
        size: (520., 360.),
    }
}
