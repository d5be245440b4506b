use kuva::plot::legend::{LegendEntry, LegendShape};
use kuva::prelude::BarPlot;

use super::axis::{layout, nice_range, nice_step};
use super::{Panel, style};

/// Bars over named categories, one per named group of values, side by side.
#[must_use]
pub fn bars(
    title: &str,
    x_label: &str,
    y_label: &str,
    categories: &[String],
    groups: &[(String, Vec<f64>)],
) -> Panel {
    let mut plot = BarPlot::new();
    for (index, category) in categories.iter().enumerate() {
        let value =
            |values: &[f64]| values.get(index).copied().filter(|value| value.is_finite()).unwrap_or(0.);
        plot = plot.with_group(
            category.clone(),
            groups.iter().enumerate().map(|(group, (_, values))| (value(values), style(group).0)),
        );
    }
    let values = groups.iter().flat_map(|(_, values)| values.iter().copied());
    let y_range = nice_range(values.chain([0.]), 6);
    let x_range = (0.5, categories.len().max(1) as f64 + 0.5);
    let legend = groups.iter().enumerate().map(|(group, (name, _))| LegendEntry {
        label: name.clone(),
        color: style(group).0.into(),
        shape: LegendShape::Rect,
        dasharray: None,
    });
    Panel {
        layers: if categories.is_empty() || groups.is_empty() { Vec::new() } else { vec![plot.into()] },
        layout: layout(title, (x_label, x_range), (y_label, y_range))
            .with_x_categories(categories.to_vec())
            .with_y_tick_step(nice_step(y_range.1 - y_range.0, 6)),
        legend: legend.collect(),
        size: (560., 340.),
    }
}
