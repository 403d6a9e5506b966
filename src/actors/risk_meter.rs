//! Measures on a device what an attacker would find out about its examples from what it has just learned.
//!
//! It stands around a learner: a part of the device's examples is kept back and never learned from, and after
//! each run both parts are attacked. By **confidence**: the trained model is surer of what it was trained on.
//! By **nearness**, where class means were asked for: an example lies nearer to a mean that it is part of. What
//! the better attack reaches goes into the figures, and from there onto `kpi`, which stays in the site.
//!
//! The model is attacked as it was trained: what compression takes away makes it no easier, and where a round
//! asks for less than the adapter the figure is an upper bound. It is one number over at least
//! [`RiskMeter::LEAST`] examples of each kind, in hundredths, and tells of no single one: the area under the curve goes along with
//! the contribution, so that a version's gate may ask for it. It costs an answer
//! for each example a round, and the examples that are kept back. A low figure is no proof.

use std::sync::Arc;

use super::figures::Figures;
use crate::ids::Digest;
use crate::learn::{
    Control, Examples, LearnError, Learner, Prediction, Predictor, Progress, TensorSet, TrainJob,
    Trained, Windows,
};
use crate::privacy::{Gate, Membership};

/// See the module.
pub struct RiskMeter {
    learner: Box<dyn Learner>,
    predictor: Box<dyn Predictor>,
    held_out: Windows,
    gate: Gate,
    figures: Arc<Figures>,
}

impl RiskMeter {
    /// Fewest examples on each side: of fewer a rate would tell of single ones.
    pub const LEAST: usize = 20;
    /// One example in about so many is kept back.
    pub(crate) const KEPT_ONE_IN: u16 = 5;
    /// Windows that are answered at once.
    const BATCH: usize = 64;

    /// A meter around a learner, and what is left to learn from. `predictor` is of the same model.
    ///
    /// # Determinism
    /// An example is kept back or not by its own bytes, whatever stands beside it: it must never have been
    /// learned from.
    pub fn new(
        learner: Box<dyn Learner>,
        predictor: Box<dyn Predictor>,
        windows: &Windows,
        gate: Gate,
        figures: Arc<Figures>,
    ) -> (Self, Windows) {
        let (learned, held_out) = keep_back(windows);
        (Self { learner, predictor, held_out, gate, figures }, learned)
    }

    /// What the better of the attacks reaches; nothing of too few examples.
    fn measure(
        &mut self,
        learned: &Windows,
        trained: &Trained,
    ) -> Result<Option<Membership>, LearnError> {
        if learned.labels.len().min(self.held_out.labels.len()) < Self::LEAST {
            return Ok(None);
        }
        self.predictor.load(&trained.adapter)?;
        let inside = answers(self.predictor.as_mut(), learned)?;
        let outside = answers(self.predictor.as_mut(), &self.held_out)?;
        let sides = [(&inside, learned), (&outside, &self.held_out)];
        let [members, others] = sides.map(|(answers, data)| confidences(answers, &data.labels));
        let by_confidence = Membership::of(&members, &others);
        let mut means = trained.class_logits.clone();
        means.suppress(self.gate.min_cell);
        let classes = learned.classes;
        let [members, others] = sides.map(|(answers, data)| {
            let logits = answers.iter().map(|answer| centred_log(&answer.probabilities));
            let near = logits.zip(&data.labels).filter_map(|(logits, label)| {
                let spoken = means.counts.get(*label).is_some_and(|count| *count > 0);
                let mean = means.mean_logits.chunks(classes).nth(*label).filter(|_| spoken)?;
                Some(-squared_distance(&logits, &centred(mean)))
            });
            near.collect::<Vec<f64>>()
        });
        let enough = members.len().min(others.len()) >= Self::LEAST;
        let by_nearness = enough.then(|| Membership::of(&members, &others)).flatten();
        let found = [by_confidence, by_nearness].into_iter().flatten();
        Ok(found.reduce(worse).map(in_hundredths))
    }
}

impl Learner for RiskMeter {
    fn initial_adapter(&self) -> TensorSet {
        self.learner.initial_adapter()
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let mut trained = self.learner.train(data, job, progress)?;
        match data.windows().and_then(|learned| self.measure(learned, &trained)) {
            Ok(risk) => {
                #[expect(clippy::cast_possible_truncation, reason = "in hundredths")]
                let auc = risk.map(|risk| risk.auc as f32);
                trained.risk = auc;
                self.figures.update(|view| view.privacy_risk = risk);
            }
            Err(error) => {
                tracing::warn!(%error, "the privacy risk of this round can't be measured");
                self.figures.count(error.kind());
                self.figures.update(|view| view.privacy_risk = None);
            }
        }
        Ok(trained)
    }
}

/// What is learned from, and what is kept back: drawn by each example's bytes, so that both are of one kind.
fn keep_back(windows: &Windows) -> (Windows, Windows) {
    let none = || Windows { len: windows.len, classes: windows.classes, ..Windows::default() };
    let (mut learned, mut kept) = (none(), none());
    for (at, label) in windows.labels.iter().enumerate() {
        let row = windows.row(at).unwrap_or_default();
        let bytes: Vec<u8> = row.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        let [first, second, ..] = Digest::of(&bytes).0;
        let draw = u16::from_le_bytes([first, second]);
        let to = if draw % RiskMeter::KEPT_ONE_IN == 0 { &mut kept } else { &mut learned };
        to.x.extend_from_slice(row);
        to.labels.push(*label);
    }
    (learned, kept)
}

fn answers(predictor: &mut dyn Predictor, data: &Windows) -> Result<Vec<Prediction>, LearnError> {
    let mut out = Vec::with_capacity(data.labels.len());
    for batch in data.x.chunks(data.len.saturating_mul(RiskMeter::BATCH).max(1)) {
        out.extend(predictor.predict(batch, data.len)?);
    }
    Ok(out)
}

/// Probability of each example's own class.
fn confidences(answers: &[Prediction], labels: &[usize]) -> Vec<f64> {
    let own = |(answer, label): (&Prediction, &usize)| {
        answer.probabilities.get(*label).map(|p| f64::from(*p))
    };
    answers.iter().zip(labels).filter_map(own).collect()
}

/// Logits up to what they have in common, from probabilities.
fn centred_log(probabilities: &[f32]) -> Vec<f64> {
    const LEAST: f64 = 1e-30;
    shifted(probabilities.iter().map(|p| f64::from(*p).max(LEAST).ln()).collect())
}

fn centred(logits: &[f32]) -> Vec<f64> {
    shifted(logits.iter().map(|z| f64::from(*z)).collect())
}

#[expect(clippy::cast_precision_loss, reason = "a number of classes")]
fn shifted(mut logits: Vec<f64>) -> Vec<f64> {
    let mean = logits.iter().sum::<f64>() / logits.len().max(1) as f64;
    for z in &mut logits {
        *z -= mean;
    }
    logits
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

fn worse(a: Membership, b: Membership) -> Membership {
    Membership {
        auc: a.auc.max(b.auc),
        tpr_at_1_percent: a.tpr_at_1_percent.max(b.tpr_at_1_percent),
    }
}

fn in_hundredths(Membership { auc, tpr_at_1_percent }: Membership) -> Membership {
    let rounded = |x: f64| (x * 100.0).round() / 100.0;
    Membership { auc: rounded(auc), tpr_at_1_percent: rounded(tpr_at_1_percent) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::{MachineSpeeds, SoftmaxLearner, SoftmaxPredictor, physics};
    use crate::privacy::Profile;
    use crate::rng::Stream;

    /// What a device's figures say after a round on `n` windows of `classes` classes.
    fn risk(n: usize, classes: usize, steps: u32, profile: Profile) -> Option<Membership> {
        let mut data = physics::windows(&mut Stream::new(21, "plant"), n);
        if classes != data.classes {
            data.labels = (0..n).map(|at| at % classes).collect();
            data.classes = classes;
        }
        let (speeds, len) = (MachineSpeeds::default(), physics::WINDOW_LEN);
        let learner = SoftmaxLearner::new(speeds, len, classes).unwrap();
        let predictor = SoftmaxPredictor::new(speeds, len, classes).unwrap();
        let figures = Arc::new(Figures::default());
        let (learner, predictor) = (Box::new(learner), Box::new(predictor));
        let gate = Gate::from(profile);
        let (mut meter, learned) =
            RiskMeter::new(learner, predictor, &data, gate, Arc::clone(&figures));
        assert_eq!(learned.labels.len() + meter.held_out.labels.len(), n);
        let job = TrainJob {
            class_logits: true,
            ..TrainJob::plain(meter.initial_adapter(), steps, 16, 0.1, 3)
        };
        meter.train(&learned.into(), &job, &mut |_| Control::Continue).unwrap();
        figures.view().privacy_risk
    }

    #[test]
    fn without_protection_the_figure_shows_the_leak_and_with_the_standard_profile_it_does_not() {
        // Few examples, learned by heart, and hardly more than one in a cell.
        let open = risk(150, 60, 2_000, Profile::Lab).unwrap();
        let standard = Gate::from(Profile::Standard);
        let n = usize::try_from(standard.min_examples).unwrap() * 5 / 2;
        let kept = risk(n, physics::CLASSES.len(), standard.min_steps, Profile::Standard).unwrap();
        eprintln!("without protection {open:?}, standard {kept:?}");
        assert!(open.auc > 0.8 && open.tpr_at_1_percent > 0.2, "{open:?}");
        assert!(kept.auc < 0.65 && kept.tpr_at_1_percent < 0.15, "{kept:?}");
    }

    #[test]
    fn of_few_examples_nothing_is_said() {
        assert_eq!(risk(2 * RiskMeter::LEAST, 3, 16, Profile::Lab), None);
        assert!(risk(10 * RiskMeter::LEAST, 3, 16, Profile::Lab).is_some());
    }

    #[test]
    fn what_is_kept_back_stays_so_whatever_is_added_and_is_no_part_of_what_is_learned() {
        let data = physics::windows(&mut Stream::new(21, "plant"), 200);
        let (learned, kept) = keep_back(&data);
        assert_eq!(learned.labels.len() + kept.labels.len(), 200);
        assert!((20..=60).contains(&kept.labels.len()), "{} of 200", kept.labels.len());
        let rows = |of: &Windows| -> Vec<Vec<u32>> {
            let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect();
            of.x.chunks(of.len).map(bits).collect()
        };
        assert!(rows(&kept).iter().all(|row| !rows(&learned).contains(row)));
        let mut fewer = data;
        fewer.labels.truncate(90);
        fewer.x.truncate(90 * fewer.len);
        let kept_of_fewer = keep_back(&fewer).1;
        assert_eq!(rows(&kept)[..kept_of_fewer.labels.len()], rows(&kept_of_fewer)[..]);
    }

    #[test]
    fn figures_are_whole_hundredths() {
        let fine = Membership { auc: 0.537_4, tpr_at_1_percent: 0.018_6 };
        assert_eq!(in_hundredths(fine), Membership { auc: 0.54, tpr_at_1_percent: 0.02 });
    }
}
