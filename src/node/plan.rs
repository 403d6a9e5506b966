//! From settings to what planning needs: the model's costs, a round's work, a member's floors.
//!
//! Called by `gaisnet plan`; who does what is decided by `learn/plan.rs`. A card is read without asking who
//! signed it: its sizes are looked at, nothing is loaded.

use super::settings::{base_path, core_share, gate_for, gate_of, plan_of, trainer_of};
use super::{SettingsProblem, split_of};
use crate::actors::RiskMeter;
use crate::learn::{ModelCost, RoundWork};
use crate::privacy::Gate;
use crate::settings::{LearnerName, PrivacyProfile, Settings, SplitLabels};
use crate::torch::{Card, SignalTransformerConfig, cost};
use crate::wire::{Coding, SplitCoding};

/// A model that can be planned with.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedModel {
    /// Its base's name.
    pub name: String,
    /// What it costs.
    pub cost: ModelCost,
    architecture: SignalTransformerConfig,
}

/// The model that the settings name.
///
/// # Errors
/// [`SettingsProblem`] when it isn't a signal transformer, or its card can't be read.
pub fn planned_model(settings: &Settings) -> Result<PlannedModel, SettingsProblem> {
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    if settings.model.learner != LearnerName::SignalTransformer {
        let problem = "only the costs of model.learner = \"signal-transformer\" are known; a softmax fits \
                       everywhere, and a language model trains whole or not at all";
        return Err(bad("model.learner", problem.into()));
    }
    let path = base_path(settings);
    let at = |problem: &dyn std::fmt::Display| {
        bad("model.base", format!("{}: {problem}", path.display()))
    };
    let Card::Signal(card) = Card::read_unsealed(&path).map_err(|error| at(&error))? else {
        return Err(at(&"this is the card of another kind of model than a signal transformer"));
    };
    let peft = trainer_of(settings, card.architecture).peft;
    let cost = card.architecture.cost(&peft).map_err(|error| at(&error))?;
    Ok(PlannedModel { name: card.name, cost, architecture: card.architecture })
}

impl PlannedModel {
    /// Floating-point operations a second of this machine, in products of the model's own sizes.
    ///
    /// # Errors
    /// [`SettingsProblem`] when libtorch refuses.
    pub fn measure(
        &self,
        settings: &Settings,
        micros: &mut dyn FnMut() -> u64,
    ) -> Result<f64, SettingsProblem> {
        let share = core_share(&settings.limits, std::thread::available_parallelism().ok());
        let block = &self.architecture.block;
        let rows = settings.strategy.batch_size.saturating_mul(self.architecture.tokens());
        let sizes = [rows.clamp(1, MOST_ROWS), block.d_model, block.d_ff];
        Ok(cost::flops_per_s(sizes, share.train, micros)?)
    }
}

/// A round's work, in so many seconds.
pub fn round_work(settings: &Settings, budget_s: f64) -> RoundWork {
    let plan = plan_of(settings);
    let coding = split_of(settings).map_or(SplitCoding::Int8, |split| split.terms.coding);
    RoundWork {
        steps: plan.local_steps,
        batch: plan.batch_size,
        budget_s,
        delta_bits: match plan.coding {
            Coding::F32 => 32,
            Coding::Int8 => 8,
            Coding::Int4 => 4,
        },
        coding: coding.into(),
        labels_stay: settings.split.labels == SplitLabels::Device,
        references: settings
            .knowledge
            .reference
            .as_ref()
            .map_or(0, |_| settings.knowledge.reference_count),
        min_steps: gate_of(settings).min_steps,
    }
}

/// How many of so many examples a member learns from; the others are kept back for its cascade and its risk meter.
///
/// About: of each recording, or of each class, the part is rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "counts"
)]
pub fn learned_of(settings: &Settings, examples: u64) -> u64 {
    let cascade = &settings.cascade;
    let held = if cascade.enabled { (examples as f64 * cascade.holdout) as u64 } else { 0 };
    let left = examples.saturating_sub(held);
    let metered = settings.privacy.risk_meter;
    left - if metered { left / u64::from(RiskMeter::KEPT_ONE_IN) } else { 0 }
}

/// What must stand behind a member's contribution, and whether its activations may go to its edge: not where
/// people are in the data, for much of a window can be read back from them.
pub fn floor_of(profile: PrivacyProfile) -> (Gate, bool) {
    (gate_for(profile), profile != PrivacyProfile::Strict)
}

/// Rows of a measured product: more takes longer and tells nothing new.
const MOST_ROWS: u32 = 4_096;
