//! Where long work is done: a port, the one on lanes, and one that works at once for tests.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::figures::Figures;
use super::lanes::{EndOnPanic, Lane, TrainRequest};
use super::pace::Pace;
use super::split_lane::{BackCopies, BackDone, BackRequest, FrontDone, FrontRequest, FrontRuns};
use crate::ids::{Digest, NodeId};
use crate::learn::{
    ClassLogits, Control, Examples, LearnError, Learner, Lesson, MIN_MEMBERS, Prototypes,
    ReferenceSet, TensorSet, TrainJob, Trained, class_spectra,
};
use crate::protocol::knowledge::{self, Knowing};
use crate::protocol::{
    BackTask, CombineJob, DistilTask, FrontTask, Input, TrainTask, Work, update,
};
use crate::protocol::{heads, spectra};
use crate::rng::Stream;
use crate::store::BlobReader;
use crate::wire::{ClassSummary, Coding, KnowledgePlan, Merging, Plan};

/// Work with the blobs that it needs.
#[derive(Debug)]
pub enum Task {
    /// Train on the device's own data.
    Train {
        /// What to do.
        task: TrainTask,
        /// Packed adapter to start from.
        adapter: Vec<u8>,
        /// What earlier compressions left out.
        residual: Option<Vec<u8>>,
        /// What the tiers above say, packed, in a round of knowledge.
        knowledge: Option<Vec<u8>>,
    },
    /// Teach this node's own model what its members' knowledge was merged to.
    Distil {
        /// What to do.
        task: DistilTask,
        /// Packed adapter of the model.
        adapter: Vec<u8>,
        /// Packed knowledge from above.
        offered: Option<Vec<u8>>,
    },
    /// Run the front of a split model.
    Front {
        /// What to do.
        task: FrontTask,
        /// Packed front of the adapter, to begin a run.
        adapter: Option<Vec<u8>>,
        /// What earlier compressions left out, to begin a run.
        residual: Option<Vec<u8>>,
    },
    /// Run the back of a split model.
    Back {
        /// For this device.
        device: NodeId,
        /// For this run of it.
        run: u64,
        /// What to do.
        task: BackTask,
        /// Packed whole adapter, to open a copy.
        adapter: Option<Vec<u8>>,
    },
    /// Combine contributions.
    Combine {
        /// What to combine.
        job: CombineJob,
        /// Gives the blobs that the job names, one at a time: a round may have a thousand members.
        blobs: Box<dyn BlobReader>,
    },
}

/// Gets the input that the machine is waiting for, or why the node can't go on.
pub type Done = Box<dyn FnOnce(Result<Input, String>) + Send>;

/// Does long work somewhere else and calls `done` with its end.
pub trait Workbench: Send {
    /// Takes a task; `done` is called exactly once, also when the work can't be done.
    fn start(&mut self, task: Task, done: Done);
}

/// Trains on a lane, combines on a thread of its own.
pub struct LaneBench {
    me: NodeId,
    /// None on nodes that don't train.
    train: Option<(Lane<TrainRequest>, Arc<Examples>)>,
    half: Half<Lane<FrontRequest>, Lane<BackRequest>>,
    reference: Option<Arc<ReferenceSet>>,
    figures: Arc<Figures>,
    pace: Arc<Pace>,
}

/// What a node has of a split model.
pub enum Half<F, B> {
    /// Models aren't split here.
    None,
    /// The front: a device.
    Front(F),
    /// The backs: an edge.
    Back(B),
}

/// Works at once, on the caller's thread: for networks under a paused clock.
pub struct InlineBench {
    me: NodeId,
    train: Option<(Box<dyn Learner>, Examples)>,
    half: Half<FrontRuns, BackCopies>,
    reference: Option<Arc<ReferenceSet>>,
}

impl LaneBench {
    /// A bench for a node; whoever has a model that learns brings a lane and its data (an owner's own model
    /// has none), and trains at this `pace`.
    pub fn new(
        me: NodeId,
        train: Option<(Lane<TrainRequest>, Arc<Examples>)>,
        figures: Arc<Figures>,
        pace: Arc<Pace>,
    ) -> Self {
        Self { me, train, half: Half::None, reference: None, figures, pace }
    }

    /// The same with a half of a split model.
    #[must_use]
    pub fn with_half(self, half: Half<Lane<FrontRequest>, Lane<BackRequest>>) -> Self {
        Self { half, ..self }
    }

    /// The same for rounds of knowledge on these reference inputs.
    #[must_use]
    pub fn with_reference(mut self, reference: Option<Arc<ReferenceSet>>) -> Self {
        self.reference = reference;
        self
    }

    /// Queues a job; `end` makes the machine's input of its outcome.
    fn submit(
        &self,
        job: impl FnOnce() -> Result<TrainJob, &'static str> + Send + 'static,
        done: Done,
        end: impl FnOnce(Result<Trained, &'static str>) -> Input + Send + 'static,
    ) {
        let Some((lane, data)) = &self.train else {
            return done(Ok(end(Err("no_learner"))));
        };
        let figures = Arc::clone(&self.figures);
        // Whichever of the two ways out is taken, it is taken once.
        let once = Arc::new(std::sync::Mutex::new(Some((done, end))));
        let finish = Arc::clone(&once);
        let request = TrainRequest {
            data: Arc::clone(data),
            job: Box::new(job),
            begin: Box::new({
                let (figures, pace) = (Arc::clone(&figures), Arc::clone(&self.pace));
                move || pace.wait(&figures)
            }),
            progress: Box::new({
                let (figures, pace) = (Arc::clone(&figures), Arc::clone(&self.pace));
                let mut begun = None;
                move |_| {
                    begun = Some(pace.step(begun, &figures));
                    figures.update(|view| view.train_steps += 1);
                    Control::Continue
                }
            }),
            done: Box::new(move |trained| {
                if let Ok(trained) = &trained {
                    let loss = f64::from(trained.loss_last);
                    figures.update(|view| view.loss = Some(loss));
                }
                call(&finish, trained);
            }),
        };
        if let Err(error) = lane.submit(request) {
            call(&once, Err(error.kind()));
        }
    }
}

impl InlineBench {
    /// A bench for a node; devices bring a learner and their data.
    pub fn new(me: NodeId, train: Option<(Box<dyn Learner>, Examples)>) -> Self {
        Self { me, train, half: Half::None, reference: None }
    }

    /// The same with a half of a split model.
    #[must_use]
    pub fn with_half(self, half: Half<FrontRuns, BackCopies>) -> Self {
        Self { half, ..self }
    }

    /// The same for rounds of knowledge on these reference inputs.
    #[must_use]
    pub fn with_reference(mut self, reference: Option<Arc<ReferenceSet>>) -> Self {
        self.reference = reference;
        self
    }

    fn train(&mut self, job: Result<TrainJob, &'static str>) -> Result<Trained, &'static str> {
        let (learner, data) = self.train.as_mut().ok_or("no_learner")?;
        learner.train(data, &job?, &mut |_| Control::Continue).map_err(|error| error.kind())
    }
}

impl Workbench for LaneBench {
    fn start(&mut self, task: Task, done: Done) {
        match task {
            Task::Combine { job, blobs } => {
                std::thread::spawn(move || {
                    let _guard = EndOnPanic;
                    done(combined(&job, blobs.as_ref()));
                });
            }
            Task::Front { task, adapter, residual } => {
                let run = task.run();
                let input = move |end| Input::Front { run, end };
                let once = Arc::new(std::sync::Mutex::new(Some((done, input))));
                let finish = Arc::clone(&once);
                let answer: FrontDone = Box::new(move |end| call(&finish, end));
                let request = FrontRequest { task, adapter, residual, done: answer };
                let sent = match &self.half {
                    Half::Front(lane) => lane.submit(request).map_err(|error| error.kind()),
                    Half::None | Half::Back(_) => Err("no_front"),
                };
                if let Err(reason) = sent {
                    call(&once, Err(reason));
                }
            }
            Task::Back { device, run, task, adapter } => {
                let of = device.clone();
                let input = move |end| Input::Back { device: of, run, end };
                let once = Arc::new(std::sync::Mutex::new(Some((done, input))));
                let finish = Arc::clone(&once);
                let answer: BackDone = Box::new(move |end| call(&finish, end));
                let request = BackRequest { device, run, task, adapter, done: answer };
                let sent = match &self.half {
                    Half::Back(lane) => lane.submit(request).map_err(|error| error.kind()),
                    Half::None | Half::Front(_) => Err("no_back"),
                };
                if let Err(reason) = sent {
                    call(&once, Err(reason));
                }
            }
            Task::Train { task, adapter, residual, knowledge } => {
                let (set, me, asked) = (self.reference.clone(), self.me.clone(), task.clone());
                let start = update::unpack(&adapter).map_err(|error| error.kind());
                let data = self.train.as_ref().map(|(_, data)| Arc::clone(data));
                let job =
                    move || job_of(&asked, &adapter, knowledge.as_deref(), set.as_deref(), &me);
                self.submit(job, done, move |trained| {
                    let work = data.ok_or("no_learner").and_then(|data| {
                        work_of(&task, &start?, &data, trained?, residual.as_deref())
                    });
                    Input::Worked { offer: task.offer, work }
                });
            }
            Task::Distil { task, adapter, offered } => {
                let (set, me, asked) = (self.reference.clone(), self.me.clone(), task.clone());
                let job = move || {
                    distil_job_of(&asked, &adapter, offered.as_deref(), set.as_deref(), &me)
                };
                self.submit(job, done, move |trained| {
                    let outcome = trained.and_then(|trained| learned_of(&task, trained));
                    Input::Distilled { offer: task.offer, outcome }
                });
            }
        }
    }
}

impl Workbench for InlineBench {
    fn start(&mut self, task: Task, done: Done) {
        done(match task {
            Task::Combine { job, blobs } => combined(&job, blobs.as_ref()),
            Task::Front { task, adapter, residual } => {
                let run = task.run();
                let end = match &mut self.half {
                    Half::Front(runs) => runs.work(task, adapter.as_deref(), residual),
                    Half::None | Half::Back(_) => Err("no_front"),
                };
                Ok(Input::Front { run, end })
            }
            Task::Back { device, run, task, adapter } => {
                let end = match &mut self.half {
                    Half::Back(copies) => copies.work(&device, run, task, adapter.as_deref()),
                    Half::None | Half::Front(_) => Err("no_back"),
                };
                Ok(Input::Back { device, run, end })
            }
            Task::Train { task, adapter, residual, knowledge } => {
                let set = self.reference.as_deref();
                let job = job_of(&task, &adapter, knowledge.as_deref(), set, &self.me);
                let start = job.as_ref().map(|job| job.start.clone()).unwrap_or_default();
                let trained = self.train(job);
                let data = self.train.as_ref().map(|(_, data)| data).ok_or("no_learner");
                let work = trained.and_then(|trained| {
                    work_of(&task, &start, data?, trained, residual.as_deref())
                });
                Ok(Input::Worked { offer: task.offer, work })
            }
            Task::Distil { task, adapter, offered } => {
                let (set, said) = (self.reference.as_deref(), offered.as_deref());
                let job = distil_job_of(&task, &adapter, said, set, &self.me);
                let outcome = self.train(job).and_then(|trained| learned_of(&task, trained));
                Ok(Input::Distilled { offer: task.offer, outcome })
            }
        });
    }
}

/// What is left to do when a lane's job has ended.
type End<F> = std::sync::Mutex<Option<(Done, F)>>;

fn call<T, F>(once: &End<F>, came: Result<T, &'static str>)
where
    F: FnOnce(Result<T, &'static str>) -> Input,
{
    let taken = once.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some((done, end)) = taken {
        done(Ok(end(came)));
    }
}

/// A store that can't be read ends the node, as everywhere; it is no fault of the round.
fn combined(job: &CombineJob, blobs: &dyn BlobReader) -> Result<Input, String> {
    let broken = RefCell::new(None);
    let read = |digest: &Digest| {
        blobs.blob(digest).unwrap_or_else(|error| {
            *broken.borrow_mut() = Some(error.to_string());
            None
        })
    };
    let members: BTreeSet<&NodeId> = job.inputs.iter().map(|input| &input.sender).collect();
    if members.len() < MIN_MEMBERS && robust(&job.plan) {
        tracing::info!(
            offer = %job.offer,
            members = members.len(),
            "merged of so few members that one bad one may move it: {MIN_MEMBERS} would do"
        );
    }
    let outcome = update::combine(job, &read);
    if let Some(what) = broken.into_inner() {
        return Err(what);
    }
    let outcome = outcome.map_err(|error| {
        tracing::error!(%error, offer = %job.offer, "a round can't be combined");
        error.kind()
    });
    Ok(Input::Combined { offer: job.offer, outcome })
}

/// Whether a plan counts on a rule of merging that a few bad members can't move far.
fn robust(plan: &Plan) -> bool {
    let merges = |knowledge: &KnowledgePlan| {
        knowledge.merging != Merging::Mean && (knowledge.asks_for_rows() || plan.class_logits)
    };
    plan.knowledge.as_ref().is_some_and(merges)
}

pub(super) fn job_of(
    task: &TrainTask,
    adapter: &[u8],
    said: Option<&[u8]>,
    set: Option<&ReferenceSet>,
    me: &NodeId,
) -> Result<TrainJob, &'static str> {
    let plan = &task.plan;
    let class_targets = task.class_targets.as_ref().map(ClassLogits::from);
    let said = heard(plan, said, task.knowledge.as_ref().map(|said| said.counts.as_slice()))?;
    Ok(TrainJob {
        start: update::unpack(adapter).map_err(|error| error.kind())?,
        steps: plan.local_steps,
        batch_size: plan.batch_size,
        learning_rate: plan.learning_rate,
        final_rate: plan.final_rate,
        prox_mu: plan.prox_mu,
        distill_lambda: plan.distill_lambda,
        lesson: lesson_of(plan, set, said.as_ref(), class_targets.as_ref())?,
        class_targets,
        // Each member draws other batches, each round too, and a repeat the same.
        seed: Stream::new(plan.seed, me.as_str()).next_u64(),
        epochs: plan.local_epochs,
        // Prototypes come from the same pass, and a layer's counts.
        class_logits: plan.class_logits
            || plan.knowledge.as_ref().is_some_and(KnowledgePlan::asks_for_rows),
    })
}

/// An owner's own model learns from the lesson alone, from where it was.
fn distil_job_of(
    task: &DistilTask,
    adapter: &[u8],
    above: Option<&[u8]>,
    set: Option<&ReferenceSet>,
    me: &NodeId,
) -> Result<TrainJob, &'static str> {
    let plan = &task.plan;
    let class_targets = task.class_targets.as_ref().map(ClassLogits::from);
    let above = heard(plan, above, task.offered.as_ref().map(|said| said.counts.as_slice()))?;
    let said = merged_of(task)?.map(|said| heads::taught(plan, spectra::taught(said, above)));
    let said = said.transpose().map_err(|error| error.kind())?;
    Ok(TrainJob {
        start: update::unpack(adapter).map_err(|error| error.kind())?,
        steps: task.how.steps,
        batch_size: plan.batch_size,
        learning_rate: task.how.learning_rate,
        final_rate: task.how.final_rate,
        prox_mu: 0.0,
        distill_lambda: 0.0,
        lesson: lesson_of(plan, set, said.as_ref(), class_targets.as_ref())?,
        class_targets: None,
        seed: Stream::new(plan.seed, me.as_str()).next_u64(),
        epochs: None,
        class_logits: false,
    })
}

/// What came from above.
fn heard(
    plan: &Plan,
    said: Option<&[u8]>,
    counts: Option<&[u64]>,
) -> Result<Option<Knowing>, &'static str> {
    let Some(((plan, bytes), counts)) = plan.knowledge.as_ref().zip(said).zip(counts) else {
        return Ok(None);
    };
    knowledge::unpack(plan, bytes, counts).map(Some).map_err(|error| error.kind())
}

fn lesson_of(
    plan: &Plan,
    set: Option<&ReferenceSet>,
    said: Option<&Knowing>,
    class_targets: Option<&ClassLogits>,
) -> Result<Option<Lesson>, &'static str> {
    let Some(knowledge) = &plan.knowledge else { return Ok(None) };
    knowledge::lesson(knowledge, set, said, class_targets).map_err(|error| error.kind())
}

fn merged_of(task: &DistilTask) -> Result<Option<Knowing>, &'static str> {
    let (Some(plan), Some(merged)) = (&task.plan.knowledge, &task.knowledge) else {
        return Ok(None);
    };
    let unpacked = knowledge::unpack(plan, &merged.bytes, &merged.counts);
    unpacked.map(Some).map_err(|error| error.kind())
}

/// What an owner's own model says after its lesson, and its adapter.
fn learned_of(task: &DistilTask, trained: Trained) -> Result<Work, &'static str> {
    // Prototypes of its own would be those of the reference inputs, and a layer of its own one over other embeddings
    // than its members': the merged ones go on.
    let merged = merged_of(task)?.unwrap_or_default();
    let (reference_logits, top_logits) = (Some(trained.reference_logits), trained.top_logits);
    let said = Knowing { reference_logits, top_logits, ..merged };
    let knowledge = knowledge::pack(&task.plan, &said);
    let own = update::pack(&trained.adapter, Coding::F32, 0);
    Ok(Work {
        update: None,
        class_logits: None,
        knowledge: knowledge.map_err(|error| error.kind())?,
        num_examples: trained.num_examples,
        num_devices: 0,
        steps: trained.steps,
        loss_first: trained.loss_first,
        loss_last: trained.loss_last,
        risk: trained.risk,
        residual: None,
        own: Some(own.map_err(|error| error.kind())?),
        weighed: Vec::new(),
    })
}

fn work_of(
    task: &TrainTask,
    start: &TensorSet,
    data: &Examples,
    trained: Trained,
    residual: Option<&[u8]>,
) -> Result<Work, &'static str> {
    let plan = &task.plan;
    let mut logits = trained.class_logits;
    logits.suppress(u64::from(plan.min_cell));
    logits.clip();
    let (mut prototypes, mut head) = (trained.prototypes, trained.head);
    if let Some(prototypes) = &mut prototypes {
        prototypes.suppress(u64::from(plan.min_cell));
    }
    if let Some(head) = &mut head {
        head.trim(u64::from(plan.min_cell));
    }
    let spectra = spectra_of(plan, data).map_err(|error| error.kind())?;
    let (reference_logits, top_logits) = (Some(trained.reference_logits), trained.top_logits);
    let said = Knowing { reference_logits, prototypes, spectra, head, generator: None, top_logits };
    let knowledge = knowledge::pack(plan, &said).map_err(|error| error.kind())?;
    let (update, residual, own) = if plan.adapter_delta {
        let packed = update::pack_delta(start, &trained.adapter, plan, residual);
        let (bytes, left) = packed.map_err(|error| error.kind())?;
        (Some(bytes), left, None)
    } else {
        // Nobody sends an adapter back, so what was learned stays here.
        let packed = update::pack(&trained.adapter, Coding::F32, 0);
        (None, None, Some(packed.map_err(|error| error.kind())?))
    };
    Ok(Work {
        update,
        class_logits: plan.class_logits.then(|| ClassSummary::from(&logits)),
        knowledge,
        num_examples: trained.num_examples,
        num_devices: 1,
        steps: trained.steps,
        loss_first: trained.loss_first,
        loss_last: trained.loss_last,
        risk: trained.risk,
        residual,
        own,
        weighed: Vec::new(),
    })
}

/// How the device's own windows sound, where it is asked for; classes with few examples stay out.
fn spectra_of(plan: &Plan, data: &Examples) -> Result<Option<Prototypes>, LearnError> {
    let Some(how) = plan.knowledge.as_ref().and_then(|knowledge| knowledge.spectra) else {
        return Ok(None);
    };
    let mut spectra = class_spectra(data.windows()?, usize::from(how.bands))?;
    spectra.suppress(u64::from(plan.min_cell));
    Ok(Some(spectra))
}

#[cfg(test)]
#[path = "workbench_tests.rs"]
mod tests;
