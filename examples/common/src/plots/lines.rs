use kuva::plot::legend::{LegendEntry, LegendShape};
use kuva::prelude::{LinePlot, LineStyle, ScatterPlot};

use super::axis::{layout, nice_range, nice_step};
use super::{Panel, Series, style};

/// Points beyond which markers would merge into a band.
const MARKED: usize = 40;

/// Curves over a whole-numbered `x`, such as layers or epochs. Without a range, `y` fits the data.
#[must_use]
pub fn lines(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
    y_range: Option<(f64, f64)>,
) -> Panel {
    let xs = series.iter().flat_map(|series| &series.points).map(|point| point.0).filter(|x| x.is_finite());
    let (low, high) = xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let (low, high) = if low < high { (low, high) } else { (low.min(1.) - 1., low.min(1.) + 1.) };
    draw(title, (x_label, (low, high), nice_step(high - low, 14).max(1.)), (y_label, y_range), series)
}

/// Curves over any `x`, or points, where a series is one. Without a range, `x` and `y` fit the data.
#[must_use]
pub fn curves(
    title: &str,
    (x_label, x_range): (&str, Option<(f64, f64)>),
    (y_label, y_range): (&str, Option<(f64, f64)>),
    series: &[Series],
) -> Panel {
    let xs = series.iter().flat_map(|series| &series.points).map(|point| point.0);
    let (low, high) = x_range.unwrap_or_else(|| nice_range(xs, 8));
    draw(title, (x_label, (low, high), nice_step(high - low, 8)), (y_label, y_range), series)
}

fn draw(
    title: &str,
    (x_label, (low, high), x_step): (&str, (f64, f64), f64),
    (y_label, y_range): (&str, Option<(f64, f64)>),
    series: &[Series],
) -> Panel {
    let ys = series.iter().flat_map(|series| &series.points).map(|point| point.1);
    let y_range = y_range.unwrap_or_else(|| nice_range(ys, 6));
    // Air, so that markers do not sit on the frame.
    let air = 0.02 * (high - low);
    let y_range = (y_range.0, y_range.1 + 0.02 * (y_range.1 - y_range.0));
    let mut panel = Panel {
        layers: Vec::new(),
        layout: layout(title, (x_label, (low - air, high + air)), (y_label, y_range))
            .with_x_tick_step(x_step)
            .with_y_tick_step(nice_step(y_range.1 - y_range.0, 6)),
        legend: Vec::new(),
        size: (520., 360.),
    };
    for (index, series) in series.iter().enumerate() {
        let (colour, dashes, marker) = style(index);
        let line_style = dashes.map_or(LineStyle::Solid, |dashes| LineStyle::Custom(dashes.into()));
        let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
        for piece in series.points.split(|point| !finite(point)).filter(|piece| piece.len() > 1) {
            let line = LinePlot::new().with_data(piece.iter().copied()).with_color(colour);
            panel.layers.push(line.with_stroke_width(2.).with_line_style(line_style.clone()).into());
        }
        let marked = series.points.len() <= MARKED;
        if marked {
            let points = series.points.iter().copied().filter(finite);
            let markers = ScatterPlot::new().with_data(points).with_color(colour);
            panel.layers.push(markers.with_marker(marker).with_size(3.5).into());
        }
        panel.legend.push(LegendEntry {
            label: series.name.clone(),
            color: colour.into(),
            shape: if marked { LegendShape::Marker(marker) } else { LegendShape::Line },
            dasharray: dashes.map(Into::into),
        });
    }
    panel
}
