//! Where long work is done: a port, the one on lanes, and one that works at once for tests.

use std::cell::RefCell;
use std::sync::Arc;

use super::busy::Busy;
use super::figures::Figures;
use super::lanes::{EndOnPanic, Lane, TrainRequest};
use crate::ids::{Digest, NodeId};
use crate::learn::{ClassLogits, Control, Examples, Learner, TrainJob, Trained};
use crate::protocol::{CombineJob, Input, TrainTask, Work, update};
use crate::rng::Stream;
use crate::store::BlobReader;
use crate::wire::{ClassSummary, Coding};

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
    figures: Arc<Figures>,
    busy: Arc<Busy>,
}

/// Works at once, on the caller's thread: for networks under a paused clock.
pub struct InlineBench {
    me: NodeId,
    train: Option<(Box<dyn Learner>, Examples)>,
}

impl LaneBench {
    /// A bench for a node; devices bring a lane and their data, and train while they aren't `busy`.
    pub fn new(
        me: NodeId,
        train: Option<(Lane<TrainRequest>, Arc<Examples>)>,
        figures: Arc<Figures>,
        busy: Arc<Busy>,
    ) -> Self {
        Self { me, train, figures, busy }
    }
}

impl InlineBench {
    /// A bench for a node; devices bring a learner and their data.
    pub fn new(me: NodeId, train: Option<(Box<dyn Learner>, Examples)>) -> Self {
        Self { me, train }
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
            Task::Train { task, adapter, residual } => {
                let offer = task.offer;
                let Some((lane, data)) = &self.train else {
                    return done(Ok(Input::Worked { offer, work: Err("no_learner") }));
                };
                let job = match job_of(&task, &adapter, &self.me) {
                    Ok(job) => job,
                    Err(reason) => return done(Ok(Input::Worked { offer, work: Err(reason) })),
                };
                let start = job.start.clone();
                let figures = Arc::clone(&self.figures);
                let done = Arc::new(std::sync::Mutex::new(Some(done)));
                let finish = Arc::clone(&done);
                let request = TrainRequest {
                    data: Arc::clone(data),
                    job,
                    progress: Box::new({
                        let (figures, busy) = (Arc::clone(&figures), Arc::clone(&self.busy));
                        move |_| {
                            busy.wait_until_idle();
                            figures.update(|view| view.train_steps += 1);
                            Control::Continue
                        }
                    }),
                    done: Box::new(move |result| {
                        let work = match result {
                            Ok(trained) => {
                                let loss = f64::from(trained.loss_last);
                                figures.update(|view| view.loss = Some(loss));
                                work_of(&task, &start, trained, residual.as_deref())
                            }
                            Err(error) => {
                                tracing::warn!(%error, "training failed");
                                Err(error.kind())
                            }
                        };
                        call(&finish, Input::Worked { offer, work });
                    }),
                };
                if let Err(error) = lane.submit(request) {
                    call(&done, Input::Worked { offer, work: Err(error.kind()) });
                }
            }
        }
    }
}

impl Workbench for InlineBench {
    fn start(&mut self, task: Task, done: Done) {
        done(match task {
            Task::Combine { job, blobs } => combined(&job, blobs.as_ref()),
            Task::Train { task, adapter, residual } => {
                let work = match &mut self.train {
                    None => Err("no_learner"),
                    Some((learner, data)) => job_of(&task, &adapter, &self.me).and_then(|job| {
                        let start = job.start.clone();
                        let trained = learner
                            .train(data, &job, &mut |_| Control::Continue)
                            .map_err(|error| error.kind())?;
                        work_of(&task, &start, trained, residual.as_deref())
                    }),
                };
                Ok(Input::Worked { offer: task.offer, work })
            }
        });
    }
}

fn call(done: &std::sync::Mutex<Option<Done>>, input: Input) {
    let taken = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(done) = taken {
        done(Ok(input));
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

fn job_of(task: &TrainTask, adapter: &[u8], me: &NodeId) -> Result<TrainJob, &'static str> {
    let start = update::unpack(adapter).map_err(|error| error.kind())?;
    let plan = &task.plan;
    Ok(TrainJob {
        start,
        steps: plan.local_steps,
        batch_size: plan.batch_size,
        learning_rate: plan.learning_rate,
        final_rate: plan.final_rate,
        prox_mu: plan.prox_mu,
        distill_lambda: plan.distill_lambda,
        class_targets: task.class_targets.as_ref().map(ClassLogits::from),
        // Each member draws other batches, each round too, and a repeat the same.
        seed: Stream::new(plan.seed, me.as_str()).next_u64(),
        epochs: plan.local_epochs,
        class_logits: plan.class_logits,
    })
}

fn work_of(
    task: &TrainTask,
    start: &crate::learn::TensorSet,
    trained: Trained,
    residual: Option<&[u8]>,
) -> Result<Work, &'static str> {
    let plan = &task.plan;
    let mut logits = trained.class_logits;
    logits.suppress(u64::from(plan.min_cell));
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
        num_examples: trained.num_examples,
        num_devices: 1,
        steps: trained.steps,
        loss_first: trained.loss_first,
        loss_last: trained.loss_last,
        residual,
        own,
        weighed: Vec::new(),
    })
}
