//! What an inferencer counts of a version that is rolled out, while an assignment says so.
//!
//! Windows of the plant's tags count, those of requests don't: whoever may ask could ask a version through its
//! gate. A label that comes later, by its time, counts as one that came with the window. The other version answers some of the same windows on the serving lane, a batch at a time, between two
//! answers; what it says is compared and judged, and goes nowhere else:
//! - in the shadow the candidate answers beside the version in use, each window;
//! - where the candidate is in use, the version before answers windows with a label, so that both are judged by the
//!   same inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::learn::{LearnError, Prediction, TensorSet, sound};
use crate::protocol::Watch;
use crate::wire::Tally;

/// See the module.
#[derive(Debug)]
pub(super) struct Attending {
    watch: Watch,
    beside: Option<Arc<TensorSet>>,
    tally: Tally,
    /// What was told of it last.
    told: Tally,
    /// Windows that wait for the other version's answer.
    batch: Vec<Waiting>,
    /// Windows of answers that may get a label later, by the number of the answer.
    late: BTreeMap<u64, Waiting>,
    /// A batch is with the lane.
    asked: bool,
}

/// A window with what is known of it.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) window: Vec<f32>,
    /// The class that the version in use gave, if it gave one.
    pub(super) class: Option<usize>,
    /// The class that the label names.
    pub(super) truth: Option<usize>,
    /// The label came later: all else of it was counted before.
    late: bool,
}

/// A batch for the lane.
pub(super) struct Batch {
    /// The assignment that it is for.
    pub(super) serial: u64,
    pub(super) adapter: Arc<TensorSet>,
    pub(super) x: Vec<f32>,
    /// The windows without their samples.
    pub(super) waiting: Vec<Waiting>,
}

impl Attending {
    /// Windows that the other version answers at a time: this is how long an answer may have to wait.
    const BATCH: usize = 16;
    /// Windows that may wait; of more some aren't compared.
    const MAX_WAITING: usize = 256;
    /// Windows that are kept for a label; of more the oldest aren't judged.
    const MAX_LATE: usize = 256;

    /// Counts for another assignment, or goes on for the same one.
    pub(super) fn attend(
        before: Option<Self>,
        watch: Watch,
        beside: Option<Arc<TensorSet>>,
    ) -> Self {
        match before {
            Some(before) if before.watch.serial == watch.serial => Self { watch, beside, ..before },
            _ => {
                let (tally, told) = (Tally::default(), Tally::default());
                let (batch, late) = (Vec::new(), BTreeMap::new());
                Self { watch, beside, tally, told, batch, late, asked: false }
            }
        }
    }

    /// The version in use answered a window of a tag (with the class that it gave, if it is one), so many milliseconds
    /// after it came.
    pub(super) fn answered(
        &mut self,
        version: u64,
        window: Option<Vec<f32>>,
        class: Option<usize>,
        truth: Option<usize>,
        latency_ms: f64,
    ) {
        let Watch { candidate, shadow, slow_ms, .. } = self.watch;
        if shadow == (version == candidate) {
            return; // on its way to another version
        }
        if !shadow {
            self.tally.answers += 1;
            self.tally.errors += u64::from(class.is_none());
            #[expect(clippy::cast_precision_loss, reason = "milliseconds are few")]
            let late = slow_ms > 0 && latency_ms > slow_ms as f64;
            self.tally.slow += u64::from(late);
            judge(class, truth, &mut self.tally.judged, &mut self.tally.wrong);
        }
        let wanted = self.beside.is_some() && (shadow || truth.is_some());
        if let Some(window) = window.filter(|_| wanted)
            && self.batch.len() < Self::MAX_WAITING
        {
            self.batch.push(Waiting { window, class, truth, late: false });
        }
    }

    /// The inputs of this node were looked at: so far are they off.
    pub(super) fn drifted(&mut self, distance: f64) {
        // 0 says that nobody has looked.
        self.tally.drift = self.tally.drift.max(distance).max(f64::MIN_POSITIVE);
    }

    /// A label may come for this answer of the version in use to a window of a tag.
    pub(super) fn may_be_labelled(
        &mut self,
        number: u64,
        version: u64,
        window: Vec<f32>,
        class: Option<usize>,
    ) {
        if self.watch.shadow == (version == self.watch.candidate) {
            return; // on its way to another version
        }
        self.late.insert(number, Waiting { window, class, truth: None, late: true });
        if self.late.len() > Self::MAX_LATE {
            self.late.pop_first();
        }
    }

    /// The label of an answer has come: both versions are judged by it.
    pub(super) fn labelled(&mut self, number: u64, truth: usize) {
        let Some(mut waiting) = self.late.remove(&number) else { return };
        waiting.truth = Some(truth);
        if !self.watch.shadow {
            let tally = &mut self.tally;
            judge(waiting.class, waiting.truth, &mut tally.judged, &mut tally.wrong);
        }
        if self.beside.is_some() && self.batch.len() < Self::MAX_WAITING {
            self.batch.push(waiting);
        }
    }

    /// The next batch, if the lane is free for one; `all` also if it isn't full.
    pub(super) fn batch(&mut self, all: bool) -> Option<Batch> {
        let enough = self.batch.len() >= Self::BATCH || (all && !self.batch.is_empty());
        if self.asked || !enough {
            return None;
        }
        let adapter = Arc::clone(self.beside.as_ref()?);
        let mut waiting: Vec<Waiting> =
            self.batch.drain(..self.batch.len().min(Self::BATCH)).collect();
        let x = waiting.iter_mut().flat_map(|one| std::mem::take(&mut one.window)).collect();
        self.asked = true;
        Some(Batch { serial: self.watch.serial, adapter, x, waiting })
    }

    /// The lane had no room: these windows aren't compared.
    pub(super) fn not_taken(&mut self) {
        self.asked = false;
    }

    /// The other version has answered.
    pub(super) fn compared(
        &mut self,
        serial: u64,
        waiting: &[Waiting],
        result: Result<Vec<Prediction>, LearnError>,
    ) {
        if serial != self.watch.serial {
            return;
        }
        self.asked = false;
        let mut answers = result.unwrap_or_default().into_iter();
        for Waiting { class, truth, late, .. } in waiting {
            let other = answers.next().and_then(|answer| sound(answer).ok());
            let other = other.map(|answer| answer.class);
            let tally = &mut self.tally;
            if !self.watch.shadow {
                judge(other, *truth, &mut tally.base_judged, &mut tally.base_wrong);
                continue;
            }
            if !late {
                tally.answers += 1;
                tally.errors += u64::from(other.is_none());
                if let (Some(class), Some(other)) = (class, other) {
                    tally.compared += 1;
                    tally.disagreed += u64::from(*class != other);
                }
            }
            judge(other, *truth, &mut tally.judged, &mut tally.wrong);
            judge(*class, *truth, &mut tally.base_judged, &mut tally.base_wrong);
        }
    }

    /// What was counted, if it is news.
    pub(super) fn news(&mut self) -> Option<(u64, Tally)> {
        (self.tally != self.told).then(|| {
            self.told = self.tally;
            (self.watch.serial, self.tally)
        })
    }
}

/// No answer is wrong too, where the truth is known.
fn judge(class: Option<usize>, truth: Option<usize>, judged: &mut u64, wrong: &mut u64) {
    if let Some(truth) = truth {
        *judged += 1;
        *wrong += u64::from(class != Some(truth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::Tensor;

    fn adapter() -> Arc<TensorSet> {
        let tensor = Tensor { name: "w".into(), shape: vec![1], data: vec![1.0] };
        Arc::new(TensorSet::new(vec![tensor]).unwrap())
    }

    fn watch(serial: u64, shadow: bool) -> Watch {
        Watch { serial, candidate: 5, shadow, beside: None, slow_ms: 100 }
    }

    fn says(class: usize) -> Prediction {
        let mut probabilities = vec![0.1; 2];
        probabilities[class] = 0.9;
        Prediction { probabilities, class }
    }

    #[test]
    fn in_the_shadow_the_candidate_answers_beside_the_version_in_use_and_only_that_counts() {
        let mut attending = Attending::attend(None, watch(1, true), Some(adapter()));
        for i in 0..20 {
            attending.answered(4, Some(vec![0.0]), Some(0), Some(i % 2), 1e6);
        }
        let batch = attending.batch(false).unwrap();
        assert_eq!((batch.x.len(), batch.waiting.len()), (16, 16));
        assert!(attending.batch(true).is_none(), "one at a time");
        let mut answers = vec![says(0); 15];
        answers.push(Prediction { probabilities: vec![f32::NAN; 2], class: 0 });
        attending.compared(1, &batch.waiting, Ok(answers));
        let (serial, tally) = attending.news().unwrap();
        let wanted = Tally {
            answers: 16,
            errors: 1,
            judged: 16,
            wrong: 8,
            base_judged: 16,
            base_wrong: 8,
            compared: 15,
            ..Tally::default()
        };
        assert_eq!((serial, tally), (1, wanted));
        assert!(tally.makes_sense() && attending.news().is_none());
        let rest = attending.batch(true).unwrap();
        attending.compared(1, &rest.waiting, Ok(vec![says(1); 4]));
        assert_eq!(attending.news().unwrap().1.disagreed, 4);
    }

    #[test]
    fn where_it_is_in_use_its_answers_count_and_the_version_before_is_judged_by_the_same_labels() {
        let mut attending = Attending::attend(None, watch(1, false), Some(adapter()));
        attending.answered(4, Some(vec![0.0]), Some(0), Some(1), 1.0); // not yet
        attending.answered(5, Some(vec![0.0]), Some(0), None, 200.0);
        attending.answered(5, Some(vec![0.0]), Some(1), Some(1), 1.0);
        attending.answered(5, Some(vec![0.0]), None, Some(1), 1.0);
        let batch = attending.batch(true).unwrap();
        assert_eq!(batch.waiting.len(), 2, "those with a label");
        attending.compared(1, &batch.waiting, Ok(vec![says(0), says(1)]));
        let wanted = Tally {
            answers: 3,
            errors: 1,
            slow: 1,
            judged: 2,
            wrong: 1,
            base_judged: 2,
            base_wrong: 1,
            ..Tally::default()
        };
        assert_eq!(attending.news(), Some((1, wanted)));
    }

    #[test]
    fn a_label_that_comes_later_judges_both_versions_once_and_nothing_else_of_it_counts_again() {
        for shadow in [true, false] {
            let mut attending = Attending::attend(None, watch(1, shadow), Some(adapter()));
            let served = if shadow { 4 } else { 5 };
            for number in 0..3 {
                attending.answered(served, Some(vec![0.0]), Some(0), None, 1.0);
                attending.may_be_labelled(number, served, vec![0.0], Some(0));
            }
            attending.may_be_labelled(9, 9 - served, vec![0.0], Some(0)); // of the other version
            if let Some(batch) = attending.batch(true) {
                attending.compared(1, &batch.waiting, Ok(vec![says(1); 3]));
            }
            let before = attending.tally;
            assert_eq!((before.answers, before.judged, before.base_judged), (3, 0, 0));
            for number in [1, 1, 9, 77] {
                attending.labelled(number, 1);
            }
            let batch = attending.batch(true).unwrap();
            assert_eq!(batch.waiting.len(), 1);
            attending.compared(1, &batch.waiting, Ok(vec![says(1)]));
            let (wrong, base_wrong) = if shadow { (0, 1) } else { (1, 0) };
            let wanted = Tally { judged: 1, wrong, base_judged: 1, base_wrong, ..before };
            assert_eq!(attending.tally, wanted);
        }
        let mut attending = Attending::attend(None, watch(1, true), Some(adapter()));
        (0..1_000).for_each(|number| attending.may_be_labelled(number, 4, vec![0.0], None));
        assert_eq!(attending.late.len(), Attending::MAX_LATE);
    }

    #[test]
    fn another_assignment_begins_at_nothing_and_what_is_late_counts_nowhere() {
        let mut attending = Attending::attend(None, watch(1, true), Some(adapter()));
        attending.answered(4, Some(vec![0.0]), Some(0), None, 1.0);
        let batch = attending.batch(true).unwrap();
        let mut attending = Attending::attend(Some(attending), watch(2, false), None);
        attending.compared(1, &batch.waiting, Ok(vec![says(0)]));
        assert!(attending.news().is_none());
        attending.answered(5, Some(vec![0.0]), Some(0), Some(0), 1.0);
        assert!(attending.batch(true).is_none(), "the version before isn't here");
        let attending = Attending::attend(Some(attending), watch(2, false), Some(adapter()));
        assert_eq!(attending.tally.answers, 1, "the same one goes on");
    }
}
