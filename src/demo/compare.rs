//! The federation beside the arms to compare with, on the test part.

use std::collections::BTreeMap;

use super::federation::Outcome;
use super::heard::Flow;
use super::plant::PLACES;
use super::run::bar;
use super::{DemoError, DemoOptions, arms, ledgers, prices};
use crate::data::bearings::{Bearings, CLASSES, Dataset};
use crate::learn::{TensorSet, percentile};
use crate::node::{brain, plan_of};
use crate::protocol::update;
use crate::report::{
    Arm, AuditSummary, ConfusionTable, DemoReport, Latency, RoundPoint, TierTraffic,
};
use crate::settings::{Compression, Contribute, LearnerName, Settings};
use crate::trust::keyring::Keyring;

/// Trains the arms, judges all of them on the test part, and fills what they show into a report.
pub(super) fn compare(
    options: &DemoOptions,
    settings: &Settings,
    keyring: &Keyring,
    bearings: &Bearings,
    outcome: &Outcome,
) -> Result<DemoReport, DemoError> {
    let Dataset { plants, pooled, test } = bearings.load()?;
    let arms = plants.len() as u64 + 1;
    let bar = bar(options.quiet, arms * options.rounds, "to compare with");
    let mut mine = brain(settings, keyring)?;
    let start = mine.learner.initial_adapter();
    let mut trained = Vec::new();
    for (place, data) in PLACES.iter().filter(|place| place.data.is_some()).zip(&plants) {
        bar.set_message(format!("{} alone", place.name));
        trained.push((
            place.name,
            arms::train(&mut mine, settings, &data.clone().into(), &mut || bar.inc(1))?,
        ));
    }
    bar.set_message("all data in one place");
    let pooled_adapter =
        arms::train(&mut mine, settings, &pooled.clone().into(), &mut || bar.inc(1))?;
    bar.finish_and_clear();

    let last = outcome.versions.last().map(|seen| update::unpack(&seen.adapter)).transpose()?;
    let shared: TensorSet = last.unwrap_or(start.clone());
    // With soft labels alone no adapter is shared: each machine has taught its own.
    let one_adapter = options.contribute.contains(&Contribute::AdapterDelta);
    let federated =
        if one_adapter { vec![shared.clone()] } else { ledgers::own_adapters(options)? };
    // The test part is read here and nowhere else: every choice was made before.
    let predictor = mine.predictor()?;
    let mut alone = Vec::new();
    for (name, adapter) in &trained {
        let confusion = arms::confusion(predictor, std::slice::from_ref(adapter), &test)?;
        alone.push(Arm { name: (*name).to_owned(), score: arms::score(&confusion) });
    }
    let pooled_score = arms::score(&arms::confusion(predictor, &[pooled_adapter], &test)?);
    let confusion = arms::confusion(predictor, &federated, &test)?;
    let federated_score = arms::score(&confusion);
    let mut curve = Vec::new();
    let mut before = Flow::default();
    for seen in &outcome.versions {
        let now = seen.counts.federation;
        let (bytes_up, bytes_down) = (now.up - before.up, now.down - before.down);
        before = now;
        let Some(loss) = seen.loss else { continue };
        // How it learns is shown on the training recordings.
        let macro_f1 = if one_adapter {
            let adapter = update::unpack(&seen.adapter)?;
            arms::score(&arms::confusion(predictor, &[adapter], &pooled)?).macro_f1
        } else {
            f64::NAN // the machines' own adapters of earlier rounds are gone
        };
        curve.push(RoundPoint { round: seen.version, loss, macro_f1, bytes_up, bytes_down });
    }
    let counts = &outcome.counts;
    let per_round = counts.contributions.0 / counts.contributions.1.max(1);
    let first = plants.first().ok_or_else(|| DemoError::start(&"no plant"))?;
    let reached = federated_score.macro_f1;
    let contributions =
        prices::ways(&mut mine, options, settings, &first.clone().into(), &shared, reached)?;
    let tier = |tier: &str, Flow { up, down }| TierTraffic { tier: tier.to_owned(), up, down };
    Ok(DemoReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit(),
        data: "bearings: 20 recordings of MFPT bearing test rigs, 4 plants".to_owned(),
        model: format!("{}, {} values in the adapter", called(options), start.num_values()),
        settings: described(options, settings),
        alone,
        federated: federated_score,
        pooled: pooled_score,
        curve,
        confusion: table_of(&confusion),
        traffic: vec![
            tier("devices - edges", counts.sites),
            tier("edges - cloud", counts.federation),
        ],
        in_sites: tier("answers, samples inside the sites", counts.plant),
        up_per_device_round: 0,
        message_per_device_round: per_round,
        raw_f32_per_device_round: prices::raw_bytes(&start),
        crossings: counts.crossings.clone(),
        contributions,
        seconds: 0.0,
        cpu_seconds: 0.0,
        peak_rss_mib: 0.0,
        latency_ms: Latency {
            p50: percentile(&counts.latencies_ms, 50.0).unwrap_or(0.0),
            p99: percentile(&counts.latencies_ms, 99.0).unwrap_or(0.0),
            answers: counts.latencies_ms.len() as u64,
        },
        refused: BTreeMap::new(),
        audit: AuditSummary { entries: 0, verified: false },
    })
}

fn table_of(confusion: &crate::learn::Confusion) -> ConfusionTable {
    ConfusionTable {
        classes: CLASSES.iter().map(|class| (*class).to_owned()).collect(),
        counts: confusion.counts().chunks(CLASSES.len()).map(<[u64]>::to_vec).collect(),
    }
}

fn described(options: &DemoOptions, settings: &Settings) -> Vec<(String, String)> {
    let plan = plan_of(settings);
    [
        ("rounds", options.rounds.to_string()),
        ("local steps", plan.local_steps.to_string()),
        ("batch", plan.batch_size.to_string()),
        ("learning rate", plan.learning_rate.to_string()),
        ("compression", coding(options.compression).to_owned()),
        ("seed", options.seed.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

pub(super) fn called(options: &DemoOptions) -> &'static str {
    match options.learner {
        LearnerName::Softmax => "softmax regression on spectra",
        LearnerName::SignalTransformer => "pre-trained transformer with LoRA",
        LearnerName::Language => "language model with LoRA",
        LearnerName::TextSoftmax => "softmax regression on runs of characters",
        LearnerName::TextEncoder => "softmax regression on vectors of texts",
    }
}

fn coding(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "f32",
        Compression::Int8 => "int8",
        Compression::Int4 => "int4",
    }
}

pub(super) fn commit() -> String {
    option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned()
}
