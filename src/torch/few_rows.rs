//! A few rows times a matrix: what writing text does all day, and bound by reading the matrix.
//!
//! libtorch's products reach two thirds of the memory's speed for f32 and half of it for bf16, and around
//! them each small operation costs microseconds (docs/benchmarks.md). Here the matrix is read once for
//! all rows, as quickly as memory gives it, by all threads of the pool that the caller runs in. Rows stay
//! f32.

#![expect(
    clippy::inline_always,
    reason = "loops have to land in the function of each instruction set"
)]

use rayon::prelude::*;

use super::frozen::{Numbers, f32_of};

/// `x W^T`: `x` is `[rows, input]`, `weight` `[out, input]`; gives `[rows, out]`.
///
/// # Determinism
/// The same numbers in give the same numbers out, whatever the number of threads, and each row is what it
/// would be alone.
pub fn times(x: &[f32], weight: Numbers<'_>, input: usize) -> Vec<f32> {
    let rows = x.len() / input.max(1);
    let out = weight.len() / input.max(1);
    // [out, rows], so that threads write to parts of their own.
    let mut y = vec![0.0; out * rows];
    let tasks = rayon::current_num_threads() * TASKS_A_THREAD;
    let band = out.div_ceil(tasks).max(MIN_BAND);
    y.par_chunks_mut((band * rows).max(1)).enumerate().for_each(|(task, y)| {
        let start = task * band * input;
        let part = weight.part(start, (start + band * input).min(weight.len()));
        match part {
            Numbers::F32(weight) => dots_here(x, weight, input, y),
            Numbers::Bf16(weight) => dots_here(x, weight, input, y),
        }
    });
    if rows <= 1 {
        return y;
    }
    (0..rows).flat_map(|row| y.iter().skip(row).step_by(rows).copied()).collect()
}

/// `sum(a * b)`.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let [[sum]] = dots([a], [b]);
    sum
}

/// A number as it lies in memory.
trait Number: Copy + Send + Sync {
    fn f32(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn f32(self) -> f32 {
        self
    }
}

impl Number for u16 {
    #[inline(always)]
    fn f32(self) -> f32 {
        f32_of(self)
    }
}

/// [`dots_of`] in the widest instructions that this processor has: one row is bound by memory in any, several
/// aren't. The sums run in the same order, so the numbers are the same.
fn dots_here<T: Number>(x: &[f32], weight: &[T], input: usize, y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn by_512_bits<T: Number>(x: &[f32], weight: &[T], input: usize, y: &mut [f32]) {
            dots_of::<T, 4>(x, weight, input, y);
        }
        #[target_feature(enable = "avx2")]
        fn by_256_bits<T: Number>(x: &[f32], weight: &[T], input: usize, y: &mut [f32]) {
            dots_of::<T, 2>(x, weight, input, y);
        }
        let has_512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        #[expect(unsafe_code, reason = "functions for some processors")]
        // SAFETY: each is called only where the processor has what it was compiled for.
        unsafe {
            if has_512 {
                return by_512_bits(x, weight, input, y);
            }
            if is_x86_feature_detected!("avx2") {
                return by_256_bits(x, weight, input, y);
            }
        }
    }
    dots_of::<T, 1>(x, weight, input, y);
}

/// Each row of `weight` with each row of `x`, N of these at once: `[weights, rows]`.
///
/// Four places of the matrix are read side by side: one alone leaves the memory waiting.
#[inline(always)]
fn dots_of<T: Number, const N: usize>(x: &[f32], weight: &[T], input: usize, y: &mut [f32]) {
    let rows = x.len() / input.max(1);
    let stream = weight.len() / input.max(1) / STREAMS;
    let (body, rest) = weight.split_at(stream * STREAMS * input);
    let (y_body, y_rest) = y.split_at_mut(stream * STREAMS * rows);
    if stream > 0 {
        let mut places = body.chunks_exact(stream * input).map(|part| part.chunks_exact(input));
        let mut places: [_; STREAMS] =
            std::array::from_fn(|_| places.next().unwrap_or_else(|| [].chunks_exact(input)));
        for at in 0..stream {
            let weights = places.each_mut().map(|place| place.next().unwrap_or_default());
            let mut to = |row: usize, sums: &[f32]| {
                let places = y_body.iter_mut().skip(at * rows + row).step_by(stream * rows);
                for (to, sum) in places.zip(sums) {
                    *to = *sum;
                }
            };
            let groups = x.chunks_exact(N * input);
            let single = (rows / N * N..).zip(groups.remainder().chunks_exact(input));
            for (group, x) in groups.enumerate() {
                let mut x = x.chunks_exact(input);
                let x: [&[f32]; N] = std::array::from_fn(|_| x.next().unwrap_or_default());
                let sums = dots(weights, x);
                for n in 0..N {
                    to(group * N + n, &sums.map(|sums| sums.get(n).copied().unwrap_or_default()));
                }
            }
            for (row, x) in single {
                to(row, dots(weights, [x]).as_flattened());
            }
        }
    }
    for (weight, y) in rest.chunks_exact(input).zip(y_rest.chunks_exact_mut(rows)) {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(input)) {
            [[*y]] = dots([weight], [x]);
        }
    }
}

/// The dot products of W rows of a matrix with N rows of their length: `[W, N]`.
///
/// Sums run in lanes, so that the compiler keeps them in vector registers.
#[inline(always)]
fn dots<T: Number, const W: usize, const N: usize>(
    weights: [&[T]; W],
    x: [&[f32]; N],
) -> [[f32; N]; W] {
    let weights = weights.map(|weight| weight.as_chunks::<LANES>());
    let x = x.map(|x| x.as_chunks::<LANES>());
    let mut sums = [[[0.0_f32; LANES]; N]; W];
    let chunks = x.first().map_or(0, |(chunks, _)| chunks.len());
    for at in 0..chunks {
        let x = x.map(|(chunks, _)| chunks.get(at).copied().unwrap_or_default());
        for (sums, (weight, _)) in sums.iter_mut().zip(&weights) {
            let Some(weight) = weight.get(at) else { continue };
            let weight = weight.map(Number::f32);
            for (sums, x) in sums.iter_mut().zip(&x) {
                for ((sum, weight), x) in sums.iter_mut().zip(&weight).zip(x) {
                    *sum += weight * x;
                }
            }
        }
    }
    let mut all = sums.map(|sums| sums.map(|lanes| lanes.iter().sum()));
    for (all, (_, weight)) in all.iter_mut().zip(&weights) {
        for (sum, (_, x)) in all.iter_mut().zip(&x) {
            for (weight, x) in weight.iter().zip(*x) {
                *sum += weight.f32() * x;
            }
        }
    }
    all
}

/// Sums that run side by side for one product.
const LANES: usize = 8;
/// Rows of a matrix that are read side by side.
const STREAMS: usize = 4;
/// More tasks than threads, so that a thread that starts late has less to do.
const TASKS_A_THREAD: usize = 2;
/// Rows of a matrix that aren't worth a task of their own.
const MIN_BAND: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Kind, Tensor};

    use super::*;
    use crate::rng::Stream;
    use crate::torch::frozen::Frozen;
    use crate::torch::{tensor, values};

    fn drawn(stream: &mut Stream, rows: usize, width: usize) -> Tensor {
        #[expect(clippy::cast_possible_truncation, reason = "a draw fits an f32")]
        let data: Vec<f32> = (0..rows * width).map(|_| stream.normal() as f32).collect();
        tensor(&data, &[i64::try_from(rows).unwrap(), i64::try_from(width).unwrap()]).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_the_product_that_libtorch_gives(
            (rows, out, input) in (1_usize..11, 1_usize..90, 1_usize..100), seed in 0_u64..1_000,
        ) {
            let mut stream = Stream::new(seed, "few rows");
            let (x, weight) = (drawn(&mut stream, rows, input), drawn(&mut stream, out, input));
            for kind in [Kind::Float, Kind::BFloat16] {
                let weight = weight.to_kind(kind);
                let frozen = Frozen::new(&weight).unwrap();
                let rows_of_x = values(&x).unwrap();
                let ours = times(&rows_of_x, frozen.numbers(), input);
                let expected = x.to_kind(Kind::Double).matmul(&weight.to_kind(Kind::Double).tr());
                let expected = values(&expected).unwrap();
                prop_assert_eq!(ours.len(), expected.len());
                for (ours, expected) in ours.iter().zip(&expected) {
                    prop_assert!((ours - expected).abs() < 1e-4, "{} {}", ours, expected);
                }
                // Each row is what it is alone.
                for (row, x) in rows_of_x.chunks_exact(input).enumerate() {
                    let alone = times(x, frozen.numbers(), input);
                    prop_assert_eq!(alone.as_slice(), &ours[row * out..(row + 1) * out]);
                }
            }
        }
    }

    #[test]
    fn neither_the_number_of_threads_nor_the_instructions_change_anything() {
        let mut stream = Stream::new(1, "few rows");
        let (x, weight) = (drawn(&mut stream, 3, 70), drawn(&mut stream, 500, 70));
        let (x, weight) = (values(&x).unwrap(), Frozen::new(&weight).unwrap());
        let by = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| times(&x, weight.numbers(), 70))
        };
        assert_eq!(by(1), by(3));
        let Numbers::F32(numbers) = weight.numbers() else { panic!("f32 went in") };
        let mut plain = vec![0.0; 3 * 500];
        dots_of::<_, 1>(&x, numbers, 70, &mut plain);
        let turned = (0..3).flat_map(|row| plain.iter().skip(row).step_by(3).copied());
        assert_eq!(by(1), turned.collect::<Vec<f32>>());
    }
}
