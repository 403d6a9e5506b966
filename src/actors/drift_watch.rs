//! Watches whether what a version is asked on tags, or how sure it is, changes while it answers.
//!
//! What a version sees first is what it is held against, so another version begins anew, and so does a start of the node. A
//! version's drift is told once: what is to be done about it is the next round. Windows of requests don't count: whoever may
//! ask could have a round opened.

use super::figures::Figures;
use crate::ids::Name;
use crate::learn::{
    ConfidenceDrift, DriftConfig, InputDrift, InputLook, Prediction, window_features,
};
use crate::scada::telegram::{Event, EventKind, Severity};
use crate::time::Wall;

/// See the module.
#[derive(Debug)]
pub(super) struct DriftWatch {
    config: DriftConfig,
    model: Name,
    inputs: InputDrift,
    confidence: ConfidenceDrift,
    /// Windows and answers that came since one was looked at.
    passed: (u32, u32),
    /// How far the inputs were off at the last window, where that was looked at.
    looked: Option<f64>,
    told: bool,
}

impl DriftWatch {
    pub(super) fn new(config: DriftConfig, model: Name) -> Self {
        let (inputs, confidence) = (InputDrift::new(config), ConfidenceDrift::new(config.alpha));
        Self { config, model, inputs, confidence, passed: (0, 0), looked: None, told: false }
    }

    /// Another version answers.
    pub(super) fn begin_anew(&mut self, figures: &Figures) {
        *self = Self::new(self.config, self.model.clone());
        figures.update(|view| view.input_drift = None);
    }

    /// A window of a tag is to be answered. Gives what to tell, where that is a drift.
    pub(super) fn asked(&mut self, window: &[f32], now: Wall, figures: &Figures) -> Option<Event> {
        self.looked = None;
        if !due(&mut self.passed.0, self.config.every) {
            return None;
        }
        let look = self.inputs.see(window_features(window))?;
        figures.update(|view| view.input_drift = Some((look.distance, look.p_value)));
        let InputLook { distance, feature, p_value, drifted } = look;
        self.looked = Some(distance);
        let message = format!(
            "inputs have drifted: {feature} is distributed otherwise than when this version began (distance \
             {distance:.2}, p {p_value:.1e})"
        );
        if drifted { self.tell(message, now, figures) } else { None }
    }

    /// How far the inputs are off, if the last window was looked at: 0 to 1.
    pub(super) fn looked(&self) -> Option<f64> {
        self.looked
    }

    /// A window of a tag was answered.
    pub(super) fn answered(
        &mut self,
        prediction: &Prediction,
        now: Wall,
        figures: &Figures,
    ) -> Option<Event> {
        if !due(&mut self.passed.1, self.config.every) {
            return None;
        }
        let confidence = prediction.probabilities.get(prediction.class)?;
        let change = self.confidence.see(f64::from(*confidence))?;
        let message = format!("the mean confidence of answers changed by {change:+.2}");
        self.tell(message, now, figures)
    }

    fn tell(&mut self, message: String, now: Wall, figures: &Figures) -> Option<Event> {
        if std::mem::replace(&mut self.told, true) {
            return None;
        }
        figures.update(|view| view.drifts += 1);
        let subject = Some(self.model.to_string());
        let (kind, severity) = (EventKind::Drift, Severity::Warning);
        Some(Event { kind, severity, message, subject, node: None, ts: now })
    }
}

/// Whether the next one in so many is to be looked at.
fn due(passed: &mut u32, every: u32) -> bool {
    *passed += 1;
    let due = *passed >= every;
    if due {
        *passed = 0;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: DriftConfig = DriftConfig { reference: 40, recent: 20, every: 2, alpha: 0.001 };

    fn watch() -> DriftWatch {
        DriftWatch::new(CONFIG, Name::new("bearing").unwrap())
    }

    #[test]
    fn a_version_whose_inputs_move_is_told_once_and_the_next_one_begins_anew() {
        let (mut watch, figures) = (watch(), Figures::default());
        let mut told = 0;
        let mut sees = |watch: &mut DriftWatch, windows: u16, shift: f32| {
            for at in 0..windows {
                let x = f32::from(at % 17) / 17.0 + shift;
                told += usize::from(watch.asked(&[x, -x], Wall(5), &figures).is_some());
            }
            told
        };
        assert_eq!(sees(&mut watch, 119, 0.0), 0);
        assert_eq!(figures.view().input_drift, None, "one in two is looked at");
        assert_eq!(sees(&mut watch, 121, 0.0), 0);
        assert!(figures.view().input_drift.unwrap().0 < 0.3);
        assert_eq!(sees(&mut watch, 120, 3.0), 1, "told once");
        assert_eq!((figures.view().input_drift.unwrap().0, figures.view().drifts), (1.0, 1));
        watch.begin_anew(&figures);
        assert_eq!(sees(&mut watch, 300, 3.0), 1, "that is what it is used to");
        assert_eq!(sees(&mut watch, 300, 0.0), 2);
    }

    #[test]
    fn a_fall_of_confidence_is_told_with_its_size() {
        let (mut watch, figures) = (watch(), Figures::default());
        let sure = |watch: &mut DriftWatch, sure: f32| {
            let says = Prediction { probabilities: vec![1.0 - sure, sure], class: 1 };
            (0..1_000).find_map(|_| watch.answered(&says, Wall(5), &figures))
        };
        assert_eq!(sure(&mut watch, 0.95), None);
        let event = sure(&mut watch, 0.6).unwrap();
        // Less than 0.35 by what the cut leaves of the new ones among the old.
        assert!(event.message.contains("by -0.3"), "{}", event.message);
        assert_eq!(event.subject.as_deref(), Some("bearing"));
    }
}
