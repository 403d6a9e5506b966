//! Measures what the confidence of a newly served version is worth, on examples that nobody trained on.
//!
//! The examples go through the lane that serves in small batches, between the plant's requests, so that
//! answers stay quick meanwhile. A version that comes in between makes the run void: batches are told
//! apart by its number.

use std::sync::Arc;

use crate::ids::{Digest, Version};
use crate::learn::{LEAST_HELD_OUT, LearnError, Prediction, Windows, calibrate};
use crate::protocol::cascade::Calibrated;
use crate::time::Mono;

/// What a version is measured on, and how good its answers have to be.
#[derive(Debug, Clone)]
pub struct Measure {
    /// Windows with their labels; none of them was trained on.
    pub held_out: Arc<Windows>,
    /// Rate of wrong answers that is allowed.
    pub alpha: f64,
    /// Probability that the examples mislead.
    pub delta: f64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Measuring {
    measure: Measure,
    /// Rows of the examples that are used, a bounded number.
    rows: Vec<usize>,
    run: Option<Run>,
    runs: u64,
}

/// One version under the examples.
#[derive(Debug)]
struct Run {
    version: Version,
    adapter: Digest,
    /// Probabilities of the rows that were answered, laid end to end.
    probabilities: Vec<f32>,
    answered: usize,
    asked_at: Option<Mono>,
}

/// Windows for the lane.
#[derive(Debug, PartialEq)]
pub(super) struct Batch {
    /// The run that they belong to, and the place of the first in it.
    pub run: (u64, usize),
    /// `[n, len]` row-major.
    pub x: Vec<f32>,
    /// Samples a window.
    pub len: usize,
}

impl Measuring {
    /// Windows a batch: a request waits for no more than these.
    const BATCH: usize = 8;
    /// Examples that are used; of more, so many at equal distances.
    const MOST: usize = 4_096;
    /// A batch without an answer is asked again after this long.
    const AGAIN_MS: u64 = 60_000;

    pub(super) fn new(measure: Measure) -> Self {
        let all = measure.held_out.num_examples();
        let used = all.min(Self::MOST);
        let rows = (0..used).map(|i| i * all / used.max(1)).collect();
        Self { measure, rows, run: None, runs: 0 }
    }

    /// Whether this is what a new measurement of the version would begin with.
    pub(super) fn is_of(&self, known: &Calibrated, version: Version, adapter: &Digest) -> bool {
        let same = |a: f64, b: f64| (a - b).abs() < f64::EPSILON;
        known.version == version
            && known.adapter == *adapter
            && same(known.alpha, self.measure.alpha)
            && same(known.delta, self.measure.delta)
            && known.calibration.held_out == self.rows.len() as u64
    }

    /// Begins with a version; what was under way is void.
    pub(super) fn begin(&mut self, version: Version, adapter: Digest) {
        self.runs += 1;
        self.run = None;
        let (found, needed) = (self.rows.len(), LEAST_HELD_OUT);
        if found < needed {
            tracing::warn!(
                version,
                found,
                needed,
                "too few held-out examples to tell how often answers are wrong: no threshold for this \
                 version (raise cascade.holdout, or bring more data)"
            );
            return;
        }
        let (probabilities, answered, asked_at) = (Vec::new(), 0, None);
        self.run = Some(Run { version, adapter, probabilities, answered, asked_at });
    }

    /// The next batch, if one is due.
    pub(super) fn next(&mut self, now: Mono) -> Option<Batch> {
        let run = self.run.as_mut()?;
        let waits = |at: Mono| now.0.saturating_sub(at.0) < Self::AGAIN_MS;
        if run.asked_at.is_some_and(waits) {
            return None;
        }
        run.asked_at = Some(now);
        let rows = self.rows.iter().skip(run.answered).take(Self::BATCH);
        let windows = &self.measure.held_out;
        let x = rows.filter_map(|row| windows.row(*row)).flatten().copied().collect();
        Some(Batch { run: (self.runs, run.answered), x, len: windows.len })
    }

    /// The lane didn't take the batch: it is due again.
    pub(super) fn not_taken(&mut self) {
        if let Some(run) = &mut self.run {
            run.asked_at = None;
        }
    }

    /// A batch was answered: the version's measure when it was the last.
    ///
    /// # Errors
    /// [`LearnError`]; the run has ended then.
    pub(super) fn answered(
        &mut self,
        (run, from): (u64, usize),
        result: Result<Vec<Prediction>, LearnError>,
    ) -> Result<Option<Calibrated>, LearnError> {
        // A batch that was asked twice may be answered twice.
        let due = run == self.runs && self.run.as_ref().is_some_and(|run| run.answered == from);
        let Some(mut run) = self.run.take_if(|_| due) else { return Ok(None) };
        let predictions = result?;
        run.answered += predictions.len();
        run.asked_at = None;
        run.probabilities.extend(predictions.into_iter().flat_map(|p| p.probabilities));
        if run.answered < self.rows.len() {
            self.run = Some(run);
            return Ok(None);
        }
        let Measure { held_out, alpha, delta } = &self.measure;
        let label = |row: &usize| held_out.labels.get(*row).copied().unwrap_or(usize::MAX);
        let labels: Vec<usize> = self.rows.iter().map(label).collect();
        let calibration = calibrate(&run.probabilities, &labels, held_out.classes, *alpha, *delta)?;
        let Run { version, adapter, .. } = run;
        Ok(Some(Calibrated { version, adapter, alpha: *alpha, delta: *delta, calibration }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measuring(n: usize) -> Measuring {
        let x = (0..n).map(|i| if i % 2 == 0 { 0.0 } else { 1.0 }).collect();
        let labels = (0..n).map(|i| i % 2).collect();
        let held_out = Arc::new(Windows { x, len: 1, labels, classes: 2 });
        Measuring::new(Measure { held_out, alpha: 0.05, delta: 0.05 })
    }

    fn right(batch: &Batch) -> Vec<Prediction> {
        let one = |x: &f32| Prediction::of_logits(&[2.0 - 4.0 * x, 0.0]);
        batch.x.iter().map(one).collect()
    }

    fn play(measuring: &mut Measuring) -> Option<Calibrated> {
        while let Some(batch) = measuring.next(Mono(0)) {
            assert!(batch.x.len() <= Measuring::BATCH);
            let answers = right(&batch);
            if let Some(known) = measuring.answered(batch.run, Ok(answers)).unwrap() {
                return Some(known);
            }
        }
        None
    }

    #[test]
    fn a_version_is_measured_on_all_examples_in_small_batches() {
        let mut measuring = measuring(203);
        measuring.begin(4, Digest([4; 32]));
        let known = play(&mut measuring).unwrap();
        assert_eq!((known.version, known.calibration.held_out), (4, 203));
        assert!(known.calibration.threshold.is_some_and(|t| t.bound <= 0.05));
        assert!(measuring.is_of(&known, 4, &Digest([4; 32])));
        assert!(!measuring.is_of(&known, 5, &Digest([4; 32])));
        assert!(!measuring.is_of(&known, 4, &Digest([5; 32])), "another adapter of that number");
        assert_eq!(measuring.next(Mono(0)), None);
    }

    #[test]
    fn a_version_in_between_makes_the_run_void() {
        let mut measuring = measuring(200);
        measuring.begin(4, Digest([4; 32]));
        let old = measuring.next(Mono(0)).unwrap();
        measuring.begin(5, Digest([5; 32]));
        let answers = right(&old);
        assert_eq!(measuring.answered(old.run, Ok(answers)), Ok(None));
        assert_eq!(play(&mut measuring).unwrap().version, 5);
    }

    #[test]
    fn one_batch_is_under_way_and_a_lost_one_comes_again() {
        let mut measuring = measuring(200);
        measuring.begin(4, Digest([4; 32]));
        let first = measuring.next(Mono(0)).unwrap();
        assert_eq!(measuring.next(Mono(59_999)), None);
        assert_eq!(measuring.next(Mono(60_000)), Some(first));
        measuring.not_taken();
        let again = measuring.next(Mono(60_001)).unwrap();
        // Both answers come: the second would stand beside the labels of the rows behind it.
        assert_eq!(measuring.answered(again.run, Ok(right(&again))), Ok(None));
        assert_eq!(measuring.answered(again.run, Ok(right(&again))), Ok(None));
        let next = measuring.next(Mono(60_002)).unwrap();
        assert_eq!(next.run.1, Measuring::BATCH, "the second one counted for nothing");
    }

    #[test]
    fn too_few_examples_and_a_broken_model_give_no_measure() {
        let mut few = measuring(99);
        few.begin(1, Digest([1; 32]));
        assert_eq!(few.next(Mono(0)), None);
        let mut broken = measuring(200);
        broken.begin(1, Digest([1; 32]));
        let batch = broken.next(Mono(0)).unwrap();
        assert!(broken.answered(batch.run, Err(LearnError::NoUpdates)).is_err());
        assert_eq!(broken.next(Mono(0)), None);
    }

    #[test]
    fn of_very_many_examples_a_bounded_number_is_used() {
        let many = measuring(100_000);
        assert_eq!(many.rows.len(), Measuring::MOST);
        assert!(many.rows.windows(2).all(|two| two[0] < two[1]));
    }
}
