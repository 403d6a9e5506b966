//! Batches of one device's windows: each epoch in a new seeded order, none left out.

use crate::rng::Stream;

/// Endless indices of `0..n` in batches; every index comes once before any comes again.
#[derive(Debug, Clone)]
pub struct Batches {
    stream: Stream,
    order: Vec<usize>,
    next: usize,
}

impl Batches {
    /// Batches over `0..n`, in an order that `stream` alone decides.
    pub fn new(n: usize, stream: Stream) -> Self {
        Self { stream, order: (0..n).collect(), next: n }
    }

    /// The next `size` indices; an epoch's end may lie inside. Empty when n is 0.
    pub fn next(&mut self, size: usize) -> Vec<usize> {
        let mut batch = Vec::with_capacity(size);
        while batch.len() < size && !self.order.is_empty() {
            if self.next >= self.order.len() {
                self.stream.shuffle(&mut self.order);
                self.next = 0;
            }
            batch.extend(self.order.get(self.next));
            self.next += 1;
        }
        batch
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
    fn no_data_gives_empty_batches() {
        assert!(Batches::new(0, Stream::new(1, "batch")).next(4).is_empty());
    }
}
