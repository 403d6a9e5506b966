//! The table of a federated benchmark: a cell run again beside its recorded curve, and one whose
//! process is killed in the middle.
#![cfg(all(feature = "cli", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use gaisnet::data::Cache;
use gaisnet::data::images::{Dataset, ImageSet, fashion_mnist_dirichlet};
use gaisnet::experiment::niid::{Broker, Cell, CellOptions, CellRecord, Judged, run_cell, subject};

fn set_or_skip(set: ImageSet) -> Option<Dataset> {
    let found = set.cached(&Cache::from_env().unwrap()).unwrap();
    if found.is_none() {
        support::skip(&format!("the set {0} is missing: gaisnet data fetch {0}", set.name()));
    }
    found
}

#[test]
fn the_sets_are_what_they_say_and_the_fixed_split_has_the_published_labels() {
    for set in ImageSet::ALL {
        let Some(data) = set_or_skip(set) else { continue };
        assert_eq!((data.train.num_examples(), data.test.num_examples()), (60_000, 10_000));
        assert_eq!((data.train.width, data.train.height, data.train.classes), (28, 28, 10));
        let counts = |labels: &[u8]| -> Vec<usize> {
            let mut counts = vec![0; 10];
            for label in labels {
                counts[usize::from(*label)] += 1;
            }
            counts
        };
        match set {
            ImageSet::FashionMnist => {
                assert_eq!(counts(&data.test.labels), [1_000; 10]);
                let first = data.train.choose(&fashion_mnist_dirichlet()[0]);
                assert_eq!(counts(&first.labels), [1311, 1134, 31, 2363, 1531, 0, 0, 0, 0, 0]);
            }
            ImageSet::Mnist => {
                let expected = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009];
                assert_eq!(counts(&data.test.labels), expected);
            }
        }
    }
}

/// 1,000 images a client, two rounds of three passes. The curve was recorded on two cores; other
/// processors round otherwise, which so short a run feels a little.
#[test]
fn a_short_cell_has_its_recorded_curve() {
    let Some(Dataset { train, test }) = set_or_skip(ImageSet::FashionMnist) else { return };
    let folder = tempfile::tempdir().unwrap();
    let cell: Cell = "fashion-mnist/dir0.5/fedavg".parse().unwrap();
    let options = CellOptions {
        folder: folder.path().to_owned(),
        rounds: 2,
        local_epochs: 3,
        seed: 1,
        lanes: 2,
        most_images: Some(1_000),
        patience_s: 600,
        broker: None,
        processes: None,
    };
    let subject = subject(&cell, test, options.seed).unwrap();
    let record = run_cell(&cell, &options, &train, subject, &mut |_| {}).unwrap();
    let curve: Vec<f64> = record.curve.iter().map(|at| at.accuracy).collect();
    assert_eq!(curve.len(), RECORDED.len());
    for (ours, recorded) in curve.iter().zip(RECORDED) {
        assert!((ours - recorded).abs() < 0.02, "{curve:?}, recorded {RECORDED:?}");
    }
    // 177,704 bytes as f32, packed by zstd, and the messages around it.
    for at in &record.curve[1..] {
        assert!((100_000..200_000).contains(&at.bytes_up), "{at:?}");
    }
    assert!(record.audit.unwrap().verified);
}

/// 200 images a client, one round of one pass, judged on 1,000 images: the record of each strategy.
#[test]
fn each_strategy_runs_a_round_and_sends_what_it_says() {
    let Some(Dataset { train, test }) = set_or_skip(ImageSet::FashionMnist) else { return };
    let test = test.choose(&(0..1_000).collect::<Vec<_>>());
    let folder = tempfile::tempdir().unwrap();
    let run = |strategy: &str| -> CellRecord {
        let cell: Cell = format!("fashion-mnist/dir0.5/{strategy}").parse().unwrap();
        let options = CellOptions {
            folder: folder.path().join(strategy),
            rounds: 1,
            local_epochs: 1,
            seed: 1,
            lanes: 2,
            most_images: Some(200),
            patience_s: 600,
            broker: None,
            processes: None,
        };
        let subject = subject(&cell, test.clone(), options.seed).unwrap();
        let record = run_cell(&cell, &options, &train, subject, &mut |_| {}).unwrap();
        let accuracy = record.curve[1].accuracy;
        assert!(accuracy > 0.0 && accuracy < 1.0, "{strategy} {accuracy}");
        assert!(record.audit.unwrap().verified && record.is_finished());
        record
    };
    let [average, distill, proto, split, coarse] =
        ["fedavg", "feddistill", "fedproto", "splitfed", "hfsl"].map(run);
    let up = |record: &CellRecord| record.bytes_up_per_client_round();
    // Means of ten classes instead of 44,426 values; embeddings are wider than logits.
    assert!(20 * up(&distill) < up(&average), "{} {}", up(&distill), up(&average));
    assert!(10 * up(&proto) < up(&average), "{} {}", up(&proto), up(&average));
    assert!(up(&distill) < up(&proto));
    for own in [&distill, &proto] {
        assert_eq!((own.judged, own.halves), (Judged::MeanOfOwnModels, None));
    }
    // Exact halves learn what the whole learns; eight bits about the same.
    assert!((split.curve[1].accuracy - average.curve[1].accuracy).abs() < 0.005);
    assert!((coarse.curve[1].accuracy - average.curve[1].accuracy).abs() < 0.05);
    assert_eq!((split.judged, coarse.judged), (Judged::CommonModel, Judged::CommonModel));
    let [exact, eight] = [&split, &coarse].map(|record| record.halves.unwrap());
    assert_eq!((exact.values, exact.resident, exact.trained), (44_426, 2_572, 2_572));
    assert_eq!((exact.activation_bytes_per_image, eight.activation_bytes_per_image), (1_024, 258));
    // Each image once, and little else; zstd makes less of it.
    let images: usize = split.client_sizes.iter().sum();
    for record in [&split, &coarse] {
        let coded = record.halves.unwrap().activation_bytes_per_image * images as u64 / 10;
        eprintln!("{}: {} bytes up, {coded} of them activations", record.strategy, up(record));
        assert!((coded / 4..coded + 40_000).contains(&up(record)), "{} {coded}", up(record));
    }
    assert!(2 * up(&coarse) < up(&split), "{} {}", up(&coarse), up(&split));
}

/// 60 images a client, three rounds of one pass, judged on 1,000 images.
#[test]
fn nodes_that_are_processes_learn_to_the_last_digit_what_they_learn_in_one() {
    let Some(Dataset { train, test }) = set_or_skip(ImageSet::FashionMnist) else { return };
    let Some(mosquitto) = support::Mosquitto::start() else { return };
    let test = test.choose(&(0..1_000).collect::<Vec<_>>());
    let room = tempfile::tempdir().unwrap();
    let run = |strategy: &str, name: &str, rounds, broker: Option<Broker>, apart: bool| {
        let cell: Cell = format!("fashion-mnist/dir0.5/{strategy}").parse().unwrap();
        let options = CellOptions {
            folder: room.path().join(strategy).join(name),
            rounds,
            local_epochs: 1,
            seed: 1,
            lanes: 2,
            most_images: Some(60),
            patience_s: 600,
            broker,
            processes: apart.then(|| env!("CARGO_BIN_EXE_gaisnet").into()),
        };
        let subject = subject(&cell, test.clone(), options.seed).unwrap();
        run_cell(&cell, &options, &train, subject, &mut |_| {}).unwrap()
    };
    let curve =
        |record: &CellRecord| -> Vec<f64> { record.curve.iter().map(|at| at.accuracy).collect() };
    let together = run("fedavg", "together", 3, None, false);
    assert!(together.peak_rss_mib.is_empty(), "they share one process");
    let broker = Broker { host: "127.0.0.1".into(), port: mosquitto.port };
    let begun = run("fedavg", "apart", 2, Some(broker), true);
    assert_eq!(curve(&begun), curve(&together)[..3]);
    // It goes on with other processes, over a broker of their own.
    let apart = run("fedavg", "apart", 3, None, true);
    assert_eq!(curve(&apart), curve(&together));
    assert!(apart.audit.unwrap().verified && apart.is_finished());
    assert!(apart.curve[1..].iter().all(|at| at.bytes_up > 0), "{:?}", apart.curve);
    let nodes: Vec<&str> = apart.peak_rss_mib.keys().map(String::as_str).collect();
    assert_eq!(nodes[..3], ["cloud", "edge-north", "edge-south"]);
    assert_eq!(nodes.len(), 13);
    eprintln!("{:?}", apart.peak_rss_mib);
    assert!(apart.peak_rss_mib.values().all(|mib| *mib > 1.0), "{:?}", apart.peak_rss_mib);
    // Ten models of their own, and halves of one.
    for strategy in ["feddistill", "splitfed"] {
        let [together, apart] = [false, true]
            .map(|apart| run(strategy, if apart { "apart" } else { "together" }, 1, None, apart));
        assert_eq!(curve(&apart), curve(&together), "{strategy}");
        assert!(apart.audit.unwrap().verified && apart.is_finished());
    }
}

#[test]
fn a_killed_run_goes_on_in_the_middle_of_its_cell() {
    if set_or_skip(ImageSet::Mnist).is_none() {
        return;
    }
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("out");
    let program = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gaisnet"));
        command.args(["experiment", "run", "niid", "--quick", "--json", "--cell", CELL, "--out"]);
        command.arg(&out).args(more).stderr(Stdio::null());
        command
    };
    let mut first = program(&["--rounds", "400"]).stdout(Stdio::null()).spawn().unwrap();
    let record = |folder: &Path| CellRecord::read(&folder.join(CELL.replace('/', "-"))).unwrap();
    // Five minutes at most: a busy machine takes its time.
    let came = (0..6_000).any(|_| {
        std::thread::park_timeout(Duration::from_millis(50));
        record(&out).is_some_and(|at| at.rounds_done() >= 2)
    });
    assert!(came, "two rounds didn't come");
    first.kill().unwrap(); // SIGKILL
    first.wait().unwrap();
    let before = record(&out).unwrap();
    let rounds = (before.rounds_done() + 3).to_string();
    let rest = program(&["--rounds", &rounds, "--resume"]).output().unwrap();
    assert!(rest.status.success());
    let json: serde_json::Value = serde_json::from_slice(&rest.stdout).unwrap();
    let cell = &json["cells"][0];
    assert_eq!((&cell["finished"], cell["rounds_done"].to_string()), (&true.into(), rounds));
    assert_eq!(cell["audit"]["verified"], true);
    let after = record(&out).unwrap();
    assert_eq!(after.curve[..before.curve.len()], before.curve[..], "what was done stays");
    let rounds: Vec<u64> = after.curve.iter().map(|at| at.round).collect();
    assert_eq!(rounds, (0..=after.rounds_done()).collect::<Vec<_>>(), "no round is missing");
    let refused = program(&["--rounds", "9"]).output().unwrap();
    assert!(!refused.status.success(), "without --resume the folder is left alone");
}

const CELL: &str = "mnist/iid/fedavg";
const RECORDED: [f64; 3] = [0.1, 0.2031, 0.4863];
