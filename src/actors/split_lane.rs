//! The threads of a split model's halves: a device's runs of the front, an edge's copies of the back.
//!
//! A thread owns its half and does one task after the other, giving the core up in between, so that
//! answers stay quick. What is said between the two is the business of `protocol/session.rs`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;

use super::figures::Figures;
use super::lanes::Lane;
use super::pace::Pace;
use super::workbench::job_of;
use crate::ids::{Digest, NodeId};
use crate::learn::{
    BackCopy, BackJob, ClassLogits, Examples, FrontRun, Layout, LearnError, SplitBack, SplitFront,
    TensorSet,
};
use crate::protocol::{BackEnd, BackTask, Backs, FrontEnd, FrontTask, update};
use crate::wire::{Coding, Plan};

/// Work for the lane of the front.
pub struct FrontRequest {
    /// What to do.
    pub task: FrontTask,
    /// Packed front of the adapter, to begin a run.
    pub adapter: Option<Vec<u8>>,
    /// What earlier compressions left out, to begin a run.
    pub residual: Option<Vec<u8>>,
    /// Gets the end, on the lane's thread.
    pub done: FrontDone,
}

/// Work for the lane of the backs.
pub struct BackRequest {
    /// For this device.
    pub device: NodeId,
    /// For this run of it.
    pub run: u64,
    /// What to do.
    pub task: BackTask,
    /// Packed whole adapter, to open a copy.
    pub adapter: Option<Vec<u8>>,
    /// Gets the end, on the lane's thread.
    pub done: BackDone,
}

/// Gets a front's end.
pub type FrontDone = Box<dyn FnOnce(Result<FrontEnd, &'static str>) + Send>;
/// Gets a back's end.
pub type BackDone = Box<dyn FnOnce(Result<BackEnd, &'static str>) + Send>;

/// A device's runs of its front: one at a time.
pub struct FrontRuns {
    me: NodeId,
    front: Box<dyn SplitFront>,
    data: Arc<Examples>,
    active: Option<ActiveRun>,
}

struct ActiveRun {
    number: u64,
    run: Box<dyn FrontRun>,
    start: TensorSet,
    plan: Plan,
    residual: Option<Vec<u8>>,
}

impl FrontRuns {
    /// Runs on this device's data.
    pub fn new(me: NodeId, front: Box<dyn SplitFront>, data: Arc<Examples>) -> Self {
        Self { me, front, data, active: None }
    }

    /// Does a task.
    ///
    /// # Errors
    /// A short word: the machine counts it.
    pub fn work(
        &mut self,
        task: FrontTask,
        adapter: Option<&[u8]>,
        residual: Option<Vec<u8>>,
    ) -> Result<FrontEnd, &'static str> {
        if let FrontTask::Begin { run, task } = task {
            self.active = None;
            let job = job_of(&task, adapter.unwrap_or_default(), None, None, &self.me)?;
            let begun = self.front.begin(&self.data, &job).map_err(|error| logged(&error))?;
            let end = FrontEnd::Begun(begun.begun());
            let (start, plan) = (job.start, task.plan);
            self.active = Some(ActiveRun { number: run, run: begun, start, plan, residual });
            return Ok(end);
        }
        let active = self.active.as_mut().filter(|active| active.number == task.run());
        let active = active.ok_or("unknown_run")?;
        match task {
            FrontTask::Begin { .. } => Err("unknown_run"),
            FrontTask::Forward { .. } => active
                .run
                .forward(&self.data)
                .map(FrontEnd::Smashed)
                .map_err(|error| logged(&error)),
            FrontTask::Head { output, .. } => {
                let (loss, gradient) = active.run.head(&output).map_err(|error| logged(&error))?;
                Ok(FrontEnd::Headed { loss, gradient })
            }
            FrontTask::Backward { gradient, squared, .. } => active
                .run
                .backward(&gradient, squared)
                .map(FrontEnd::Applied)
                .map_err(|error| logged(&error)),
            FrontTask::Finish { .. } => {
                let learned = active.run.adapter().map_err(|error| logged(&error))?;
                let residual = active.residual.as_deref();
                let packed = update::pack_delta(&active.start, &learned, &active.plan, residual);
                self.active = None;
                let (update, residual) = packed.map_err(|error| error.kind())?;
                Ok(FrontEnd::Learned { update, residual })
            }
        }
    }
}

/// An edge's copies of its back: one a device, or one for all of an offer.
pub struct BackCopies {
    back: Box<dyn SplitBack>,
    layout: Layout,
    backs: Backs,
    /// Run and offer of each device.
    runs: BTreeMap<NodeId, (u64, Digest)>,
    /// By device; under nobody the one that all share.
    copies: BTreeMap<Option<NodeId>, Copy>,
}

struct Copy {
    offer: Digest,
    start: TensorSet,
    back: Box<dyn BackCopy>,
}

impl BackCopies {
    /// No copy yet.
    pub fn new(back: Box<dyn SplitBack>, backs: Backs) -> Self {
        let layout = back.initial_adapter().layout();
        Self { back, layout, backs, runs: BTreeMap::new(), copies: BTreeMap::new() }
    }

    /// Does a task for a device's run.
    ///
    /// # Errors
    /// A short word: the machine counts it.
    pub fn work(
        &mut self,
        device: &NodeId,
        run: u64,
        task: BackTask,
        adapter: Option<&[u8]>,
    ) -> Result<BackEnd, &'static str> {
        let key = match self.backs {
            Backs::Each => Some(device.clone()),
            Backs::Shared => None,
        };
        if let BackTask::Open { offer, plan, class_targets, .. } = task {
            let there = key.is_none() && self.copies.get(&key).is_some_and(|c| c.offer == offer);
            if !there {
                let whole = update::unpack(adapter.unwrap_or_default()).map_err(|e| e.kind())?;
                let start = whole.filtered(|name| self.has(name));
                let job = BackJob {
                    start: start.clone(),
                    learning_rate: plan.learning_rate,
                    prox_mu: plan.prox_mu,
                    distill_lambda: plan.distill_lambda,
                    class_targets: class_targets.as_ref().map(ClassLogits::from),
                };
                let copy = self.back.open(&job).map_err(|error| logged(&error))?;
                self.copies.insert(key, Copy { offer, start, back: copy });
            }
            self.runs.insert(device.clone(), (run, offer));
            return Ok(BackEnd::Opened);
        }
        let known = self.runs.get(device).filter(|(number, _)| *number == run);
        let (_, offer) = known.ok_or("unknown_run")?;
        let copy = self.copies.get_mut(&key).filter(|copy| copy.offer == *offer);
        let Copy { start, back: copy, .. } = copy.ok_or("unknown_run")?;
        match task {
            BackTask::Open { .. } => Err("unknown_run"),
            BackTask::Step { settled, smashed, class_counts } => {
                copy.settle(device, settled).map_err(|error| logged(&error))?;
                copy.step(device, &smashed, &class_counts)
                    .map(BackEnd::Stepped)
                    .map_err(|error| logged(&error))
            }
            BackTask::Forward { settled, activations } => {
                copy.settle(device, settled).map_err(|error| logged(&error))?;
                copy.forward(device, &activations)
                    .map(BackEnd::Output)
                    .map_err(|error| logged(&error))
            }
            BackTask::Backward { gradient } => copy
                .backward(device, &gradient)
                .map(BackEnd::Stepped)
                .map_err(|error| logged(&error)),
            BackTask::Finish { settled } => {
                copy.settle(device, settled).map_err(|error| logged(&error))?;
                let learned = copy.adapter().map_err(|error| logged(&error))?;
                let delta = update::difference(&learned, start).map_err(|error| error.kind())?;
                let packed = update::pack(&delta, Coding::F32, 0).map_err(|error| error.kind())?;
                if key.is_some() {
                    self.copies.remove(&key);
                }
                Ok(BackEnd::Learned(packed))
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.layout.0.binary_search_by(|(own, _)| own.as_str().cmp(name)).is_ok()
    }
}

/// Starts the lane of a front, which trains at this `pace`.
///
/// # Errors
/// When the system gives no thread.
pub fn front_lane(
    mut runs: FrontRuns,
    figures: Arc<Figures>,
    pace: Arc<Pace>,
    capacity: usize,
) -> io::Result<Lane<FrontRequest>> {
    Lane::spawn("gaisnet-front", capacity, move |request: FrontRequest| {
        let FrontRequest { task, adapter, residual, done } = request;
        thread::yield_now();
        if matches!(task, FrontTask::Forward { .. }) {
            pace.wait(&figures);
        }
        let begun = pace.now();
        let end = runs.work(task, adapter.as_deref(), residual);
        pace.rest_since(begun);
        match &end {
            Ok(FrontEnd::Applied(_)) => figures.update(|view| view.train_steps += 1),
            Ok(FrontEnd::Headed { loss, .. }) => {
                figures.update(|view| view.loss = Some(f64::from(*loss)));
            }
            _ => {}
        }
        done(end);
    })
}

/// Starts the lane of the backs.
///
/// # Errors
/// When the system gives no thread.
pub fn back_lane(
    mut copies: BackCopies,
    figures: Arc<Figures>,
    capacity: usize,
) -> io::Result<Lane<BackRequest>> {
    Lane::spawn("gaisnet-back", capacity, move |request: BackRequest| {
        let BackRequest { device, run, task, adapter, done } = request;
        thread::yield_now();
        let end = copies.work(&device, run, task, adapter.as_deref());
        if let Ok(BackEnd::Stepped(step)) = &end {
            figures.update(|view| {
                view.train_steps += 1;
                view.loss = Some(f64::from(step.loss));
            });
        }
        done(end);
    })
}

fn logged(error: &LearnError) -> &'static str {
    tracing::warn!(%error, "a step of a split model failed");
    error.kind()
}
