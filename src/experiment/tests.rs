#![expect(clippy::cast_precision_loss, reason = "a toy's numbers are small")]

use std::collections::BTreeMap;

use super::*;
use crate::learn::Tensor;
use crate::settings::{Layers, Tier};

/// The mean token, from which each training step goes half the way to that of its texts.
struct Mean;

fn mean(texts: &Texts) -> f32 {
    texts.tokens.iter().map(|id| *id as f32).sum::<f32>() / texts.tokens.len().max(1) as f32
}

fn adapter(value: f32) -> TensorSet {
    let tensor = Tensor { name: "head.weight".into(), shape: vec![4], data: vec![value; 4] };
    TensorSet::new(vec![tensor]).unwrap()
}

fn value(adapter: &TensorSet) -> f32 {
    adapter.tensors()[0].data[0]
}

impl Learner for Mean {
    fn initial_adapter(&self) -> TensorSet {
        adapter(0.0)
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let (texts, mut at) = (data.texts()?, value(&job.start));
        for step in 1..=job.steps {
            at += (mean(texts) - at) / 8.0;
            progress(Progress { step, loss: (mean(texts) - at).abs() });
        }
        let losses = [1.0, (mean(texts) - at).abs()];
        let trained = Trained::of(adapter(at), texts.lengths.len(), &losses);
        Ok(Trained { steps: job.steps, ..trained })
    }
}

/// The further the adapter's value is from the texts' mean, the less they are foreseen.
impl Judge for Mean {
    fn nats(&mut self, adapter: &TensorSet, texts: &Texts) -> Result<f64, LearnError> {
        Ok(f64::from((value(adapter) - mean(texts)).abs()) * texts.chars as f64)
    }
}

fn texts(token: u32, rows: u32) -> Texts {
    Texts {
        tokens: vec![token; 3 * rows as usize],
        lengths: vec![3; rows as usize],
        chars: 10 * u64::from(rows),
    }
}

fn machine(name: &str, site: &str, token: u32, rows: u32) -> Machine {
    let (train, test) = (texts(token, rows), texts(token, 5));
    Machine { name: name.into(), site: site.into(), train, test }
}

fn settings(more: &[&str]) -> Settings {
    let mut layers = Layers::new();
    layers.tier(Tier::Cloud);
    let own = [
        "node.name=cloud",
        "round.rounds=3",
        "round.auto_start=true",
        "round.republish_s=1",
        "strategy.local_steps=16",
        "strategy.compression=none",
    ];
    for assignment in own.iter().chain(more) {
        layers.set(assignment);
    }
    layers.load().into_settings().unwrap()
}

fn experiment(arms: &[ArmKind], settings: &Settings) -> (ExperimentReport, Vec<News>) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        // As the command names it: it isn't there yet.
        folder: folder.path().join("nodes"),
        arms: arms.to_vec(),
        patience_s: 60,
        rehearse: false,
    };
    let subject = Subject {
        learner: Box::new(Mean),
        judge: Box::new(Mean),
        base: Digest([7; 32]),
        model: "a mean".into(),
        tokens_per_step: 4,
    };
    let machines = [
        machine("A", "north", 2, 120),
        machine("B", "north", 4, 240),
        machine("C", "south", 8, 360),
    ];
    let mut news = Vec::new();
    let report =
        run(&options, settings, subject, &machines, "made up", &mut |at| news.push(at)).unwrap();
    (report, news)
}

#[test]
fn three_arms_are_run_at_an_equal_total_of_steps_and_the_federated_one_by_real_nodes() {
    let arms = [ArmKind::Alone, ArmKind::Federated, ArmKind::Pooled];
    let (report, news) = experiment(&arms, &settings(&[]));
    let steps: BTreeMap<&str, u64> =
        report.arms.iter().map(|arm| (arm.kind.key(), arm.steps)).collect();
    let expected = [("alone", 48), ("federated", 48), ("pooled", 144), ("zero_shot", 0)];
    assert_eq!(steps, BTreeMap::from(expected));
    assert!(news.contains(&News::Step { done: 144, of: 144 }));

    let bits = |kind| report.arm(kind).unwrap().machines.clone();
    let nat = std::f64::consts::LOG2_E;
    for (bits, token) in bits(ArmKind::ZeroShot).iter().zip([2.0, 4.0, 8.0]) {
        assert!((bits - token * nat).abs() < 1e-6, "{bits}");
    }
    assert!(bits(ArmKind::Alone).iter().all(|bits| *bits < 0.1), "each knows its own");
    // Weighted by the texts behind it: (2 * 120 + 4 * 240 + 8 * 360) / 720 = 5 2/3. Nodes also bound how long
    // an update may be, which moves the federated one a little.
    for (kind, tolerance) in [(ArmKind::Federated, 0.5), (ArmKind::Pooled, 0.1)] {
        for (bits, token) in bits(kind).iter().zip([2.0, 4.0, 8.0]) {
            let expected = (17.0_f64 / 3.0 - token).abs() * nat;
            assert!((bits - expected).abs() < tolerance, "{kind:?} {bits} {expected}");
        }
    }
    assert_eq!(report.curve.len(), 3);
    assert!(report.audit.verified && report.audit.entries > 0);
    assert!(report.work_per_device_round > 0);
    assert!(report.bytes_up_per_device_round > report.work_per_device_round);
}

#[test]
fn only_the_arms_that_are_asked_for_are_run() {
    let (report, _) = experiment(&[ArmKind::Pooled], &settings(&[]));
    let kinds: Vec<ArmKind> = report.arms.iter().map(|arm| arm.kind).collect();
    assert_eq!(kinds, [ArmKind::ZeroShot, ArmKind::Pooled]);
    assert!(report.curve.is_empty());
}

#[test]
fn a_federation_that_stands_still_is_an_error_and_not_a_wait_for_ever() {
    // Nobody opens a round.
    let settings = settings(&["round.auto_start=false"]);
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        folder: folder.path().join("nodes"),
        arms: vec![ArmKind::Federated],
        patience_s: 1,
        rehearse: false,
    };
    let subject = Subject {
        learner: Box::new(Mean),
        judge: Box::new(Mean),
        base: Digest([7; 32]),
        model: String::new(),
        tokens_per_step: 4,
    };
    let machines = [machine("A", "north", 2, 120)];
    let error = run(&options, &settings, subject, &machines, "", &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), "stuck");
}

#[test]
fn a_name_that_cannot_be_a_nodes_is_refused() {
    let party = federation::Party {
        name: "A/B".into(),
        site: "north".into(),
        data: Arc::new(Texts::default().into()),
        part: federation::Part::Whole(Box::new(Mean)),
    };
    let folder = tempfile::tempdir().unwrap();
    let error = places::Places::open(
        folder.path(),
        &crate::ids::Name::new("f").unwrap(),
        &[(party.name.as_str(), party.site.as_str())],
        crate::time::Wall(1_800_000_000_000),
    );
    assert_eq!(error.err().unwrap().kind(), "name");
}

#[test]
fn nodes_of_a_folder_that_is_not_there_yet_get_keys_and_find_them_again() {
    let room = tempfile::tempdir().unwrap();
    let folder = room.path().join("nodes").join("1-both");
    let open = || {
        let (federation, now) =
            (crate::ids::Name::new("f").unwrap(), crate::time::Wall(1_800_000_000_000));
        places::Places::open(&folder, &federation, &[("A", "north")], now).unwrap()
    };
    let (made, found) = (open(), open());
    assert_eq!(made.all.len(), 3);
    let publics = |places: &places::Places| {
        places.all.iter().map(|p| places.keyring.node(&p.node).map(|n| n.key)).collect::<Vec<_>>()
    };
    assert_eq!(publics(&made), publics(&found));
}

#[test]
fn an_owners_rate_falls_where_a_setting_says_so() {
    let how = |more: &[&str]| crate::node::distils_of(&settings(more).knowledge);
    assert_eq!(how(&[]).final_rate, None);
    let set = ["knowledge.distil_steps=7", "knowledge.distil_falls=true"];
    assert_eq!((how(&set).steps, how(&set).final_rate), (7, Some(0.0)));
}

#[cfg(feature = "torch")]
#[test]
fn the_rate_of_the_relays_cloud_falls() {
    let mut layers = Layers::new();
    layers.tier(Tier::Cloud).text("experiment-relay", relay::SETTINGS);
    let settings = layers.load().into_settings().unwrap();
    assert_eq!(crate::node::distils_of(&settings.knowledge).final_rate, Some(0.0));
}
