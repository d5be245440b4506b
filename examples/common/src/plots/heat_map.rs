use std::sync::Arc;

use kuva::prelude::{ColorMap, Heatmap};

use super::Panel;
use super::axis::layout;

/// A matrix over pairs of layers in colours that mean the same in every panel of equal `range`, with a colour bar. Rows go
/// up, columns to the right, both counted from `first`; `labels` name the columns' axis and the rows'. Cells that are not finite
/// are grey.
#[must_use]
pub fn heat_map(
    title: &str,
    labels: (&str, &str),
    matrix: &[Vec<f64>],
    first: usize,
    range: (f64, f64),
) -> Panel {
    let (rows, columns) = (matrix.len(), matrix.first().map_or(0, Vec::len));
    let names = |layers: usize| (first..first + layers).map(|layer| layer.to_string()).collect();
    let extent = |layers: usize| (0.5, layers.max(1) as f64 + 0.5);
    let mut panel = Panel {
        layers: Vec::new(),
        layout: layout(title, (labels.0, extent(columns)), (labels.1, extent(rows)))
            .with_x_categories(names(columns))
            .with_y_categories(names(rows))
            .with_show_grid(false),
        legend: Vec::new(),
        size: (430., 380.),
    };
    if columns == 0 {
        return panel;
    }
    // kuva's colour bar spans the data of the first map. So the first map holds the ends of the range; the second
    // one, the data, covers it.
    let ends = scaled(&[vec![range.0, range.1]], range).with_x_range(0.9, 1.1).with_y_range(0.9, 1.1);
    panel.layers = vec![ends.into(), scaled(matrix, range).into()];
    panel.layout.show_colorbar = true;
    panel
}

/// The map whose colours follow `range` instead of the smallest and the largest value, to which kuva scales.
fn scaled(matrix: &[Vec<f64>], range: (f64, f64)) -> Heatmap {
    let values = || matrix.iter().flatten().copied();
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let undo = move |scaled: f64| colour(low + scaled * (high - low + f64::EPSILON), range);
    Heatmap::new()
        .with_data(matrix.to_vec())
        .with_color_map(ColorMap::Custom(Arc::new(undo)))
        .with_cell_size(1.)
}

/// Colour of a value: viridis from the lower to the upper end, grey where undefined.
pub(super) fn colour(value: f64, (low, high): (f64, f64)) -> String {
    if value.is_finite() {
        ColorMap::Viridis.map(((value - low) / (high - low)).clamp(0., 1.))
    } else {
        "#bbbbbb".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_end_with_the_range() {
        assert_eq!(colour(-7., (-1., 1.)), colour(-1., (-1., 1.)));
        assert_eq!(colour(7., (-1., 1.)), colour(1., (-1., 1.)));
        assert_ne!(colour(0., (-1., 1.)), colour(1., (-1., 1.)));
        assert_eq!(colour(f64::NAN, (-1., 1.)), "#bbbbbb");
    }
}
