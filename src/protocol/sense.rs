//! Whether what a parent says makes sense, before anything is trained, fetched, served or passed on.
//!
//! A parent's signature proves who speaks, not that it can be followed: a plan of no examples a step
//! would stop a learner, an adapter of another model would be answered with. The bounds are those of
//! the settings that plans are made from.
//!
//! Called by [`super::Member`], [`super::Follower`] and [`super::Deputy`].

use super::{heads, knowledge, update};
use crate::ids::Name;
use crate::learn::{Layout, MAX_STEPS};
use crate::wire::{
    Assignment, ClassSummary, Knowledge, KnowledgePlan, Manifest, Offer, Plan,
    Result as RoundResult,
};

/// Checks all of an offer but the bytes of its adapter.
///
/// # Errors
/// A word for the decline.
pub(super) fn check_offer(offer: &Offer) -> Result<(), &'static str> {
    if !(1..=MAX_DEADLINE_MS).contains(&offer.deadline_ms) || !makes_sense(&offer.plan) {
        return Err("senseless_plan");
    }
    if !offer.adapter.is_sound() {
        return Err("unsound_blob");
    }
    let kinds_agree = match &offer.plan.knowledge {
        Some(plan) => {
            offer.adapter.is_empty() && (offer.knowledge.is_none() || plan.asks_for_a_set())
        }
        None => offer.knowledge.is_none(),
    };
    if !kinds_agree {
        return Err("senseless_plan");
    }
    check_said(offer.knowledge.as_ref())?;
    check_targets(offer.class_targets.as_ref())
}

/// Checks all of a result but the bytes of its adapter.
///
/// # Errors
/// A word for the counter and the ledger.
pub(super) fn check_result(result: &RoundResult) -> Result<(), &'static str> {
    if !result.adapter.is_sound() {
        return Err("unsound_blob");
    }
    check_said(result.knowledge.as_ref())?;
    check_targets(result.class_targets.as_ref())
}

/// Checks an assignment against the one that was known before it.
///
/// # Errors
/// A word for the counter.
pub(super) fn check_assignment(
    model: &Name,
    known: Option<&Assignment>,
    told: &Assignment,
) -> Result<(), &'static str> {
    let serial = known.map_or(0, |known| known.serial);
    if told.model != *model {
        return Err("assignment_of_another_model");
    }
    if told.serial < serial {
        return Err("older_assignment");
    }
    // Remembered, it would be a bound that no honest steward can come over again.
    if !in_reach(serial, told.serial) {
        return Err("number_out_of_reach");
    }
    if !manifests(told).all(Manifest::is_sound) {
        return Err("unsound_blob");
    }
    // What is rolled out is newer than what is served.
    if told.candidate.as_ref().is_some_and(|candidate| candidate.version <= told.stable) {
        return Err("senseless_assignment");
    }
    // Two starts of a steward's store have used the number: what was counted for one isn't the other's.
    if known.is_some_and(|known| told.serial == known.serial && differs(known, told)) {
        return Err("serial_used_twice");
    }
    Ok(())
}

fn manifests(told: &Assignment) -> impl Iterator<Item = &Manifest> {
    told.stable_adapter.iter().chain(told.candidate.iter().map(|candidate| &candidate.adapter))
}

/// Whether two assignments of one number say different things; the stable version's chunks may come later.
fn differs(known: &Assignment, told: &Assignment) -> bool {
    let other = match (&known.stable_adapter, &told.stable_adapter) {
        (Some(known), Some(told)) => known.sha256 != told.sha256,
        _ => false,
    };
    other || known.stable != told.stable || known.candidate != told.candidate
}

/// Checks that bytes are what the tiers above say, as the plan has it.
///
/// # Errors
/// A word for the counter and the ledger.
pub(super) fn check_knowledge(
    plan: &KnowledgePlan,
    bytes: &[u8],
    counts: &[u64],
) -> Result<(), &'static str> {
    let said = knowledge::unpack(plan, bytes, counts);
    said.and_then(|said| heads::from_above(&said)).map_err(|error| error.kind())
}

/// Checks that bytes are a packed set of finite values.
///
/// # Errors
/// A word for the counter and the ledger.
pub(super) fn check_packed(bytes: &[u8]) -> Result<(), &'static str> {
    update::unpack(bytes).map(drop).map_err(|error| error.kind())
}

/// Checks that bytes are a packed adapter of the model: its names and shapes, finite values.
///
/// # Errors
/// A word for the counter and the ledger.
pub(super) fn check_adapter(bytes: &[u8], layout: &Layout) -> Result<(), &'static str> {
    let adapter = update::unpack(bytes).map_err(|error| error.kind())?;
    adapter.check_layout(layout).map_err(|error| error.kind())
}

/// Whether an epoch, round or version can have come this far since the one that is known.
///
/// They only rise, so one near the largest number would be the last.
pub(super) fn in_reach(known: u64, next: u64) -> bool {
    next.saturating_sub(known) <= MAX_JUMP
}

fn check_said(said: Option<&Knowledge>) -> Result<(), &'static str> {
    match said {
        Some(said) if !said.set.is_sound() || said.counts.len() > knowledge::MAX_CLASSES => {
            Err("unsound_blob")
        }
        _ => Ok(()),
    }
}

fn check_targets(targets: Option<&ClassSummary>) -> Result<(), &'static str> {
    let checked = targets.map_or(Ok(()), update::check_summary);
    checked.map_err(|_| "bad_class_targets")
}

fn makes_sense(plan: &Plan) -> bool {
    let knowledge = plan.knowledge.as_ref();
    (plan.adapter_delta || plan.class_logits || knowledge.is_some())
        && knowledge.is_none_or(|knowledge| knowledge::makes_sense(plan, knowledge))
        && (1..=MAX_STEPS).contains(&plan.local_steps)
        // How many steps the passes are is known by the learner, which has the same bound for them.
        && plan.local_epochs.is_none_or(|epochs| (1..=10_000).contains(&epochs))
        && plan.cluster_rounds.is_none_or(|rounds| {
            (2..=MAX_CLUSTER_ROUNDS).contains(&rounds) && plan.adapter_delta && knowledge.is_none()
        })
        && (1..=65_536).contains(&plan.batch_size)
        // 0 where a cosine has come to its end.
        && (0.0..=10.0).contains(&plan.learning_rate)
        && plan.final_rate.is_none_or(|rate| (0.0..=10.0).contains(&rate))
        && (0.0..=10.0).contains(&plan.prox_mu)
        && (0.0..=100.0).contains(&plan.distill_lambda)
        && (1..=256).contains(&plan.rank)
        && (0.001..=4096.0).contains(&plan.alpha)
        && update::can_code(plan.coding, plan.block)
}

/// More rounds of a site for one of the federation aren't asked for.
const MAX_CLUSTER_ROUNDS: u32 = 1_000;

/// Longest deadline of a round: 30 days, as long as an offer lives.
const MAX_DEADLINE_MS: u64 = 30 * 24 * 60 * 60 * 1_000;

/// A round a second for 136 years: more than a member can have missed.
const MAX_JUMP: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, Name};
    use crate::protocol::fixture::{first_adapter, plan};
    use crate::wire::{Blob, Coding};

    fn offer(plan: Plan) -> Offer {
        Offer {
            island: None,
            knowledge: None,
            round: 1,
            model: Name::new("m").unwrap(),
            base: Digest([1; 32]),
            version: 0,
            adapter: Blob::of(&first_adapter(4), 4096),
            class_targets: None,
            plan,
            deadline_ms: 1_000,
            outer: None,
        }
    }

    #[test]
    fn plans_that_no_learner_can_follow_are_refused_and_their_twin_is_taken() {
        let good = plan(Coding::Int8);
        assert_eq!(check_offer(&offer(good.clone())), Ok(()));
        assert_eq!(check_offer(&offer(Plan { learning_rate: 0.0, ..good.clone() })), Ok(()));
        assert_eq!(check_offer(&offer(Plan { final_rate: Some(0.0), ..good.clone() })), Ok(()));
        let epochs = Plan { local_epochs: Some(10), ..good.clone() };
        assert_eq!(check_offer(&offer(epochs)), Ok(()));
        let cluster = Plan { cluster_rounds: Some(4), ..good.clone() };
        assert_eq!(check_offer(&offer(cluster)), Ok(()));
        let bad: [fn(&mut Plan); 24] = [
            |p| p.cluster_rounds = Some(1),
            |p| p.cluster_rounds = Some(u32::MAX),
            |p| (p.cluster_rounds, p.adapter_delta, p.class_logits) = (Some(2), false, true),
            |p| p.final_rate = Some(f32::NAN),
            |p| p.final_rate = Some(-0.1),
            |p| p.adapter_delta = false, // and no class logits either
            |p| p.local_steps = 0,
            |p| p.local_steps = u32::MAX,
            |p| p.local_epochs = Some(0),
            |p| p.local_epochs = Some(u32::MAX),
            |p| p.batch_size = 0,
            |p| p.batch_size = u32::MAX,
            |p| p.learning_rate = f32::NAN,
            |p| p.learning_rate = f32::INFINITY,
            |p| p.learning_rate = -0.1,
            |p| p.prox_mu = f32::NAN,
            |p| p.prox_mu = -1.0,
            |p| p.distill_lambda = f32::INFINITY,
            |p| p.rank = 0,
            |p| p.rank = u32::MAX,
            |p| p.alpha = 0.0,
            |p| p.alpha = f32::NAN,
            |p| p.block = 0,
            |p| p.block = u16::MAX,
        ];
        for (case, spoil) in bad.into_iter().enumerate() {
            let mut plan = good.clone();
            spoil(&mut plan);
            assert_eq!(check_offer(&offer(plan)), Err("senseless_plan"), "case {case}");
        }
        for deadline_ms in [0, u64::MAX] {
            let offer = Offer { deadline_ms, ..offer(good.clone()) };
            assert_eq!(check_offer(&offer), Err("senseless_plan"));
        }
    }

    #[test]
    fn class_targets_that_are_no_numbers_are_refused_and_their_twin_is_taken() {
        for (value, expected) in [(f32::NAN, Err("bad_class_targets")), (0.5, Ok(()))] {
            let mean_logits = [value; 4].iter().flat_map(|x| x.to_le_bytes()).collect();
            let targets = ClassSummary { mean_logits, counts: vec![20, 20] };
            let offer = Offer { class_targets: Some(targets), ..offer(plan(Coding::F32)) };
            assert_eq!(check_offer(&offer), expected);
        }
    }

    #[test]
    fn adapters_of_another_shape_are_refused_and_their_twin_is_taken() {
        let layout = update::unpack(&first_adapter(4)).unwrap().layout();
        assert_eq!(check_adapter(&first_adapter(5), &layout), Err("layout_mismatch"));
        assert_eq!(check_adapter(&first_adapter(4), &layout), Ok(()));
    }
}
