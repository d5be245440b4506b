//! Products and decompositions in f64. What does them is known here only.

#![allow(unsafe_code)] // Products take raw pointers; their bounds are checked here.

use nalgebra::{DMatrix, SVD, SymmetricEigen};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::{Error, Result};

/// `c += a b` on this thread.
pub(crate) fn add_product(mut c: ArrayViewMut2<'_, f64>, a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert_eq!((b.nrows(), c.dim()), (k, (m, n)), "shapes of a product");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let (cs, rs) = (c.strides().to_vec(), [a.strides(), b.strides()]);
    // SAFETY: the views are alive, `c` is borrowed exclusively, the shapes agree, and each pointer comes with the strides of its
    // own view, so only elements of the views are touched.
    unsafe {
        gemm_f64::gemm::f64::get_gemm_fn()(
            m,
            n,
            k,
            c.as_mut_ptr(),
            cs[1],
            cs[0],
            true,
            a.as_ptr(),
            rs[0][1],
            rs[0][0],
            b.as_ptr(),
            rs[1][1],
            rs[1][0],
            1.,
            1.,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

/// `a b`, rows of the result shared among threads.
pub(crate) fn product(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    const ROWS: usize = 128;
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    let strips: Vec<_> = c.axis_chunks_iter_mut(Axis(0), ROWS).collect();
    strips.into_par_iter().zip(a.axis_chunks_iter(Axis(0), ROWS).collect::<Vec<_>>()).for_each(|(c, a)| {
        add_product(c, a, b);
    });
    c
}

/// Eigenvalues in descending order, and the eigenvectors as columns, of a symmetric matrix.
pub(crate) fn eigen(symmetric: &Array2<f64>) -> Result<(Array1<f64>, Array2<f64>)> {
    let found = SymmetricEigen::try_new(to_nalgebra(symmetric), f64::EPSILON, STEPS)
        .ok_or(Error::Convergence("eigenvalue decomposition"))?;
    let mut order: Vec<usize> = (0..found.eigenvalues.len()).collect();
    order.sort_by(|&i, &j| found.eigenvalues[j].total_cmp(&found.eigenvalues[i]));
    let values = order.iter().map(|&i| found.eigenvalues[i]).collect();
    let vectors =
        Array2::from_shape_fn(symmetric.dim(), |(row, column)| found.eigenvectors[(row, order[column])]);
    Ok((values, vectors))
}

/// Singular values, descending.
pub(crate) fn singular_values(a: &Array2<f64>) -> Result<Array1<f64>> {
    Ok(svd(a, false)?.singular_values.iter().copied().collect())
}

/// Left singular vectors, as columns, and singular values, descending.
pub(crate) fn left_singular(a: &Array2<f64>) -> Result<(Array2<f64>, Array1<f64>)> {
    let found = svd(a, true)?;
    let u = found.u.ok_or(Error::Convergence("singular value decomposition"))?;
    Ok((from_nalgebra(&u), found.singular_values.iter().copied().collect()))
}

/// `Q` with orthonormal columns and `R` of a matrix that is not wider than high.
pub(crate) fn qr(a: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
    let found = to_nalgebra(a).qr();
    (from_nalgebra(&found.q()), from_nalgebra(&found.r()))
}

/// Far more than any matrix needs, so that a decomposition ends.
const STEPS: usize = 100_000;

fn svd(a: &Array2<f64>, left: bool) -> Result<SVD<f64, nalgebra::Dyn, nalgebra::Dyn>> {
    SVD::try_new(to_nalgebra(a), left, false, 5. * f64::EPSILON, STEPS)
        .ok_or(Error::Convergence("singular value decomposition"))
}

fn to_nalgebra(a: &Array2<f64>) -> DMatrix<f64> {
    DMatrix::from_row_iterator(a.nrows(), a.ncols(), a.iter().copied())
}

fn from_nalgebra(a: &DMatrix<f64>) -> Array2<f64> {
    Array2::from_shape_fn(a.shape(), |at| a[at])
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::{add_product, product};

    fn matrix(m: usize, n: usize) -> Array2<f64> {
        Array2::from_shape_fn((m, n), |(i, j)| ((i * 7 + j * 3) % 11) as f64 - 5.)
    }

    /// Small whole numbers: every order of summation is exact.
    #[test]
    fn products_of_views_with_any_strides() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (129, 17, 33), (260, 300, 5), (0, 3, 2), (2, 0, 3)] {
            let (a, b) = (matrix(m, k), matrix(k, n));
            assert_eq!(product(a.view(), b.view()), a.dot(&b));
            assert_eq!(product(b.t(), a.t()), b.t().dot(&a.t()));
            let mut c = matrix(m + 2, n + 3);
            let want = &c.slice(s![1..=m, 2..n + 2]) + &a.dot(&b);
            let before = c.clone();
            add_product(c.slice_mut(s![1..=m, 2..n + 2]), a.view(), b.view());
            assert_eq!(c.slice(s![1..=m, 2..n + 2]), want);
            assert_eq!((c.row(0), c.column(1)), (before.row(0), before.column(1)));
        }
    }
}
