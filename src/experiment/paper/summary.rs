//! Cells as arms: means over the seeds that are finished, and what was wanted of them.

use super::cell::{Cell, How, Set};
use super::plan::Paper;
use super::record::Record;
use crate::experiment::ExperimentError;
use crate::experiment::over::over;
use crate::report::{PaperArm, PaperCell, PaperCheck, PaperReport};

/// What has come of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// All of it.
    Finished(Box<Record>),
    /// It wasn't run, or was interrupted.
    NotRun,
    /// It ended with this error.
    Failed(String),
}

/// The report of a comparison, whatever there is of it.
///
/// # Errors
/// [`ExperimentError::Record`] when a record can't be told as JSON.
pub fn summary(paper: Paper, cells: &[(Cell, State)]) -> Result<PaperReport, ExperimentError> {
    let mut arms: Vec<PaperArm> = Vec::new();
    for (cell, _) in cells {
        if arms.iter().all(|arm| arm.name != cell.arm_name()) {
            arms.push(arm(&cell.arm_name(), cells));
        }
    }
    let mut told = Vec::with_capacity(cells.len());
    for (cell, state) in cells {
        let (state, record) = match state {
            State::Finished(record) => ("finished".to_owned(), serde_json::to_value(record)),
            State::NotRun => ("not run".to_owned(), Ok(serde_json::Value::Null)),
            State::Failed(why) => (format!("failed: {why}"), Ok(serde_json::Value::Null)),
        };
        let record = record.map_err(|e| ExperimentError::Record("".into(), e.to_string()))?;
        told.push(PaperCell { name: cell.name(), state, record });
    }
    Ok(PaperReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("GAISNET_COMMIT").unwrap_or("unknown").to_owned(),
        experiment: paper.name().to_owned(),
        question: paper.question().to_owned(),
        checks: if paper == Paper::C { checks(cells) } else { Vec::new() },
        arms,
        cells: told,
    })
}

fn finished<'a>(
    arm: &'a str,
    cells: &'a [(Cell, State)],
) -> impl Iterator<Item = &'a Record> + Clone {
    cells.iter().filter(move |(cell, _)| cell.arm_name() == arm).filter_map(
        |(_, state)| match state {
            State::Finished(record) => Some(&**record),
            State::NotRun | State::Failed(_) => None,
        },
    )
}

fn arm(name: &str, cells: &[(Cell, State)]) -> PaperArm {
    let records = finished(name, cells);
    let of = cells.iter().filter(|(cell, _)| cell.arm_name() == name).count();
    let Some(first) = records.clone().next() else {
        return PaperArm { name: name.to_owned(), of, ..PaperArm::default() };
    };
    let mean = |figure: &dyn Fn(&Record) -> f64| over(records.clone().map(figure).collect()).mean;
    let last = |record: &Record| record.last().map_or(f64::NAN, |at| at.macro_f1);
    let macro_f1 = over(records.clone().map(last).collect());
    let rounds = first.curve.iter().map(|at| at.round);
    let curve = rounds.filter_map(|round| {
        let at = |record: &Record| record.curve.iter().find(|at| at.round == round).copied();
        let scores: Option<Vec<f64>> =
            records.clone().map(|record| Some(at(record)?.macro_f1)).collect();
        Some((round, over(scores?).mean))
    });
    let bytes = first.bytes.map(|_| {
        let of = |pick: fn(&super::Bytes) -> u64| {
            whole(mean(&|record: &Record| record.bytes.as_ref().map_or(0.0, |b| to_f64(pick(b)))))
        };
        (of(|b| b.device_up), of(|b| b.device_down), of(|b| b.edge_up))
    });
    let share = |part: u64, of: u64| to_f64(part) / to_f64(of.max(1));
    let answer = |record: &Record| {
        1_000.0 * record.answers.cost.cpu_seconds / to_f64(record.answers.count.max(1))
    };
    let memory: Option<Vec<f64>> = records.clone().map(|record| record.peak_memory_mib).collect();
    PaperArm {
        name: name.to_owned(),
        seeds: records.clone().count(),
        of,
        macro_f1: Some((macro_f1.mean, macro_f1.plus_minus)),
        accuracy: mean(&|record| record.last().map_or(f64::NAN, |at| at.accuracy)),
        macro_f1_untrained: mean(&|record| record.curve.first().map_or(f64::NAN, |at| at.macro_f1)),
        curve: curve.collect(),
        trained: first.values.trained,
        on_device: (
            share(first.values.on_device, first.values.model),
            share(first.values.trained_on_device, first.values.trained),
        ),
        bytes,
        training: (
            mean(&|record| record.training.seconds),
            mean(&|record| record.training.cpu_seconds),
        ),
        peak_memory_mib: memory.map(|memory| over(memory).mean),
        answer_cpu_ms: mean(&answer),
        spread_in_sites: mean(&|record| record.spread_in_sites),
    }
}

/// What was wanted of the hybrid before it was run.
fn checks(cells: &[(Cell, State)]) -> Vec<PaperCheck> {
    let arms = ["bearings-fl", "bearings-hfsl", "bearings-hfsl-f32"].map(|name| arm(name, cells));
    let [fl, hfsl, f32_arm] = &arms;
    let complete = |arm: &PaperArm| arm.seeds == arm.of && arm.of > 0;
    let mut checks = Vec::new();
    let mut check = |what: &str, wanted: &str, got: Option<(String, bool)>| {
        let met = got.as_ref().map(|(_, met)| *met);
        let got = got.map(|(got, _)| got).unwrap_or_default();
        checks.push(PaperCheck { what: what.into(), wanted: wanted.into(), got, met });
    };
    let both = complete(fl) && complete(hfsl);
    let below = fl.macro_f1.zip(hfsl.macro_f1).filter(|_| both).map(|((fl, _), (hfsl, _))| {
        let points = 100.0 * (fl - hfsl);
        (format!("{points:.1} points"), points <= 2.0)
    });
    check("macro-F1 of fl less that of hfsl, at equal epochs", "at most 2 points", below);
    let share = |of: f64| complete(hfsl).then(|| (format!("{:.1} %", 100.0 * of), of <= 0.2));
    check("part of the model that a device holds in hfsl", "at most 20 %", share(hfsl.on_device.0));
    check(
        "part of the model that a device trains in hfsl",
        "at most 20 %",
        share(hfsl.on_device.1),
    );
    let one = finished(&hfsl.name, cells).next();
    let frames = |record: &Record| {
        record.bytes.map(|bytes| to_f64(bytes.device_up.saturating_sub(bytes.work)))
    };
    let ratio = |got: f64| (format!("{got:.3}"), got <= 0.25);
    check(
        "what a device publishes beside its work in hfsl, of raw f32 activations",
        "at most 0.25",
        one.and_then(|record| Some(ratio(frames(record)? / activations(&record.cell)?))),
    );
    let beside = one.zip(finished(&f32_arm.name, cells).next());
    check(
        "the same, of what it publishes where activations travel as f32",
        "at most 0.25",
        beside.and_then(|(int8, f32)| Some(ratio(frames(int8)? / frames(f32)?))),
    );
    checks
}

/// Bytes of a round's activations at the cut as f32, as a device would send them uncoded; of bearings.
fn activations(cell: &Cell) -> Option<f64> {
    let model = crate::torch::SignalTransformerConfig::default();
    let a_token = 4.0 * f64::from(model.block.d_model);
    let steps = f64::from(cell.local_steps) * f64::from(cell.batch_size);
    let split = matches!(cell.how, How::Split { .. }) && cell.set == Set::Bearings;
    split.then(|| steps * f64::from(model.tokens()) * a_token)
}

#[expect(clippy::cast_precision_loss, reason = "figures to show")]
fn to_f64(n: u64) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a mean of counts; `as` saturates"
)]
fn whole(mean: f64) -> u64 {
    mean.round() as u64
}

#[cfg(test)]
mod tests {
    use super::super::{Answers, Bytes, Cost, Point, Values};
    use super::*;

    fn record(cell: &Cell, macro_f1: f64, device_up: u64) -> Record {
        let point = |round, macro_f1| Point { round, macro_f1, accuracy: macro_f1 };
        Record {
            cell: cell.clone(),
            config: "ab".into(),
            commit: "aae5a19".into(),
            machine: "a machine".into(),
            model: "a model".into(),
            class_counts: Vec::new(),
            sites: Vec::new(),
            spread_in_sites: 0.0,
            values: Values { model: 100, trained: 20, on_device: 14, trained_on_device: 5 },
            curve: vec![point(0, 0.3), point(5, macro_f1)],
            bytes: Some(Bytes { device_up, work: 100, ..Bytes::default() }),
            examples_bytes_per_device: 0,
            training: Cost { seconds: 10.0, cpu_seconds: 15.0 },
            peak_memory_mib: None,
            answers: Answers::default(),
            audit: None,
        }
    }

    fn all(score: impl Fn(&Cell) -> Option<f64>) -> Vec<(Cell, State)> {
        let state = |cell: Cell| {
            let bytes = if cell.arm == "hfsl" { 1_100 } else { 4_100 };
            let state = match score(&cell) {
                Some(score) => State::Finished(Box::new(record(&cell, score, bytes))),
                None => State::NotRun,
            };
            (cell, state)
        };
        Paper::C.cells(false).into_iter().map(state).collect()
    }

    #[test]
    fn what_was_wanted_is_told_as_it_came_out() {
        let by = |hfsl: f64| {
            let cells = all(move |cell| Some(if cell.arm == "hfsl" { hfsl } else { 0.9 }));
            summary(Paper::C, &cells).unwrap()
        };
        let met = |report: &PaperReport| report.checks.iter().map(|c| c.met).collect::<Vec<_>>();
        // 1,000 bytes beside the work of 4,000 are a quarter; 20 * 32 * 42 * 256 bytes are far more.
        let yes = Some(true);
        assert_eq!(met(&by(0.885)), [yes, yes, Some(false), yes, yes]);
        assert_eq!(met(&by(0.875))[0], Some(false));
        let arm = &by(0.885).arms[0];
        assert_eq!((arm.name.as_str(), arm.seeds, arm.of), ("bearings-fl", 3, 3));
        assert_eq!(arm.macro_f1.unwrap(), (0.9, Some(0.0)));
        assert_eq!(arm.curve.len(), 2);
    }

    #[test]
    fn missing_cells_are_missing_and_nothing_is_concluded_from_the_rest() {
        let cells = all(|cell| (cell.seed == 1 && cell.arm != "sl").then_some(0.5));
        let report = summary(Paper::C, &cells).unwrap();
        assert_eq!(report.checks[0].met, None, "one seed of three");
        let sl = report.arms.iter().find(|arm| arm.name == "bearings-sl").unwrap();
        assert_eq!((sl.seeds, sl.of, sl.macro_f1), (0, 3, None));
        let open = report.cells.iter().filter(|cell| cell.state == "not run").count();
        assert_eq!(open, cells.len() - 7);
    }
}
