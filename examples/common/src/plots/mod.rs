//! Figures as SVG and PNG, of one or several panels, drawn by kuva without system fonts.
//!
//! Colours are Okabe and Ito's and some of Paul Tol's, which colour-blind readers tell apart; markers and dashes say the same
//! once more.
//! Panels meant to be compared are given the same range.

mod axis;
mod bars;
mod boxes;
mod heat_map;
mod lines;
mod plane;

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use kuva::plot::legend::LegendEntry;
use kuva::prelude::{Figure, Layout, MarkerShape, PngBackend, SvgBackend};
use kuva::render::plots::Plot;

pub use bars::bars;
pub use boxes::boxes;
pub use heat_map::heat_map;
pub use lines::{curves, lines};
pub use plane::plane;

use crate::files::write_atomic;

/// A named sequence of points. Points that are not finite leave a gap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// `(x, y)`, in order of `x`.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A series from its points.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect() }
    }

    /// A series from one value per layer, starting at layer `first`.
    pub fn per_layer(name: impl Into<String>, first: usize, values: &[f64]) -> Self {
        Self::new(name, values.iter().enumerate().map(|(index, &value)| ((first + index) as f64, value)))
    }
}

/// A series for each named curve over layers, starting at layer `first`.
pub fn series<'a>(first: usize, curves: impl IntoIterator<Item = (&'a str, Vec<f64>)>) -> Vec<Series> {
    curves.into_iter().map(|(name, values)| Series::per_layer(name, first, &values)).collect()
}

/// One part of a figure, made by [`lines`], [`curves`], [`heat_map`], [`bars`], [`boxes`] or [`plane`].
pub struct Panel {
    layers: Vec<Plot>,
    layout: Layout,
    legend: Vec<LegendEntry>,
    size: (f64, f64),
}

impl std::fmt::Debug for Panel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Panel").field("title", &self.layout.title).finish_non_exhaustive()
    }
}

/// Draws panels side by side, `columns` in a row, into `{stem}.svg` and `{stem}.png`, and gives back the SVG.
///
/// Panels whose legends are equal share one, to the right of all.
///
/// # Errors
///
/// When there is no panel, or a file cannot be written; the message names it.
pub fn write(stem: &Path, panels: Vec<Panel>, columns: usize) -> Result<String> {
    let first = panels.first().with_context(|| format!("{}: a figure needs a panel", stem.display()))?;
    let columns = columns.clamp(1, panels.len());
    let rows = panels.len().div_ceil(columns);
    let (width, height) = first.size;
    let legend = first.legend.clone();
    let (mut layers, mut layouts) = (Vec::new(), Vec::new());
    for panel in panels {
        layers.push(panel.layers);
        layouts.push(panel.layout);
    }
    let mut figure = Figure::new(rows, columns).with_cell_size(width, height).with_spacing(20.);
    figure = figure.with_structure((0..layers.len()).map(|cell| vec![cell]).collect());
    figure = figure.with_plots(layers).with_layouts(layouts);
    if !legend.is_empty() {
        figure = figure.with_shared_legend_entries(legend).with_shared_legend_right_middle();
    }
    let scene = figure.render();
    // With a view box, a page can show the figure smaller than it is.
    let view_box = format!("<svg viewBox=\"0 0 {} {}\" ", scene.width, scene.height);
    let svg = SvgBackend::new().render_scene(&scene).replacen("<svg ", &view_box, 1);
    let png = PngBackend::new().with_scale(2.).render_scene(&scene);
    let png = png.map_err(|reason| anyhow!("{}: cannot draw: {reason}", stem.display()))?;
    write_atomic(&stem.with_extension("svg"), svg.as_bytes())?;
    write_atomic(&stem.with_extension("png"), &png)?;
    Ok(svg)
}

/// How the series of that number looks: colour, dashes, marker.
fn style(index: usize) -> (&'static str, Option<&'static str>, MarkerShape) {
    const STYLES: [(&str, Option<&str>, MarkerShape); 12] = [
        ("#0072B2", None, MarkerShape::Circle),
        ("#D55E00", Some("7 4"), MarkerShape::Square),
        ("#009E73", Some("2 3"), MarkerShape::Triangle),
        ("#CC79A7", Some("8 3 2 3"), MarkerShape::Diamond),
        ("#E69F00", None, MarkerShape::TriangleDown),
        ("#56B4E9", Some("7 4"), MarkerShape::Pentagon),
        ("#4D4D4D", Some("2 3"), MarkerShape::Hexagon),
        ("#882255", Some("8 3 2 3"), MarkerShape::Star),
        ("#999933", None, MarkerShape::Cross),
        ("#332288", Some("7 4"), MarkerShape::Plus),
        ("#000000", Some("2 3"), MarkerShape::Circle),
        ("#44AA99", Some("8 3 2 3"), MarkerShape::Square),
    ];
    STYLES[index % STYLES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(panels: Vec<Panel>) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let svg = write(&folder.path().join("figure"), panels, 2)?;
        assert_eq!(std::fs::read_to_string(folder.path().join("figure.svg"))?, svg);
        assert!(std::fs::read(folder.path().join("figure.png"))?.starts_with(b"\x89PNG"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.starts_with("<svg viewBox=\"0 0 "), "{svg}");
        Ok(svg)
    }

    #[test]
    fn every_text_of_a_line_chart_appears() -> Result<()> {
        let series =
            [Series::per_layer("standard", 1, &[0.1, 0.5]), Series::per_layer("<aligned>", 1, &[0.4, 0.9])];
        let svg = draw(vec![lines("Accuracy", "layer", "share correct", &series, Some((0., 1.)))])?;
        for text in ["Accuracy", "layer", "share correct", "standard", "&lt;aligned&gt;"] {
            assert!(svg.contains(text), "{text}");
        }
        Ok(())
    }

    #[test]
    fn undefined_and_missing_values_still_draw() -> Result<()> {
        let gap = Series::per_layer("gap", 1, &[0.1, f64::NAN, 0.3, f64::INFINITY]);
        let none = Series::per_layer("none", 1, &[]);
        draw(vec![
            lines("a", "x", "y", &[gap.clone(), none.clone()], None),
            lines("b", "x", "y", std::slice::from_ref(&gap), Some((0., 1.))),
        ])?;
        draw(vec![lines("no series", "x", "y", &[], None)])?;
        draw(vec![heat_map(
            "hole",
            ("layer", "layer"),
            &[vec![1., f64::NAN], vec![f64::NAN, 1.]],
            1,
            (0., 1.),
        )])?;
        draw(vec![heat_map("all equal", ("layer", "layer"), &[vec![0.5; 2], vec![0.5; 2]], 1, (0., 1.))])?;
        draw(vec![heat_map("empty", ("layer", "layer"), &[], 1, (0., 1.))])?;
        draw(vec![heat_map("oblong", ("left", "below"), &[vec![0.5; 3], vec![0.2; 3]], 1, (0., 1.))])?;
        draw(vec![boxes("none", "x", "y", &[], None, 0)])?;
        draw(vec![boxes(
            "hole",
            "x",
            "y",
            &[("1".into(), vec![f64::NAN, 1.]), ("2".into(), vec![])],
            None,
            0,
        )])?;
        draw(vec![plane("none", "x", "y", &[]), plane("hole", "x", "y", &[gap, none.clone()])])?;
        draw(vec![bars("none", "x", "y", &[], &[])])?;
        draw(vec![bars("hole", "x", "y", &["1".into()], &[("n".into(), vec![f64::NAN])])])?;
        Ok(())
    }

    #[test]
    fn colours_of_heat_maps_have_one_meaning() -> Result<()> {
        let cell = |low: f64| vec![vec![low, 0.75], vec![0.75, 0.9]];
        // The same 0.75 beside different neighbours.
        let one = draw(vec![heat_map("a", ("layer", "layer"), &cell(-0.9), 1, (-1., 1.))])?;
        let other = draw(vec![heat_map("a", ("layer", "layer"), &cell(0.7), 1, (-1., 1.))])?;
        let colour = heat_map::colour(0.75, (-1., 1.));
        let hex = colour.to_lowercase();
        assert!(one.to_lowercase().contains(&hex) && other.to_lowercase().contains(&hex), "{hex}");
        Ok(())
    }

    #[test]
    fn a_box_spans_the_quartiles() -> Result<()> {
        // 0 to 8, and one far out: quartiles 2.25 and 6.75, a whisker up to 8.
        let values: Vec<f64> = (0..9).map(f64::from).chain([100.]).collect();
        let panel =
            |values: Vec<f64>| boxes("b", "layer", "COS", &[("1".into(), values)], Some((0., 100.)), 0);
        let without = draw(vec![panel(values[..9].to_vec())])?;
        let with = draw(vec![panel(values)])?;
        assert!(without.contains("<rect") && with.contains("<rect"));
        // What lies beyond the whiskers is not drawn.
        assert!(!with.contains("<circle"), "{with}");
        Ok(())
    }

    #[test]
    fn paths_end_with_their_markers() -> Result<()> {
        let path = |name: &str, x: f64| Series::new(name, [(x, 0.), (x, 1.), (x, 2.)]);
        let svg = draw(vec![plane("p", "PC 1", "PC 2", &[path("cat", 0.), path("dog", 1.)])])?;
        for text in ["PC 1", "PC 2", "cat", "dog"] {
            assert!(svg.contains(text), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_figure_that_cannot_be_written_is_named() {
        let panel = || vec![lines("a", "x", "y", &[], None)];
        let error = write(Path::new("no/such/folder/accuracy"), panel(), 1).unwrap_err().to_string();
        assert!(error.contains("accuracy.svg"), "{error}");
        assert!(write(Path::new("accuracy"), Vec::new(), 1).is_err());
    }
}
