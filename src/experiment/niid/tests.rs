#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a toy's numbers are small"
)]

use super::*;
use crate::learn::{
    ClassLogits, Control, Examples, Progress, Prototypes, Tensor, TrainJob, Trained,
};

/// Moves by half of the way to its labels' mean in each step, from wherever the round starts.
struct Toy;

fn weights(value: f32) -> TensorSet {
    let tensor = Tensor { name: "w".into(), shape: vec![4], data: vec![value; 4] };
    TensorSet::new(vec![tensor]).unwrap()
}

fn mean_label(images: &Images) -> f32 {
    images.labels.iter().map(|label| f32::from(*label)).sum::<f32>() / images.labels.len() as f32
}

impl Learner for Toy {
    fn initial_adapter(&self) -> TensorSet {
        weights(0.0)
    }

    fn train(
        &mut self,
        data: &Examples,
        job: &TrainJob,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Trained, LearnError> {
        let images = data.images()?;
        let steps = job.steps_over(images.num_examples());
        let mut at = job.start.tensors()[0].data[0];
        for step in 1..=steps {
            at += (mean_label(images) - at) / 16.0;
            progress(Progress { step, loss: 1.0 });
        }
        let labels: Vec<usize> = images.labels.iter().map(|label| (*label).into()).collect();
        let says = vec![at; 10 * labels.len()];
        Ok(Trained {
            class_logits: ClassLogits::of(&says, &labels, 10),
            prototypes: Prototypes::of(&says, &labels, 10).ok(),
            steps,
            ..Trained::of(weights(at), images.num_examples(), &[1.0])
        })
    }
}

/// A tenth of the value is called accuracy here, to six digits: it comes back from a file as it was.
fn subject() -> CellSubject {
    CellSubject {
        start: weights(0.0),
        learners: Learners::Whole(
            (0..CLIENTS).map(|_| Box::new(Toy) as Box<dyn Learner>).collect(),
        ),
        judge: Box::new(
            |weights| Ok((f64::from(weights.tensors()[0].data[0]) * 1e5).round() / 1e6),
        ),
        model: "a mean".into(),
    }
}

fn train() -> Images {
    let labels: Vec<u8> = (0..3_000_u32).map(|row| u8::try_from(row % 10).unwrap()).collect();
    Images { pixels: vec![0; labels.len()], width: 1, height: 1, labels, classes: 10 }
}

fn options(folder: &Path, rounds: u64) -> CellOptions {
    CellOptions {
        folder: folder.to_owned(),
        rounds,
        local_epochs: 2,
        seed: 1,
        lanes: 2,
        most_images: None,
        patience_s: 60,
        broker: None,
        processes: None,
    }
}

fn cell() -> Cell {
    "mnist/labels2/fedavg".parse().unwrap()
}

fn run(folder: &Path, rounds: u64) -> Result<CellRecord, ExperimentError> {
    run_of(&cell(), folder, rounds)
}

fn run_of(cell: &Cell, folder: &Path, rounds: u64) -> Result<CellRecord, ExperimentError> {
    run_cell(cell, &options(folder, rounds), &train(), subject(), &mut |_| {})
}

/// The images of each client.
fn clients() -> Vec<Images> {
    let train = train();
    let split = cell().deal(&train, 1).unwrap();
    split.iter().map(|rows| train.choose(rows)).collect()
}

/// Where two passes over a client's images lead.
fn learned(from: f32, images: &Images) -> f32 {
    let steps = 2 * images.num_examples().div_ceil(BATCH);
    (0..steps).fold(from, |at, _| at + (mean_label(images) - at) / 16.0)
}

fn accuracies(record: &CellRecord) -> Vec<f64> {
    record.curve.iter().map(|at| at.accuracy).collect()
}

/// Two edges of five devices each and a cloud come to what one server with all ten clients would.
#[test]
fn the_mean_of_the_sites_means_is_the_mean_of_all_clients() {
    let folder = tempfile::tempdir().unwrap();
    let record = run(folder.path(), 3).unwrap();
    let clients = clients();
    let sizes: Vec<usize> = clients.iter().map(Images::num_examples).collect();
    assert_eq!(record.client_sizes, sizes);
    assert!(sizes.iter().max() > sizes.iter().min(), "else any mean would do: {sizes:?}");
    let mut flat = vec![0.0_f32];
    for _ in 0..3 {
        let start = flat[flat.len() - 1];
        let learned = clients
            .iter()
            .map(|images| f64::from(learned(start, images)) * images.num_examples() as f64);
        flat.push((learned.sum::<f64>() / 3_000.0) as f32);
    }
    for (ours, flat) in accuracies(&record).iter().zip(&flat) {
        assert!((ours - f64::from(*flat) / 10.0).abs() < 1e-6, "{ours} {flat}");
    }
    assert!(record.audit.unwrap().verified && record.is_finished());
    assert!(record.curve[1..].iter().all(|at| at.bytes_up > 0));
}

/// No weights travel: each client goes on from where it was, and after each round all ten are judged.
#[test]
fn where_clients_keep_their_networks_the_mean_of_what_each_has_then_is_told() {
    let mut flat = vec![0.0];
    let mut own = vec![0.0_f32; CLIENTS];
    for _ in 0..3 {
        own = own.iter().zip(&clients()).map(|(at, images)| learned(*at, images)).collect();
        flat.push(own.iter().map(|at| f64::from(*at) / 10.0).sum::<f64>() / CLIENTS as f64);
    }
    let common = run(tempfile::tempdir().unwrap().path(), 3).unwrap();
    assert_eq!(common.judged, Judged::CommonModel);
    for strategy in ["feddistill", "fedproto"] {
        let cell: Cell = format!("mnist/labels2/{strategy}").parse().unwrap();
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let record = run_of(&cell, whole.path(), 3).unwrap();
        assert_eq!(record.judged, Judged::MeanOfOwnModels);
        assert!(record.audit.unwrap().verified && record.is_finished());
        for (ours, flat) in accuracies(&record).iter().zip(&flat) {
            assert!((ours - flat).abs() < 1e-6, "{strategy}: {ours} {flat}");
        }
        assert_eq!(record.curve.len(), 4);
        assert!(
            (accuracies(&record)[3] - accuracies(&common)[3]).abs() > 1e-4,
            "else any would do"
        );
        // As after a kill: what was learned until then is on the nodes' disks.
        run_of(&cell, parts.path(), 2).unwrap();
        assert_eq!(accuracies(&run_of(&cell, parts.path(), 3).unwrap()), accuracies(&record));
    }
}

#[test]
fn a_cell_goes_on_where_it_stopped_and_a_finished_one_is_not_run_again() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = run(whole.path(), 4).unwrap();
    let first = run(parts.path(), 2).unwrap();
    assert_eq!(accuracies(&first), accuracies(&all)[..3]);
    // As after a kill: the figures of the last round were not written yet.
    let mut lost = first.clone();
    lost.curve.pop();
    lost.audit = None;
    lost.write(parts.path()).unwrap();
    let rest = run(parts.path(), 4).unwrap();
    assert_eq!(accuracies(&rest), accuracies(&all));
    assert!(has_begun(parts.path()));
    let again = run(parts.path(), 4).unwrap();
    assert_eq!(again, rest);
}

#[test]
fn a_folder_of_another_cell_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 1).unwrap();
    let other = CellOptions { seed: 2, ..options(folder.path(), 1) };
    let error = run_cell(&cell(), &other, &train(), subject(), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), "other_run");
}

#[test]
fn strategies_set_what_they_are_called_after_and_bounds_are_off() {
    let folder = Path::new("x");
    let of = |name: &str| {
        let cell: Cell = name.parse().unwrap();
        settings(&cell, &options(folder, 5)).unwrap()
    };
    let (avg, prox) = (plan_of(&of("mnist/iid/fedavg")), plan_of(&of("mnist/iid/fedprox")));
    assert_eq!((avg.prox_mu, prox.prox_mu), (0.0, 0.01));
    assert_eq!((avg.local_epochs, avg.batch_size, avg.block), (Some(2), 64, 128));
    let (distill, proto) = (of("mnist/iid/feddistill"), of("mnist/iid/fedproto"));
    let sends =
        |settings: &Settings| (plan_of(settings).adapter_delta, plan_of(settings).class_logits);
    assert_eq!((sends(&distill), sends(&proto)), ((false, true), (false, false)));
    assert!(distill.knowledge.own_models && proto.knowledge.own_models);
    let settings = of("mnist/iid/fedavg");
    assert!(!settings.strategy.clip_norms && settings.strategy.max_share >= 1.0);
    assert_eq!(settings.round.rounds, 5);
}
