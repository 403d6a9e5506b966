//! Rows of several adapters on their way through one base: the base's products are computed for all of them
//! at once, what an adapter changes for its own rows.
//!
//! ```text
//! rows of adapter 1 --+                     +-- + its factors, scales, biases --> rows of adapter 1
//! rows of adapter 2 --+-- one base product -+-- + its own                     --> rows of adapter 2
//! rows of no adapter -+                     +---------------------------------->  rows of no adapter
//! ```
//! Which matrices are the same is seen where they lie: an adapter that replaces one has it elsewhere, and its rows
//! go through that. Each row gets the numbers that it gets alone ([`times`](super::few_rows::times)).

use super::decoder::{Gain, Matrix, Product};

/// One part of each of several models, in the order of the rows, and how many rows go through it.
#[derive(Debug)]
pub(super) struct Shared<'a, T>(Vec<(&'a T, usize)>);

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(parts: Vec<(&'a T, usize)>) -> Self {
        Self(parts)
    }

    /// A part of each of these; none where one lacks it.
    pub(super) fn of<U>(&self, part: impl Fn(&'a T) -> Option<&'a U>) -> Option<Shared<'a, U>> {
        let all = self.0.iter().map(|(of, rows)| Some((part(of)?, *rows)));
        all.collect::<Option<_>>().map(Shared)
    }

    /// A part that each of these has.
    pub(super) fn part<U>(&self, part: impl Fn(&'a T) -> &'a U) -> Shared<'a, U> {
        Shared(self.0.iter().map(|(of, rows)| (part(of), *rows)).collect())
    }

    pub(super) fn first(&self) -> Option<&'a T> {
        self.0.first().map(|(first, _)| *first)
    }

    /// Calls with each part and its rows of `x`, `[rows, width]`; and, where they stand for the same rows, of
    /// `y`.
    fn each(&self, x: &[f32], y: &mut [f32], mut call: impl FnMut(&T, &[f32], &mut [f32])) {
        let rows: usize = self.0.iter().map(|(_, rows)| rows).sum();
        let (wide, out) = (x.len() / rows.max(1), y.len() / rows.max(1));
        let (mut x, mut y) = (x, y);
        for (part, rows) in &self.0 {
            let Some((own, rest)) = x.split_at_checked(rows * wide) else { return };
            let Some((to, others)) = y.split_at_mut_checked(rows * out) else { return };
            call(part, own, to);
            (x, y) = (rest, others);
        }
    }
}

impl Shared<'_, Gain> {
    /// `[rows, d]` to the same shape.
    pub(super) fn norm(&self, x: &[f32]) -> Vec<f32> {
        let mut all = vec![0.0; x.len()];
        self.each(x, &mut all, |gain, x, y| y.copy_from_slice(&gain.forward(x)));
        all
    }
}

impl Shared<'_, Matrix> {
    /// `[rows, input]` to `[rows, out]`; rows of one matrix go through it together.
    pub(super) fn times(&self, x: &[f32]) -> Vec<f32> {
        let Some(first) = self.first() else { return Vec::new() };
        if self.0.iter().all(|(other, _)| other.numbers.is(&first.numbers)) {
            return first.times(x);
        }
        let mut groups: Vec<(&Matrix, Vec<usize>)> = Vec::new();
        let mut count = 0;
        for (matrix, rows) in &self.0 {
            let own = count..count + rows;
            match groups.iter_mut().find(|(other, _)| other.numbers.is(&matrix.numbers)) {
                Some((_, all)) => all.extend(own),
                None => groups.push((matrix, own.collect())),
            }
            count += rows;
        }
        let (input, out) = (first.input, first.rows());
        let mut y = vec![0.0; count * out];
        for (matrix, rows) in groups {
            let place = |row: &usize, width: usize| row * width..(row + 1) * width;
            let own = rows.iter().filter_map(|row| x.get(place(row, input)));
            let product = matrix.times(&own.flatten().copied().collect::<Vec<f32>>());
            for (row, product) in rows.iter().zip(product.chunks_exact(out.max(1))) {
                if let Some(to) = y.get_mut(place(row, out)) {
                    to.copy_from_slice(product);
                }
            }
        }
        y
    }
}

impl Shared<'_, Product> {
    /// `[rows, input]` to `[rows, out]`, the layers' outputs side by side.
    pub(super) fn product(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.part(|product| &product.weight).times(x);
        self.each(x, &mut y, Product::finish);
        y
    }
}
