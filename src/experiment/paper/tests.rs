use super::*;
use crate::data::bearings::Dataset;
use crate::data::images;
use crate::learn::{Images, physics};
use crate::rng::Stream;

/// Windows of the physics that the base knows, in the place of recordings.
fn recordings() -> Material {
    let windows = |n, seed| physics::windows(&mut Stream::new(seed, "test"), n);
    let plants: Vec<Windows> = (1..=4).map(|seed| windows(24, seed)).collect();
    let mut pooled = Windows { x: Vec::new(), labels: Vec::new(), ..plants[0].clone() };
    for plant in &plants {
        pooled.x.extend_from_slice(&plant.x);
        pooled.labels.extend_from_slice(&plant.labels);
    }
    Material::bearings(Dataset { plants, pooled, test: windows(24, 9) })
}

/// Noise with labels.
fn images() -> Material {
    let mut stream = Stream::new(3, "test");
    let mut noise = |n: usize| Images {
        pixels: (0..n * 784).map(|_| u8::try_from(stream.below(256)).unwrap()).collect(),
        width: 28,
        height: 28,
        labels: (0..n).map(|row| u8::try_from(row % 10).unwrap()).collect(),
        classes: 10,
    };
    let mut set = |train, test| images::Dataset { train: noise(train), test: noise(test) };
    let fashion = set(400, 40);
    Material::images(&fashion, &set(100, 1))
}

fn run(folder: &std::path::Path, cell: &Cell) -> Result<Record, ExperimentError> {
    let options =
        CellOptions { folder: folder.to_owned(), lanes: 2, patience_s: 120, alone: false };
    let set = if cell.set == Set::Bearings { recordings() } else { images() };
    run_cell(cell, &set, &options, &mut |_| {})
}

fn cell(paper: Paper, arm: &str) -> Cell {
    paper.cells(true).into_iter().find(|cell| cell.arm == arm).unwrap()
}

fn of_images(paper: Paper, arm: &str) -> Cell {
    let of = |cell: &Cell| cell.set == Set::FashionMnist && cell.arm == arm;
    paper.cells(true).into_iter().find(of).unwrap()
}

#[test]
fn each_method_trains_what_it_is_called_after_and_a_finished_cell_is_not_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut trained = Vec::new();
    for arm in ["none", "head", "lora", "deep-prompts", "ia3", "bottleneck", "bitfit", "full"] {
        let record = run(folder.path(), &cell(Paper::B, arm)).unwrap();
        trained.push(record.values.trained);
        let rounds: Vec<u64> = record.curve.iter().map(|at| at.round).collect();
        assert_eq!(rounds, if arm == "none" { vec![0] } else { vec![0, 1] }, "{arm}");
        assert_eq!(record.bytes.is_some(), arm != "none");
        assert!(record.audit.is_none_or(|audit| audit.verified && audit.entries > 0));
        let file = folder.path().join(record.cell.name()).join("record.json");
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(run(folder.path(), &record.cell).unwrap().curve.len(), record.curve.len());
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "its seconds would be others");
    }
    let (d, blocks, ff) = (64, 3, 128);
    let head = 3 * d + 3;
    let values = run(folder.path(), &cell(Paper::B, "full")).unwrap().values;
    assert_eq!(trained[0], 0);
    assert_eq!(trained[1], head);
    assert_eq!(trained[2], head + blocks * 2 * 8 * (d + d));
    assert_eq!(trained[3], head + blocks * 8 * d);
    assert_eq!(trained[4], head + blocks * (2 * d + ff));
    assert_eq!(trained[5], head + blocks * 2 * (8 * d + 8 + d * 8 + d));
    assert_eq!((trained[7], values.on_device), (values.model, values.model));
    let other = Cell { learning_rate: 0.5, ..cell(Paper::B, "head") };
    assert_eq!(run(folder.path(), &other).unwrap_err().kind(), "other_run");
}

#[test]
fn a_split_cell_holds_little_on_devices_and_trains_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let fl = run(folder.path(), &cell(Paper::C, "fl")).unwrap();
    for arm in ["sl", "hfsl", "hfsl-f32"] {
        let split = run(folder.path(), &cell(Paper::C, arm)).unwrap();
        assert_eq!(split.values.trained, fl.values.trained, "{arm}");
        assert!(split.values.on_device * 5 < fl.values.on_device, "{arm}");
        assert!(split.bytes.unwrap().device_up > fl.bytes.unwrap().device_up, "{arm}: frames");
        assert_eq!(split.curve[0], fl.curve[0], "the same base, whole again");
    }
    let pooled = run(folder.path(), &cell(Paper::C, "cloud")).unwrap();
    assert_eq!((pooled.bytes, pooled.values.on_device), (None, 0));
}

#[test]
fn images_are_learned_by_nodes_and_in_one_place_from_the_same_base() {
    let folder = tempfile::tempdir().unwrap();
    let fl = run(folder.path(), &of_images(Paper::C, "fl")).unwrap();
    let pooled = run(folder.path(), &of_images(Paper::C, "cloud")).unwrap();
    assert_eq!(fl.curve[0], pooled.curve[0]);
    assert_eq!((fl.curve.len(), pooled.curve.len()), (2, 2));
    assert!(fl.audit.unwrap().verified);
    assert_eq!(fl.answers.example_bytes, 784);
    let prompts = run(folder.path(), &of_images(Paper::B, "deep-prompts")).unwrap();
    assert_eq!(prompts.values.trained, 10 * 48 + 10 + 3 * 8 * 48);
}

#[test]
fn how_devices_are_grouped_changes_who_is_where_and_not_who_has_what() {
    let folder = tempfile::tempdir().unwrap();
    let of = |arm: &str| {
        let cell = cell(Paper::E, arm);
        run(folder.path(), &Cell { devices: 4, deal: Deal::Labels(1), ..cell }).unwrap()
    };
    let (alike, random) = (of("2-sites-alike"), of("2-sites-random"));
    assert_eq!(alike.class_counts, random.class_counts);
    assert!(alike.spread_in_sites <= random.spread_in_sites);
    assert!(alike.audit.unwrap().verified);
}

#[test]
fn settings_are_those_of_the_cell() {
    for paper in [Paper::A, Paper::B, Paper::C, Paper::D, Paper::E] {
        for cell in paper.cells(false) {
            let settings = settings(&cell).unwrap();
            assert_eq!(settings.round.rounds, cell.rounds.max(1));
            assert_eq!(settings.split.cut.is_some(), matches!(cell.how, How::Split { .. }));
            let plan = plan_of(&settings);
            assert_eq!((plan.local_steps, plan.batch_size), (cell.local_steps, cell.batch_size));
        }
    }
}
