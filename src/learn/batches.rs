//! Batches of one device's examples: each pass in a new seeded order.
//!
//! Called by the learners, here and in `torch/`.

use super::TrainJob;
use crate::rng::Stream;

/// What becomes of the examples that are left at the end of a pass, too few for a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PassEnd {
    /// The next pass fills the batch up.
    #[default]
    FilledUp,
    /// They are a short batch: a pass is `n / size` steps, rounded up.
    Short,
    /// They are left out of this pass.
    LeftOut,
}

impl PassEnd {
    /// Short last batches where a job asks for whole passes, else what the learner does.
    pub fn of(job: &TrainJob, else_this: Self) -> Self {
        if job.epochs.is_some() { Self::Short } else { else_this }
    }
}

/// Endless indices of `0..n` in batches; none comes a second time in a pass.
#[derive(Debug, Clone)]
pub struct Batches {
    stream: Stream,
    order: Vec<usize>,
    next: usize,
    end: PassEnd,
}

impl Batches {
    /// Batches over `0..n`, in an order that `stream` alone decides; all of one size.
    pub fn new(n: usize, stream: Stream) -> Self {
        Self { stream, order: (0..n).collect(), next: n, end: PassEnd::default() }
    }

    /// The same with another end of each pass; the order stays the same.
    #[must_use]
    pub fn ending(self, end: PassEnd) -> Self {
        Self { end, ..self }
    }

    /// The next `size` indices, fewer only as the end of a pass has it. Empty when n is 0.
    pub fn next(&mut self, size: usize) -> Vec<usize> {
        match self.end {
            PassEnd::FilledUp => {
                let mut batch = Vec::with_capacity(size);
                while batch.len() < size && !self.order.is_empty() {
                    self.begin_where_fewer_are_left_than(1);
                    batch.extend(self.take(size - batch.len()));
                }
                batch
            }
            PassEnd::Short => {
                self.begin_where_fewer_are_left_than(1);
                self.take(size).to_vec()
            }
            PassEnd::LeftOut => {
                let size = size.min(self.order.len());
                self.begin_where_fewer_are_left_than(size);
                self.take(size).to_vec()
            }
        }
    }

    fn begin_where_fewer_are_left_than(&mut self, wanted: usize) {
        if self.order.len() - self.next < wanted {
            self.stream.shuffle(&mut self.order);
            self.next = 0;
        }
    }

    fn take(&mut self, most: usize) -> &[usize] {
        let from = self.next;
        self.next = from.saturating_add(most).min(self.order.len());
        self.order.get(from..self.next).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_comes_once_an_epoch() {
        let mut batches = Batches::new(7, Stream::new(1, "batch"));
        let mut seen: Vec<usize> = (0..3).flat_map(|_| batches.next(7)).collect();
        for epoch in seen.chunks_mut(7) {
            epoch.sort_unstable();
            assert_eq!(epoch, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn a_seed_gives_the_same_order_and_a_batch_may_be_larger_than_the_data() {
        let draw = |seed| Batches::new(3, Stream::new(seed, "batch")).next(20);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(1).len(), 20);
    }

    #[test]
    fn whole_passes_end_with_a_short_batch_and_take_each_index_once() {
        let mut batches = Batches::new(10, Stream::new(1, "batch")).ending(PassEnd::Short);
        for _ in 0..3 {
            let pass: Vec<Vec<usize>> = (0..3).map(|_| batches.next(4)).collect();
            assert_eq!(pass.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            let mut all = pass.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..10));
        }
        let mut one = Batches::new(3, Stream::new(1, "batch")).ending(PassEnd::Short);
        assert_eq!((one.next(20).len(), one.next(20).len()), (3, 3));
    }

    #[test]
    fn a_rest_can_be_left_out_and_the_order_is_the_same_in_each_way() {
        let all = |end| Batches::new(10, Stream::new(1, "batch")).ending(end);
        let [mut filled, mut short, mut left_out] =
            [PassEnd::FilledUp, PassEnd::Short, PassEnd::LeftOut].map(all);
        for _ in 0..2 {
            let batch = filled.next(4);
            assert_eq!((short.next(4), left_out.next(4)), (batch.clone(), batch));
        }
        assert_eq!((filled.next(4).len(), short.next(4).len(), left_out.next(4).len()), (4, 2, 4));
        assert_eq!(all(PassEnd::LeftOut).next(20).len(), 10);
    }

    #[test]
    fn no_data_gives_empty_batches() {
        for end in [PassEnd::FilledUp, PassEnd::Short, PassEnd::LeftOut] {
            let mut none = Batches::new(0, Stream::new(1, "batch")).ending(end);
            assert!(none.next(4).is_empty() && none.next(4).is_empty());
        }
    }
}
