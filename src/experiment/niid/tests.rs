#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a toy's numbers are small"
)]

use super::*;
use crate::learn::{
    ClassLogits, Control, Examples, Progress, Tensor, TrainJob, Trained, split_by_labels,
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
        Ok(Trained {
            adapter: weights(at),
            class_logits: ClassLogits { mean_logits: Vec::new(), counts: Vec::new() },
            prototypes: None,
            reference_logits: Vec::new(),
            num_examples: images.num_examples() as u64,
            steps,
            loss_first: 1.0,
            loss_last: 1.0,
        })
    }
}

/// A tenth of the value is called accuracy here.
fn subject() -> CellSubject {
    CellSubject {
        start: weights(0.0),
        learners: (0..CLIENTS).map(|_| Box::new(Toy) as Box<dyn Learner>).collect(),
        judge: Box::new(|weights| Ok(f64::from(weights.tensors()[0].data[0]) / 10.0)),
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
    }
}

fn cell() -> Cell {
    "mnist/labels2/fedavg".parse().unwrap()
}

fn run(folder: &Path, rounds: u64) -> Result<CellRecord, ExperimentError> {
    run_cell(&cell(), &options(folder, rounds), &train(), subject(), &mut |_| {})
}

fn accuracies(record: &CellRecord) -> Vec<f64> {
    record.curve.iter().map(|at| at.accuracy).collect()
}

/// Two edges of five devices each and a cloud come to what one server with all ten clients would.
#[test]
fn the_mean_of_the_sites_means_is_the_mean_of_all_clients() {
    let folder = tempfile::tempdir().unwrap();
    let record = run(folder.path(), 3).unwrap();
    let train = train();
    let split = split_by_labels(&train.labels, 10, CLIENTS, 2, 1).unwrap();
    let clients: Vec<Images> = split.iter().map(|rows| train.choose(rows)).collect();
    let sizes: Vec<usize> = clients.iter().map(Images::num_examples).collect();
    assert_eq!(record.client_sizes, sizes);
    assert!(sizes.iter().max() > sizes.iter().min(), "else any mean would do: {sizes:?}");
    let mut flat = vec![0.0_f32];
    for _ in 0..3 {
        let start = flat[flat.len() - 1];
        let learned = clients.iter().map(|images| {
            let steps = 2 * images.num_examples().div_ceil(BATCH);
            let at = (0..steps).fold(start, |at, _| at + (mean_label(images) - at) / 16.0);
            f64::from(at) * images.num_examples() as f64
        });
        flat.push((learned.sum::<f64>() / 3_000.0) as f32);
    }
    for (ours, flat) in accuracies(&record).iter().zip(&flat) {
        assert!((ours - f64::from(*flat) / 10.0).abs() < 1e-6, "{ours} {flat}");
    }
    assert!(record.audit.unwrap().verified && record.is_finished());
    assert!(record.curve[1..].iter().all(|at| at.bytes_up > 0));
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
    let settings = of("mnist/iid/fedavg");
    assert!(!settings.strategy.clip_norms && settings.strategy.max_share >= 1.0);
    assert_eq!(settings.round.rounds, 5);
}
