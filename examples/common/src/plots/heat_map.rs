use std::sync::Arc;

use kuva::prelude::{ColorMap, Heatmap};

use super::Panel;
use super::axis::layout;

/// A square matrix over pairs of layers, the first of which is `first`, in colours that mean the same in every
/// panel of equal `range`. Layers count from the lower left. Cells that are not finite are grey.
#[must_use]
pub fn heat_map(title: &str, label: &str, matrix: &[Vec<f64>], first: usize, range: (f64, f64)) -> Panel {
    let layers = matrix.len();
    let names: Vec<String> = (0..layers).map(|layer| (first + layer).to_string()).collect();
    let extent = (0.5, layers.max(1) as f64 + 0.5);
    let mut panel = Panel {
        layers: Vec::new(),
        layout: layout(title, (label, extent), (label, extent))
            .with_x_categories(names.clone())
            .with_y_categories(names)
            .with_show_grid(false),
        legend: Vec::new(),
        size: (430., 380.),
    };
    if layers == 0 || matrix[0].is_empty() {
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
