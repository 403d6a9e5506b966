//! What one device's work of one round weighs, in each way that it could travel.

use super::{DemoError, DemoOptions};
use crate::learn::{Control, Examples, TensorSet, TrainJob};
use crate::node::{Brain, plan_of};
use crate::protocol::update;
use crate::report::Contribution;
use crate::settings::{Compression, Contribute, Settings};
use crate::wire::{ClassSummary, Coding, Plan, encode};

/// Trains a round on `data` from `start`, and really packs the outcome in each way.
///
/// Bytes are those of the work, without the signed message around it (some 0.4 kB in any way). The
/// way that the run took gets what it reached; what others would reach only a run of theirs can tell.
pub(super) fn ways(
    brain: &mut Brain,
    options: &DemoOptions,
    settings: &Settings,
    data: &Examples,
    start: &TensorSet,
    macro_f1: f64,
) -> Result<Vec<Contribution>, DemoError> {
    let plan = plan_of(settings);
    let job = TrainJob {
        prox_mu: plan.prox_mu,
        epochs: plan.local_epochs,
        class_logits: true,
        ..TrainJob::plain(
            start.clone(),
            plan.local_steps,
            plan.batch_size,
            plan.learning_rate,
            plan.seed,
        )
    };
    let trained = brain.learner.train(data, &job, &mut |_| Control::Continue)?;
    let packed = |coding| -> Result<u64, DemoError> {
        let block = u16::try_from(settings.strategy.block).unwrap_or(u16::MAX);
        let plan = Plan { coding, block, ..plan.clone() };
        let (bytes, _) = update::pack_delta(start, &trained.adapter, &plan, None)?;
        Ok(bytes.len() as u64)
    };
    let mut logits = trained.class_logits.clone();
    logits.suppress(u64::from(plan.min_cell));
    let logits = encode(&ClassSummary::from(&logits)).map_err(update::UpdateError::from)?;
    let logits = logits.len() as u64;

    let deltas =
        [(F32, packed(Coding::F32)?), (INT8, packed(Coding::Int8)?), (INT4, packed(Coding::Int4)?)];
    let coding = match options.compression {
        Compression::None => F32,
        Compression::Int8 => INT8,
        Compression::Int4 => INT4,
    };
    let delta = deltas.iter().find(|(kind, _)| *kind == coding).map_or(0, |(_, bytes)| *bytes);
    let gives = |kind| options.contribute.contains(&kind);
    let (ran, work) = match (gives(Contribute::AdapterDelta), gives(Contribute::ClassLogits)) {
        (true, true) => (format!("{coding} and {CLASS_LOGITS}"), delta + logits),
        (false, true) => (CLASS_LOGITS.to_owned(), logits),
        _ => (coding.to_owned(), delta),
    };
    let way = |kind: &str, bytes| Contribution {
        kind: kind.to_owned(),
        bytes_per_device_round: bytes,
        macro_f1: (kind == ran).then_some(macro_f1),
    };
    let mut ways = vec![way(RAW, raw_bytes(start))];
    ways.extend(deltas.map(|(kind, bytes)| way(kind, bytes)));
    ways.push(way(CLASS_LOGITS, logits));
    if ways.iter().all(|way| way.kind != ran) {
        ways.push(way(&ran, work));
    }
    Ok(ways)
}

/// The values of an adapter, four bytes each.
pub(super) fn raw_bytes(adapter: &TensorSet) -> u64 {
    adapter.num_values() as u64 * 4
}

const RAW: &str = "raw f32";
const F32: &str = "f32, packed";
const INT8: &str = "int8";
const INT4: &str = "int4";
const CLASS_LOGITS: &str = "class logits";
