//! A whole federation beside the plain loop: ten clients, two edges and a cloud over a real mosquitto in
//! one process, then as a process each; the fixed split of Fashion-MNIST, one local pass a round.
//!
//! The loop is the same learner on the same images without anything between: one thread for each of two
//! clients at a time, or two threads for one; the quicker of them is the reference.

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Mutex;

use gaisnet::data::Cache;
use gaisnet::data::images::{Dataset, ImageSet};
use gaisnet::experiment::niid::{
    Broker, CLIENTS, Cell, CellOptions, CellSubject, Learners, run_cell, subject,
};
use gaisnet::learn::{
    Accumulator, Control, Examples, Images, LearnError, Learner, Progress, TensorSet, TrainJob,
    Trained,
};
use gaisnet::telemetry::usage;
use gaisnet::torch::{CnnConfig, CnnLearner, CnnTrainerConfig};

use super::stats::{Effort, Row, time};
use super::support;

pub fn run(effort: Effort, report: &mut dyn FnMut(Row)) {
    let Some(broker) = support::Mosquitto::start() else { return };
    let data = ImageSet::FashionMnist.cached(&Cache::from_env().unwrap()).unwrap();
    let Some(Dataset { train, test }) = data else {
        return support::skip("Fashion-MNIST is missing: gaisnet data fetch fashion-mnist");
    };
    let cell: Cell = "fashion-mnist/dir0.5/fedavg".parse().unwrap();
    let most = (effort == Effort::Quick).then_some(64);
    let mut split = cell.deal(&train, 1).unwrap();
    for rows in &mut split {
        rows.truncate(most.unwrap_or(usize::MAX));
    }
    let clients: Vec<Images> = split.iter().map(|rows| train.choose(rows)).collect();
    let rounds = if effort == Effort::Quick { 2 } else { 10 };
    let options = |folder: &Path, rounds| CellOptions {
        folder: folder.to_owned(),
        rounds,
        local_epochs: 1,
        seed: 1,
        lanes: 2,
        most_images: most,
        patience_s: 600,
        broker: Some(Broker { host: "127.0.0.1".into(), port: broker.port }),
        processes: None,
    };

    // The judge works beside the loop, too, as a look at each version is no part of a federation.
    let folder = tempfile::tempdir().unwrap();
    let learning = subject(&cell, test.choose(&[0]), 1).unwrap();
    let record = run_cell(&cell, &options(folder.path(), rounds), &train, learning, &mut |_| {});
    let seconds = record.unwrap().seconds() / rounds as f64;
    let apart = time(|| plain(&clients, 2, 1, rounds)).as_secs_f64() / rounds as f64;
    let together = time(|| plain(&clients, 1, 2, rounds)).as_secs_f64() / rounds as f64;
    let plain_seconds = apart.min(together);
    let which = if apart <= together { "two lanes of a thread" } else { "one lane of two threads" };
    report(Row::new(
        "round of ten clients over mosquitto",
        (seconds, plain_seconds),
        "s",
        format!("plain loop, {which}; target <= 1.15"),
    ));

    let folder = tempfile::tempdir().unwrap();
    let idle = idle(subject(&cell, test.choose(&[0]), 1).unwrap());
    let record = run_cell(&cell, &options(folder.path(), 20), &train, idle, &mut |_| {}).unwrap();
    // The first round waits for connections.
    let took: Vec<f64> = record.curve.iter().skip(2).map(|at| at.seconds * 1e3).collect();
    let each = took.iter().sum::<f64>() / took.len() as f64;
    report(Row::new("round without training", (each, 150.0), "ms", "target 150 ms"));
    let peak = usage().map_or(f64::NAN, |usage| usage.peak_rss_mib());
    report(Row::new("peak memory of all nodes", (peak, 1_536.0), "MiB", "target 1.5 GiB"));

    let folder = tempfile::tempdir().unwrap();
    let program = Some(env!("CARGO_BIN_EXE_gaisnet").into());
    let options = CellOptions { processes: program, ..options(folder.path(), rounds) };
    let learning = subject(&cell, test.choose(&[0]), 1).unwrap();
    let record = run_cell(&cell, &options, &train, learning, &mut |_| {}).unwrap();
    report(Row::new(
        "the same round, a process each",
        (record.seconds() / rounds as f64, plain_seconds),
        "s",
        "plain loop; ours with the start of 13 processes",
    ));
    let peaks = record.peak_rss_mib.iter();
    let (node, largest) = peaks.max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    report(Row::new(
        "peak memory of the largest process",
        (*largest, 250.0),
        "MiB",
        format!("target 250 MiB; it is {node}"),
    ));
}

/// `lanes` clients at a time, the longest first, `threads` each; then their mean.
fn plain(clients: &[Images], lanes: usize, threads: u16, rounds: u64) -> TensorSet {
    let (mean, deviation) = ImageSet::FashionMnist.scale();
    let model = CnnConfig { classes: 10, mean, deviation };
    let threads = NonZeroU16::new(threads).unwrap();
    let config = CnnTrainerConfig { model, momentum: 0.9, weight_decay: 0.0, threads };
    let data: Vec<Examples> = clients.iter().map(|images| images.clone().into()).collect();
    let all: usize = clients.iter().map(Images::num_examples).sum();
    let mut weights = model.initial(1).unwrap();
    for round in 0..rounds {
        let mut queue: Vec<usize> = (0..clients.len()).collect();
        queue.sort_by_key(|at| clients[*at].num_examples());
        let (queue, learned) = (Mutex::new(queue), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    let mut learner = CnnLearner::new(config, 1).unwrap();
                    loop {
                        let Some(at) = queue.lock().unwrap().pop() else { break };
                        let job = job(weights.clone(), round * 100 + at as u64);
                        let trained = learner.train(&data[at], &job, &mut |_| Control::Continue);
                        learned.lock().unwrap().push((at, trained.unwrap().adapter));
                    }
                });
            }
        });
        let mut sum = Accumulator::new(&weights.layout()).unwrap();
        for (at, adapter) in learned.into_inner().unwrap() {
            let share = clients[at].num_examples() as f64 / all as f64;
            sum.add(share, &adapter).unwrap();
        }
        weights = sum.finish().unwrap();
    }
    weights
}

fn job(start: TensorSet, seed: u64) -> TrainJob {
    TrainJob { epochs: Some(1), ..TrainJob::plain(start, 1, 64, 0.01, seed) }
}

/// The same weights and messages, but nobody trains.
fn idle(subject: CellSubject) -> CellSubject {
    struct Idle(TensorSet);

    impl Learner for Idle {
        fn initial_adapter(&self) -> TensorSet {
            self.0.clone()
        }

        fn train(
            &mut self,
            data: &Examples,
            job: &TrainJob,
            progress: &mut dyn FnMut(Progress) -> Control,
        ) -> Result<Trained, LearnError> {
            progress(Progress { step: 1, loss: 1.0 });
            let mut adapter = job.start.clone();
            adapter.values_mut().flatten().for_each(|value| *value *= 0.99);
            Ok(Trained::of(adapter, data.num_examples(), &[1.0]))
        }
    }

    let idle = || Box::new(Idle(subject.start.clone())) as Box<dyn Learner>;
    let learners = Learners::Whole((0..CLIENTS).map(|_| idle()).collect());
    CellSubject { learners, judge: Box::new(|_| Ok(0.0)), model: "idle".into(), ..subject }
}
