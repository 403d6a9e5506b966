//! A sum of low-rank products, kept as two stacks of columns and never as a dense matrix unless
//! that is smaller.
//!
//! ```text
//! sum_i c_i B_i A_i  =  L R^T      L = [c_1 B_1 | c_2 B_2 | ...]  d x n      R = [A_1^T | A_2^T | ...]  k x n
//! QR: L = Q_l R_l,  R = Q_r R_r;   SVD of the small core R_l R_r^T = U S V^T;   L R^T = (Q_l U) S (Q_r V)^T
//! ```
//! Called by `lora_product.rs` only. All sums are f64 in one order. Matrix products are plain loops:
//! nalgebra's own choose their kernel by the CPU, and the bits with it.

use nalgebra::{DMatrix, SVD};

use super::LearnError;

/// `L R^T` with `d` rows and `k` columns.
#[derive(Debug, Clone)]
pub(super) struct Factors {
    d: usize,
    k: usize,
    /// Columns of L one after the other, d values each.
    left: Vec<f64>,
    /// Columns of R one after the other, k values each.
    right: Vec<f64>,
    columns: usize,
    /// Energy that the running compression has cut off.
    lost: f64,
    bounds: Bounds,
}

/// When a stack is compressed, and to what.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Wider ones are compressed.
    most: usize,
    /// What a compression leaves at most.
    kept: usize,
}

impl Bounds {
    /// Far above any rank that is trained.
    const USUAL: Self = Self { most: 512, kept: 256 };
}

/// The leading part of a product: `left` is U S, `right` is V, `energy` what both carry.
#[derive(Debug)]
pub(super) struct Leading {
    /// Columns of U S, d values each, longest first.
    pub left: Vec<Vec<f64>>,
    /// Columns of V, k values each, of length 1.
    pub right: Vec<Vec<f64>>,
    /// Share of the sum of squared singular values that was left out, 0 to 1.
    pub discarded_energy: f64,
}

impl Factors {
    /// The zero product.
    pub(super) fn new(d: usize, k: usize) -> Self {
        Self::bounded(d, k, Bounds::USUAL)
    }

    fn bounded(d: usize, k: usize, bounds: Bounds) -> Self {
        Self { d, k, left: Vec::new(), right: Vec::new(), columns: 0, lost: 0.0, bounds }
    }

    /// Adds `scale` B A, with B `[d, rank]` and A `[rank, k]`, both row-major.
    ///
    /// # Errors
    /// Those of [`Factors::leading`].
    pub(super) fn add(
        &mut self,
        scale: f64,
        b: &[f32],
        a: &[f32],
        rank: usize,
    ) -> Result<(), LearnError> {
        for column in 0..rank {
            let values = b.iter().skip(column).step_by(rank);
            self.left.extend(values.map(|x| scale * f64::from(*x)));
        }
        self.right.extend(a.iter().map(|x| f64::from(*x)));
        self.columns += rank;
        self.compress()
    }

    /// Number of columns in each stack: an upper bound of the rank.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Says if the running compression has cut something off.
    pub(super) fn is_exact(&self) -> bool {
        self.lost == 0.0
    }

    /// Columns of L and of R, as they are.
    pub(super) fn into_columns(self) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let columns = |flat: &[f64], len| flat.chunks(len).map(<[f64]>::to_vec).collect();
        (columns(&self.left, self.d), columns(&self.right, self.k))
    }

    /// Truncated SVD: at most `rank` columns, fewer when the product has a smaller rank.
    ///
    /// The sign of each pair is such that the entry of U that is largest in magnitude (the first
    /// one of equals) is positive.
    ///
    /// # Errors
    /// [`LearnError::Engine`] when the SVD doesn't converge.
    pub(super) fn leading(&self, rank: usize) -> Result<Leading, LearnError> {
        let (q_left, r_left) =
            DMatrix::from_column_slice(self.d, self.columns, &self.left).qr().unpack();
        let (q_right, r_right) =
            DMatrix::from_column_slice(self.k, self.columns, &self.right).qr().unpack();
        let mut core = times_transposed(&r_left, &r_right);
        // Scaled, so that squares of squares inside the SVD stay in the range of f64.
        let largest = core.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        if largest == 0.0 {
            return Ok(Leading { left: Vec::new(), right: Vec::new(), discarded_energy: 0.0 });
        }
        core /= largest;
        let svd = SVD::try_new(core, true, true, f64::EPSILON, MAX_SWEEPS);
        let Some(SVD { u: Some(u), v_t: Some(v_t), singular_values }) = svd else {
            return Err(LearnError::Engine {
                engine: "nalgebra",
                message: format!("SVD of {} columns did not converge", self.columns),
            });
        };
        let u = times_transposed(&q_left, &u.transpose());
        let v = times_transposed(&q_right, &v_t);
        let smallest = singular_values.max() * NOISE;
        let mut found = Leading { left: Vec::new(), right: Vec::new(), discarded_energy: 0.0 };
        let (mut kept, mut cut) = (0.0, self.lost / (largest * largest));
        for ((u, v), s) in u.column_iter().zip(v.column_iter()).zip(&singular_values) {
            if *s <= smallest {
                continue;
            }
            if found.left.len() == rank {
                cut += s * s;
                continue;
            }
            kept += s * s;
            let peak =
                u.iter().fold(0.0_f64, |most, x| if x.abs() > most.abs() { *x } else { most });
            let sign = peak.signum();
            found.left.push(u.iter().map(|x| sign * x * s * largest).collect());
            found.right.push(v.iter().map(|x| sign * x).collect());
        }
        found.discarded_energy = cut / (kept + cut);
        Ok(found)
    }

    /// Keeps the stacks bounded: multiplied out where the dense product is small (exact), else cut
    /// to their leading columns.
    fn compress(&mut self) -> Result<(), LearnError> {
        if self.columns <= self.bounds.most {
            return Ok(());
        }
        if self.d.min(self.k) <= self.bounds.kept {
            let left = DMatrix::from_column_slice(self.d, self.columns, &self.left);
            let right = DMatrix::from_column_slice(self.k, self.columns, &self.right);
            let (left, right) = if self.d < self.k {
                (DMatrix::identity(self.d, self.d), times_transposed(&right, &left))
            } else {
                (times_transposed(&left, &right), DMatrix::identity(self.k, self.k))
            };
            self.columns = left.ncols();
            self.left = left.as_slice().to_vec();
            self.right = right.as_slice().to_vec();
            return Ok(());
        }
        let leading = self.leading(self.bounds.kept)?;
        let kept: f64 = leading.left.iter().flatten().map(|x| x * x).sum();
        let total = kept / (1.0 - leading.discarded_energy);
        self.lost = total * leading.discarded_energy;
        self.columns = leading.left.len();
        self.left = leading.left.concat();
        self.right = leading.right.concat();
        Ok(())
    }
}

/// Fills `rows` up to `wanted` unit rows at right angles to each other, taken from `candidates` in
/// order and, when these aren't enough, from the unit vectors. Stays shorter only beyond `k` rows.
pub(super) fn complete_rows(
    rows: &mut Vec<Vec<f64>>,
    wanted: usize,
    k: usize,
    candidates: impl Iterator<Item = Vec<f64>>,
) {
    let unit = |at: usize| (0..k).map(|i| if i == at { 1.0 } else { 0.0 }).collect();
    for mut row in candidates.chain((0..k).map(unit)) {
        if rows.len() >= wanted.min(k) {
            return;
        }
        let length = norm(&row);
        for _ in 0..2 {
            for other in &*rows {
                let along: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let left = norm(&row);
        if left > INDEPENDENT * length {
            rows.push(row.into_iter().map(|x| x / left).collect());
        }
    }
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `x y^T`, column by column in one order.
fn times_transposed(x: &DMatrix<f64>, y: &DMatrix<f64>) -> DMatrix<f64> {
    let mut product = DMatrix::zeros(x.nrows(), y.nrows());
    for (mut out, row) in product.column_iter_mut().zip(y.row_iter()) {
        for (column, factor) in x.column_iter().zip(row.iter()) {
            out.axpy(*factor, &column, 1.0);
        }
    }
    product
}

/// Singular values below this share of the largest are rounding.
const NOISE: f64 = 1e-13;

/// A row that loses more than all but this share of its length depends on the others.
const INDEPENDENT: f64 = 1e-6;

/// Steps of the SVD before it is given up; it needs a few for each column.
const MAX_SWEEPS: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::narrow;
    use crate::rng::Stream;

    fn draw(stream: &mut Stream, len: usize) -> Vec<f32> {
        (0..len).map(|_| narrow(stream.range(-1.0, 1.0))).collect()
    }

    fn dense(d: usize, k: usize, left: &[Vec<f64>], right: &[Vec<f64>]) -> Vec<f64> {
        let mut product = vec![0.0; d * k];
        for (l, r) in left.iter().zip(right) {
            for (row, x) in product.chunks_mut(k).zip(l) {
                row.iter_mut().zip(r).for_each(|(p, y)| *p += x * y);
            }
        }
        product
    }

    /// Small ones: the SVD of 512 columns takes a minute without the compiler's optimisations.
    const SMALL: Bounds = Bounds { most: 64, kept: 32 };

    /// Adds `members` products of rank 4; gives the sum, also computed densely.
    fn summed(d: usize, k: usize, members: u32, decay: f64) -> (Factors, Vec<f64>) {
        let mut stream = Stream::new(3, "factors");
        let (mut sum, mut expected) = (Factors::bounded(d, k, SMALL), vec![0.0; d * k]);
        let mut scale = 1.0;
        for _ in 0..members {
            let (b, a) = (draw(&mut stream, d * 4), draw(&mut stream, 4 * k));
            sum.add(scale, &b, &a, 4).unwrap();
            for (b_row, out) in b.chunks(4).zip(expected.chunks_mut(k)) {
                for (from_b, a_row) in b_row.iter().zip(a.chunks(k)) {
                    let factor = f64::from(*from_b) * scale;
                    let terms = a_row.iter().map(|from_a| factor * f64::from(*from_a));
                    out.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
                }
            }
            scale *= decay;
        }
        (sum, expected)
    }

    fn largest_gap(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn many_members_of_a_small_layer_are_summed_exactly_in_bounded_memory() {
        for (d, k) in [(10, 7), (7, 10)] {
            let (sum, expected) = summed(d, k, 1000, 1.0);
            assert!(sum.columns() <= SMALL.most && sum.is_exact());
            let leading = sum.leading(10).unwrap();
            assert!(largest_gap(&dense(d, k, &leading.left, &leading.right), &expected) < 1e-9);
            assert_eq!((leading.left.len(), leading.discarded_energy), (7, 0.0));
        }
    }

    #[test]
    fn many_members_of_a_large_layer_are_cut_to_their_leading_columns() {
        let (sum, expected) = summed(40, 48, 50, 0.5);
        assert!(sum.columns() <= SMALL.most && !sum.is_exact());
        let leading = sum.leading(48).unwrap();
        // beyond 32 columns (8 members) the scale is under 0.5^8 = 0.004
        assert!(largest_gap(&dense(40, 48, &leading.left, &leading.right), &expected) < 0.05);
        assert!(leading.discarded_energy > 0.0 && leading.discarded_energy < 1e-4);
    }

    #[test]
    fn rows_are_completed_at_right_angles() {
        let mut rows = vec![vec![0.6, 0.8, 0.0]];
        let candidates = [vec![1.2, 1.6, 0.0], vec![0.0; 3], vec![0.0, 0.0, 2.0]];
        complete_rows(&mut rows, 5, 3, candidates.into_iter());
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[1], [0.0, 0.0, 1.0]);
        assert!(largest_gap(&rows[2], &[0.8, -0.6, 0.0]) < 1e-12);
    }
}
