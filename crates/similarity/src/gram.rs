//! Sums over the `n x n` kernel matrices of all layers, tile by tile: none of them is ever held.

use ndarray::{Array1, Array2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::{linalg::add_product, representation::chunks};

/// What is made of the inner products of samples.
pub(crate) enum Kernel {
    /// Nothing.
    Linear,
    /// `exp(shift - gamma |x_i - x_j|^2) - 1`, with its own gamma for each layer, and 0 on the diagonal. HSIC does not depend on a
    /// constant, CKA not on a factor; both are chosen so that most numbers are near 0, where differences cost no digits.
    Gaussian { gammas: Vec<f64>, shift: f64 },
}

/// Sums of all layers' kernel matrices.
pub(crate) struct GramSums {
    /// `sum_ij K_ij L_ij`, `(L, L)`.
    pub(crate) products: Array2<f64>,
    /// The diagonals, `(n)`.
    pub(crate) diagonals: Vec<Array1<f64>>,
    /// The sums of the rows, `(n)`; of a Gaussian kernel only.
    pub(crate) rows: Vec<Array1<f64>>,
}

/// Edge of a tile: those of a dozen layers stay in the cache.
const TILE: usize = 128;

/// The sums for centred features `(n, d)` of each layer.
pub(crate) fn gram_sums(layers: &[Array2<f64>], kernel: &Kernel) -> GramSums {
    let n = layers[0].nrows();
    let squares: Vec<Array1<f64>> = layers.iter().map(squares).collect();
    let mut sums = GramSums {
        products: Array2::zeros((layers.len(), layers.len())),
        diagonals: match kernel {
            Kernel::Linear => squares.clone(),
            Kernel::Gaussian { .. } => vec![Array1::zeros(n); layers.len()],
        },
        rows: vec![Array1::zeros(n); layers.len()],
    };
    let bands: Vec<_> = chunks(n, TILE).collect();
    // A few at a time: what they sum is added in a fixed order, whatever the number of threads.
    for bands in bands.chunks(4 * rayon::current_num_threads()) {
        let parts: Vec<_> = bands
            .par_iter()
            .map(|rows| {
                let mut products = Array2::zeros(sums.products.dim());
                // Of this band's rows, and, by symmetry, of those of the tiles to the right of the diagonal.
                let mut sums_of_rows = Array2::zeros((layers.len(), n - rows.start));
                for columns in chunks(n - rows.start, TILE) {
                    let columns = rows.start + columns.start..rows.start + columns.end;
                    let diagonal = columns.start == rows.start;
                    let (height, width) = (rows.len(), columns.len());
                    let mut tiles = Array2::<f64>::zeros((layers.len(), height * width));
                    for (l, (xs, mut tile)) in layers.iter().zip(tiles.rows_mut()).enumerate() {
                        let tile = tile.as_slice_mut().expect("a row of a matrix is contiguous");
                        let mut tile =
                            ArrayViewMut2::from_shape((height, width), tile).expect("its own size");
                        let (left, right) =
                            (xs.slice(s![rows.clone(), ..]), xs.slice(s![columns.clone(), ..]));
                        add_product(tile.view_mut(), left, right.t());
                        let Kernel::Gaussian { gammas, shift } = kernel else { continue };
                        for ((i, j), k) in tile.indexed_iter_mut() {
                            let distance =
                                squared_distance(xs, &squares[l], (rows.start + i, columns.start + j), *k);
                            *k = (shift - gammas[l] * distance).exp_m1();
                        }
                        if diagonal {
                            tile.diag_mut().fill(0.);
                        } else {
                            let mut below = sums_of_rows
                                .slice_mut(s![l, columns.start - rows.start..columns.end - rows.start]);
                            below += &tile.sum_axis(Axis(0));
                        }
                        let mut own = sums_of_rows.slice_mut(s![l, ..height]);
                        own += &tile.sum_axis(Axis(1));
                    }
                    // Off the diagonal a tile stands for its mirror image, too.
                    let weighted = if diagonal { tiles.clone() } else { &tiles * 2. };
                    add_product(products.view_mut(), weighted.view(), tiles.t());
                }
                (rows.start, products, sums_of_rows)
            })
            .collect();
        for (start, products, rows) in parts {
            sums.products += &products;
            for (all, part) in sums.rows.iter_mut().zip(rows.rows()) {
                let mut all = all.slice_mut(s![start..]);
                all += &part;
            }
        }
    }
    sums
}

/// Median of `|x_i - x_j|^2` over all pairs `i < j`, of their square root in truth: the square of the mean of the middle two
/// distances. 0 for one sample.
///
/// Found digit by digit (base 65,536) of the bits of the distances, which order as the numbers do: memory does not grow with the
/// number of pairs.
pub(crate) fn median_squared_distance(xs: &Array2<f64>) -> f64 {
    let n = xs.nrows();
    let pairs = n * (n - 1) / 2;
    if pairs == 0 {
        return 0.;
    }
    let squares = squares(xs);
    // The two in the middle, the same one of an odd number: the bits found so far, and the rank among those that share them.
    let mut middle = [(0u64, (pairs - 1) / 2), (0u64, pairs / 2)];
    for shift in [48, 32, 16, 0] {
        let mut counts = vec![[0usize; 2]; 1 << 16];
        let bands: Vec<_> = chunks(n, TILE).collect();
        for bands in bands.chunks(2 * rayon::current_num_threads()) {
            let parts: Vec<_> =
                bands.par_iter().map(|rows| digits(xs, &squares, rows.clone(), shift, middle)).collect();
            for part in parts {
                for (counts, part) in counts.iter_mut().zip(part) {
                    counts[0] += part[0];
                    counts[1] += part[1];
                }
            }
        }
        for (which, (bits, rank)) in middle.iter_mut().enumerate() {
            for (digit, count) in counts.iter().enumerate() {
                if *rank < count[which] {
                    *bits |= (digit as u64) << shift;
                    break;
                }
                *rank -= count[which];
            }
        }
    }
    let [low, high] = middle.map(|(bits, _)| f64::from_bits(bits).sqrt());
    (0.5 * (low + high)).powi(2)
}

/// How often each digit at `shift` occurs among the distances from `rows` to later samples that share the higher digits.
fn digits(
    xs: &Array2<f64>,
    squares: &Array1<f64>,
    rows: std::ops::Range<usize>,
    shift: u32,
    middle: [(u64, usize); 2],
) -> Vec<[usize; 2]> {
    let mut counts = vec![[0; 2]; 1 << 16];
    let higher = |bits: u64| bits.checked_shr(shift + 16).unwrap_or(0);
    let left = xs.slice(s![rows.clone(), ..]);
    for columns in chunks(xs.nrows() - rows.start, TILE) {
        let columns = rows.start + columns.start..rows.start + columns.end;
        let mut tile = Array2::zeros((rows.len(), columns.len()));
        add_product(tile.view_mut(), left, xs.slice(s![columns.clone(), ..]).t());
        for ((i, j), product) in tile.indexed_iter() {
            let (i, j) = (rows.start + i, columns.start + j);
            if i >= j {
                continue;
            }
            let bits = squared_distance(xs, squares, (i, j), *product).to_bits();
            for (which, (found, _)) in middle.iter().enumerate() {
                if higher(bits) == higher(*found) {
                    counts[(bits >> shift & 0xffff) as usize][which] += 1;
                }
            }
        }
    }
    counts
}

/// `|x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 <x_i, x_j>`, or, where that would cost more than three digits, from the differences: of
/// equal samples it is exactly 0.
fn squared_distance(xs: &Array2<f64>, squares: &Array1<f64>, (i, j): (usize, usize), product: f64) -> f64 {
    let sum = squares[i] + squares[j];
    let distance = sum - 2. * product;
    if distance > 1e-3 * sum {
        return distance;
    }
    xs.row(i).iter().zip(xs.row(j)).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// `|x_i|^2`.
fn squares(xs: &Array2<f64>) -> Array1<f64> {
    xs.map_axis(Axis(1), |row| row.dot(&row))
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::median_squared_distance;

    #[test]
    fn the_median_of_even_and_odd_numbers_of_pairs() {
        for n in [1, 2, 3, 4, 5, 130, 261] {
            let xs = Array2::from_shape_fn((n, 3), |(i, j)| ((i * i + 3 * j) as f64).sin() * 4. - 1.);
            let mut all: Vec<f64> = (0..n)
                .flat_map(|i| (i + 1..n).map(move |j| (i, j)))
                .map(|(i, j)| (&xs.row(i) - &xs.row(j)).mapv(|x| x * x).sum().sqrt())
                .collect();
            all.sort_by(f64::total_cmp);
            let want = match all.len() {
                0 => 0.,
                pairs => 0.5 * (all[(pairs - 1) / 2] + all[pairs / 2]),
            };
            let got = median_squared_distance(&xs).sqrt();
            assert!((got - want).abs() < 1e-12, "{n} samples: {got}, want {want}");
        }
    }

    #[test]
    fn half_of_all_pairs_coincide() {
        assert_eq!(median_squared_distance(&Array2::from_elem((6, 2), 0.3)), 0.);
    }
}
