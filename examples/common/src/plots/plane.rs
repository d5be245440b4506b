use kuva::plot::legend::{LegendEntry, LegendShape};
use kuva::prelude::{LinePlot, ScatterPlot};

use super::axis::{layout, nice_range, nice_step};
use super::{Panel, Series, style};

/// Paths through a plane, each from its first point, in small dots, to its last, which bears the path's marker.
#[must_use]
pub fn plane(title: &str, x_label: &str, y_label: &str, paths: &[Series]) -> Panel {
    let finite = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let points = || paths.iter().flat_map(|path| &path.points).filter(finite);
    let x_range = with_air(points().map(|point| point.0).collect());
    let y_range = with_air(points().map(|point| point.1).collect());
    let mut panel = Panel {
        layers: Vec::new(),
        layout: layout(title, (x_label, x_range), (y_label, y_range))
            .with_x_tick_step(nice_step(x_range.1 - x_range.0, 6))
            .with_y_tick_step(nice_step(y_range.1 - y_range.0, 6)),
        legend: Vec::new(),
        size: (520., 440.),
    };
    for (index, path) in paths.iter().enumerate() {
        let (colour, _, marker) = style(index);
        let points: Vec<(f64, f64)> = path.points.iter().filter(finite).copied().collect();
        if let Some((deep, shallow)) = points.split_last() {
            let line = LinePlot::new().with_data(points.iter().copied()).with_color(colour);
            panel.layers.push(line.with_stroke_width(1.).into());
            let dots = ScatterPlot::new().with_data(shallow.iter().copied()).with_color(colour);
            panel.layers.push(dots.with_size(2.).into());
            let end = ScatterPlot::new().with_data([*deep]).with_color(colour);
            panel.layers.push(end.with_marker(marker).with_size(7.).into());
        }
        panel.legend.push(LegendEntry {
            label: path.name.clone(),
            color: colour.into(),
            shape: LegendShape::Marker(marker),
            dasharray: None,
        });
    }
    panel
}

/// A range with room for the markers of points at its ends.
fn with_air(values: Vec<f64>) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let air = 0.05 * (high - low);
    if low < high { (low - air, high + air) } else { nice_range(values, 6) }
}
