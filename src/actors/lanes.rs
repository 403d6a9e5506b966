//! Two lanes, a thread each: one trains, one serves. Nothing else in a node blocks.
//!
//! ```text
//! actor -- submit --> bounded queue --> lane's thread: Learner / Predictor
//!   ^------------------ done(result) ---------'
//! ```
//! A lane owns its learner and gives the core up after each step, so that answers stay quick while
//! a round trains. `done` is called on the lane's thread and must not block: an actor's `try_send`
//! or a oneshot channel is what it is for.
//!
//! A panic in a lane ends the process: a node with a dead lane would look alive and learn nothing.

use std::io;
use std::num::NonZeroU16;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::learn::{
    Activations, BackPredictor, Control, Examples, FrontPredictor, Kept, LearnError, Learner,
    Prediction, Predictor, Progress, TensorSet, TrainJob, Trained,
};
use crate::scada::at_cut::FrontMark;

/// Gets a request's result, on the lane's thread.
pub type Done<T> = Box<dyn FnOnce(Result<T, LearnError>) + Send>;

/// Work for the lane that trains.
pub struct TrainRequest {
    /// The device's windows.
    pub data: Arc<Examples>,
    /// Makes what to do with them, on the lane: reference inputs may have to be filtered first.
    pub job: Box<dyn FnOnce() -> Result<TrainJob, &'static str> + Send>,
    /// Called on the lane, in front of the first step; may wait.
    pub begin: Box<dyn FnOnce() + Send>,
    /// Called after each step; may wait, may stop the run.
    pub progress: Box<dyn FnMut(Progress) -> Control + Send>,
    /// Gets the result, or a word for what went wrong.
    pub done: Box<dyn FnOnce(Result<Trained, &'static str>) + Send>,
}

/// Work for the lane that serves; requests are answered in their order.
pub enum ServeRequest {
    /// Swap the adapter; on an error the old one stays.
    Load {
        /// The adapter.
        adapter: Arc<TensorSet>,
        /// The front that it belongs to, where devices have that.
        front: Option<FrontMark>,
        /// Learns if it fits.
        done: Done<()>,
    },
    /// Answer windows.
    Predict {
        /// `[n, len]` row-major.
        x: Vec<f32>,
        /// Samples a window.
        len: usize,
        /// Gets n predictions.
        done: Done<Vec<Prediction>>,
    },
    /// Answer windows by another adapter than the one in use, which is in use again behind it.
    Beside {
        /// The other one.
        adapter: Arc<TensorSet>,
        /// `[n, len]` row-major.
        x: Vec<f32>,
        /// Samples a window.
        len: usize,
        /// Gets n predictions.
        done: Done<Vec<Prediction>>,
    },
    /// Answer windows as far as the front of a split model goes.
    Pass {
        /// `[n, len]` row-major.
        x: Vec<f32>,
        /// Samples a window.
        len: usize,
        /// Gets the activations at the cut, and which front made them.
        done: Done<(FrontMark, Activations)>,
    },
    /// Go on from where a front stopped with one window.
    Finish {
        /// The front.
        front: FrontMark,
        /// `[1, tokens, d]`.
        at_cut: Activations,
        /// Gets the prediction, or nothing when the back of this front isn't kept.
        done: Done<Option<Prediction>>,
    },
}

/// Threads of the lanes on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreShare {
    /// For the lane that serves.
    pub serve: NonZeroU16,
    /// For the lane that trains.
    pub train: NonZeroU16,
}

/// Why a lane didn't take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Its queue is full: try again later, or drop the request.
    #[error("the lane's queue is full")]
    Full,
    /// Its thread has ended.
    #[error("the lane is closed")]
    Closed,
}

impl LaneError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Full => "lane_full",
            Self::Closed => "lane_closed",
        }
    }
}

/// A thread with a bounded queue of requests.
pub struct Lane<R>(Place<R>);

enum Place<R> {
    Thread {
        queue: SyncSender<R>,
        thread: JoinHandle<()>,
    },
    /// The caller's own thread.
    Here(Mutex<Box<dyn FnMut(R) + Send>>),
}

impl<R: Send + 'static> Lane<R> {
    pub(super) fn spawn(
        name: &str,
        capacity: usize,
        mut work: impl FnMut(R) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, requests) = sync_channel(capacity);
        let body = move || {
            let _guard = EndOnPanic;
            for request in requests {
                work(request);
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Self(Place::Thread { queue, thread }))
    }

    /// Queues a request; never blocks.
    ///
    /// # Errors
    /// [`LaneError`]; the request's `done` isn't called then.
    pub fn submit(&self, request: R) -> Result<(), LaneError> {
        match &self.0 {
            Place::Thread { queue, .. } => queue.try_send(request).map_err(|error| match error {
                TrySendError::Full(_) => LaneError::Full,
                TrySendError::Disconnected(_) => LaneError::Closed,
            }),
            Place::Here(work) => {
                // Whoever panicked in it has ended the test.
                work.lock().unwrap_or_else(PoisonError::into_inner)(request);
                Ok(())
            }
        }
    }

    /// Works off what is queued, then ends the thread. Blocks until it has.
    ///
    /// To end early, let the running job's `progress` answer [`Control::Stop`].
    pub fn close(self) {
        if let Place::Thread { queue, thread } = self.0 {
            drop(queue);
            // An error would mean a panic, and that ends the process.
            let _ = thread.join();
        }
    }
}

/// Starts the lane that trains.
///
/// # Errors
/// When the system gives no thread.
pub fn train_lane(
    mut learner: impl Learner + 'static,
    capacity: usize,
) -> io::Result<Lane<TrainRequest>> {
    Lane::spawn("gaisnet-train", capacity, move |request: TrainRequest| {
        let TrainRequest { data, job, begin, mut progress, done } = request;
        begin();
        let mut yielding = |at: Progress| {
            thread::yield_now();
            progress(at)
        };
        done(job().and_then(|job| {
            learner.train(&data, &job, &mut yielding).map_err(|error| {
                tracing::warn!(%error, "training failed");
                error.kind()
            })
        }));
    })
}

/// Starts the lane that serves.
///
/// # Errors
/// When the system gives no thread.
pub fn serve_lane(
    predictor: impl Predictor + 'static,
    capacity: usize,
) -> io::Result<Lane<ServeRequest>> {
    Lane::spawn("gaisnet-serve", capacity, serving(predictor))
}

/// A lane that answers at once, on the caller's thread: for networks under a paused clock.
pub fn inline_serve_lane(predictor: impl Predictor + 'static) -> Lane<ServeRequest> {
    Lane(Place::Here(Mutex::new(Box::new(serving(predictor)))))
}

/// Starts the lane of a device with the front of a split model; `untrained` is that of version 0.
///
/// # Errors
/// When the system gives no thread.
pub fn front_serve_lane(
    front: impl FrontPredictor + 'static,
    untrained: FrontMark,
    capacity: usize,
) -> io::Result<Lane<ServeRequest>> {
    Lane::spawn("gaisnet-serve", capacity, serving_front(front, untrained))
}

/// The same on the caller's thread.
pub fn inline_front_serve_lane(
    front: impl FrontPredictor + 'static,
    untrained: FrontMark,
) -> Lane<ServeRequest> {
    Lane(Place::Here(Mutex::new(Box::new(serving_front(front, untrained)))))
}

/// Starts the lane of an edge whose devices have the front of the model; `untrained` is that of version 0.
///
/// # Errors
/// When the system gives no thread.
pub fn back_serve_lane(
    back: impl BackPredictor + 'static,
    untrained: Option<FrontMark>,
    capacity: usize,
) -> io::Result<Lane<ServeRequest>> {
    Lane::spawn("gaisnet-serve", capacity, serving_backs(back, untrained))
}

/// The same on the caller's thread.
pub fn inline_back_serve_lane(
    back: impl BackPredictor + 'static,
    untrained: Option<FrontMark>,
) -> Lane<ServeRequest> {
    Lane(Place::Here(Mutex::new(Box::new(serving_backs(back, untrained)))))
}

fn serving(mut predictor: impl Predictor + 'static) -> impl FnMut(ServeRequest) + Send {
    let mut in_use: Option<Arc<TensorSet>> = None;
    // Whether the adapter that is loaded is that one.
    let mut in_place = true;
    move |request| match request {
        ServeRequest::Load { adapter, done, .. } => {
            let loaded = predictor.load(&adapter);
            if loaded.is_ok() {
                (in_use, in_place) = (Some(adapter), true);
            }
            done(loaded);
        }
        // Another version's answer would go out under the name of this one.
        ServeRequest::Predict { done, .. } if !in_place => done(Err(out_of_place())),
        ServeRequest::Predict { x, len, done } => done(predictor.predict(&x, len)),
        ServeRequest::Beside { adapter, x, len, done } => {
            let Some(own) = in_use.clone() else { return done(Err(out_of_place())) };
            let answers = predictor.load(&adapter).and_then(|()| predictor.predict(&x, len));
            in_place = predictor.load(&own).is_ok();
            done(answers);
        }
        ServeRequest::Pass { done, .. } => done(Err(other_half("a whole model"))),
        ServeRequest::Finish { done, .. } => done(Err(other_half("a whole model"))),
    }
}

fn serving_front(
    mut predictor: impl FrontPredictor + 'static,
    untrained: FrontMark,
) -> impl FnMut(ServeRequest) + Send {
    let mut in_use = Some(untrained);
    move |request| match request {
        ServeRequest::Load { adapter, front, done } => {
            let loaded = predictor.load(&adapter);
            if loaded.is_ok() {
                in_use = front;
            }
            done(loaded);
        }
        ServeRequest::Pass { x, len, done } => {
            let front = in_use.ok_or_else(|| other_half("a front of no known version"));
            done(front.and_then(|front| Ok((front, predictor.pass(&x, len)?))));
        }
        ServeRequest::Predict { done, .. } => done(Err(other_half("a front"))),
        ServeRequest::Beside { done, .. } => done(Err(other_half("a front"))),
        ServeRequest::Finish { done, .. } => done(Err(other_half("a front"))),
    }
}

/// Keeps the adapter in use and the one before it, each known by its front.
fn serving_backs(
    mut back: impl BackPredictor + 'static,
    untrained: Option<FrontMark>,
) -> impl FnMut(ServeRequest) + Send {
    let (mut last, mut before) = (untrained, None);
    move |request| match request {
        // One that is there already must not push the one before it out.
        ServeRequest::Load { front, done, .. } if front.is_some() && front == last => done(Ok(())),
        ServeRequest::Load { adapter, front, done } => {
            let loaded = back.load(&adapter);
            if loaded.is_ok() {
                before = std::mem::replace(&mut last, front);
            }
            done(loaded);
        }
        ServeRequest::Predict { x, len, done } => done(back.predict(&x, len)),
        ServeRequest::Finish { front, at_cut, done } => {
            let kept = [(last, Kept::Last), (before, Kept::Before)];
            let with = kept.into_iter().find(|(mark, _)| *mark == Some(front));
            let answer = with.map(|(_, with)| {
                let all = back.finish(&at_cut, with)?;
                all.into_iter().next().ok_or_else(|| other_half("a back without an answer"))
            });
            done(answer.transpose());
        }
        ServeRequest::Pass { done, .. } => done(Err(other_half("a back"))),
        ServeRequest::Beside { done, .. } => done(Err(other_half("a back"))),
    }
}

fn out_of_place() -> LearnError {
    LearnError::Engine { engine: "lane", message: "the adapter in use isn't in its place".into() }
}

fn other_half(has: &str) -> LearnError {
    LearnError::Engine { engine: "lane", message: format!("this is the lane of {has}") }
}

/// Ends the process when its thread unwinds.
pub(super) struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let lane = thread::current().name().unwrap_or_default().to_owned();
            tracing::error!(lane, "a lane panicked: the process ends");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::learn::{ClassLogits, Tensor};

    /// Counts its steps, learns nothing.
    struct Counting;

    fn adapter(value: f32) -> TensorSet {
        let tensor = Tensor { name: "w".into(), shape: vec![1], data: vec![value] };
        TensorSet::new(vec![tensor]).unwrap()
    }

    impl Learner for Counting {
        fn initial_adapter(&self) -> TensorSet {
            adapter(0.0)
        }

        fn train(
            &mut self,
            data: &Examples,
            job: &TrainJob,
            progress: &mut dyn FnMut(Progress) -> Control,
        ) -> Result<Trained, LearnError> {
            assert!(job.seed != PANIC, "asked to panic");
            let mut steps = 0;
            while steps < job.steps {
                steps += 1;
                if progress(Progress { step: steps, loss: 0.5 }) == Control::Stop {
                    break;
                }
            }
            let class_logits = ClassLogits::of(&[], &[], data.num_examples());
            Ok(Trained { class_logits, steps, ..Trained::of(adapter(0.0), 0, &[0.5]) })
        }
    }

    /// Answers class 1 when the adapter's value is above 1.5.
    struct Echo(usize);

    impl Predictor for Echo {
        fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
            adapter.check_finite()?;
            self.0 = usize::from(adapter.tensors()[0].data[0] > 1.5);
            Ok(())
        }

        fn predict(&mut self, x: &[f32], len: usize) -> Result<Vec<Prediction>, LearnError> {
            let one = Prediction { probabilities: vec![], class: self.0 };
            Ok(vec![one; x.len() / len])
        }
    }

    const PANIC: u64 = 99;

    fn request(steps: u32, seed: u64) -> (TrainRequest, Receiver<Result<Trained, &'static str>>) {
        let (sender, receiver) = channel();
        let job =
            TrainJob { class_logits: true, ..TrainJob::plain(adapter(0.0), steps, 1, 0.1, seed) };
        let request = TrainRequest {
            data: Arc::new(crate::learn::Texts::default().into()),
            job: Box::new(move || Ok(job)),
            begin: Box::new(|| ()),
            progress: Box::new(|at| if at.step == 3 { Control::Stop } else { Control::Continue }),
            done: Box::new(move |result| sender.send(result).unwrap()),
        };
        (request, receiver)
    }

    #[test]
    fn results_come_back_and_progress_can_stop_a_run() {
        let lane = train_lane(Counting, 4).unwrap();
        let (short, short_result) = request(2, 1);
        let (long, long_result) = request(1_000, 1);
        lane.submit(short).unwrap();
        lane.submit(long).unwrap();
        assert_eq!(short_result.recv().unwrap().unwrap().steps, 2);
        assert_eq!(long_result.recv().unwrap().unwrap().steps, 3);
        lane.close();
    }

    #[test]
    fn a_full_queue_refuses_and_close_works_off_the_rest() {
        let lane = train_lane(Counting, 1).unwrap();
        let (gate, open) = channel::<()>();
        let (mut first, first_result) = request(1, 1);
        let (started, has_started) = channel();
        first.progress = Box::new(move |_| {
            started.send(()).unwrap();
            open.recv().unwrap();
            Control::Continue
        });
        lane.submit(first).unwrap();
        has_started.recv().unwrap(); // the lane is busy, its queue empty
        let (second, second_result) = request(1, 1);
        lane.submit(second).unwrap();
        assert_eq!(lane.submit(request(1, 1).0), Err(LaneError::Full));
        gate.send(()).unwrap();
        lane.close();
        assert!(first_result.recv().unwrap().is_ok() && second_result.recv().unwrap().is_ok());
    }

    #[test]
    fn answers_come_from_the_adapter_that_was_loaded_last() {
        let lane = serve_lane(Echo(0), 8).unwrap();
        let (sender, receiver) = channel();
        for value in [1.0, 2.0, f32::NAN] {
            let adapter = Arc::new(adapter(value));
            lane.submit(ServeRequest::Load { adapter, front: None, done: Box::new(|_| ()) })
                .unwrap();
            let sender = sender.clone();
            let done: Done<_> = Box::new(move |answer| sender.send(answer).unwrap());
            lane.submit(ServeRequest::Predict { x: vec![0.0; 4], len: 2, done }).unwrap();
        }
        lane.close();
        let classes = || receiver.recv().unwrap().unwrap().iter().map(|p| p.class).collect();
        let answers: Vec<Vec<usize>> = (0..3).map(|_| classes()).collect();
        assert_eq!(answers, [[0, 0], [1, 1], [1, 1]], "a bad adapter leaves the old one");
    }

    /// Says by its class which adapter it went on with; of 9 it takes none.
    struct Backs(Vec<usize>);

    impl Predictor for Backs {
        fn load(&mut self, adapter: &TensorSet) -> Result<(), LearnError> {
            let number = adapter.tensors()[0].data[0].to_string().parse().unwrap();
            if number == 9 {
                return Err(LearnError::NoUpdates);
            }
            self.0.push(number);
            Ok(())
        }

        fn predict(&mut self, _: &[f32], _: usize) -> Result<Vec<Prediction>, LearnError> {
            Ok(vec![])
        }
    }

    impl BackPredictor for Backs {
        fn finish(&mut self, _: &Activations, with: Kept) -> Result<Vec<Prediction>, LearnError> {
            let back = if with == Kept::Last { 1 } else { 2 };
            let class = self.0[self.0.len() - back];
            Ok(vec![Prediction { probabilities: vec![], class }])
        }
    }

    #[test]
    fn two_backs_are_kept_and_what_comes_twice_or_does_not_fit_pushes_none_out() {
        let mark = |version| FrontMark::new(version, &crate::ids::Digest([1; 32]), b"front");
        let lane = inline_back_serve_lane(Backs(vec![0]), Some(mark(0)));
        let (sender, receiver) = channel();
        let load = |value: u16| {
            let front = Some(mark(value.into()));
            let adapter = Arc::new(adapter(value.into()));
            lane.submit(ServeRequest::Load { adapter, front, done: Box::new(|_| ()) }).unwrap();
        };
        let finish = |version| {
            let sender = sender.clone();
            let done: Done<_> = Box::new(move |answer| sender.send(answer).unwrap());
            let at_cut = Activations::new(vec![1, 1, 1], vec![0.0]).unwrap();
            lane.submit(ServeRequest::Finish { front: mark(version), at_cut, done }).unwrap();
            receiver.recv().unwrap().unwrap().map(|prediction: Prediction| prediction.class)
        };
        assert_eq!((finish(0), finish(1)), (Some(0), None));
        load(1);
        load(1);
        assert_eq!((finish(0), finish(1)), (Some(0), Some(1)));
        load(9);
        assert_eq!((finish(0), finish(1), finish(9)), (Some(0), Some(1), None));
        load(2);
        assert_eq!((finish(0), finish(1), finish(2)), (None, Some(1), Some(2)));
        let pass =
            ServeRequest::Pass { x: vec![], len: 1, done: Box::new(|a| assert!(a.is_err())) };
        lane.submit(pass).unwrap();
    }

    #[test]
    fn a_panic_in_a_lane_ends_the_process() {
        let name = "actors::lanes::tests::a_panic_in_a_lane_ends_the_process";
        if std::env::var_os("GAISNET_TEST_LANE_PANIC").is_some() {
            let lane = train_lane(Counting, 1).unwrap();
            lane.submit(request(1, PANIC).0).unwrap();
            lane.close();
            return; // with success: the parent's assertion fails then
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("GAISNET_TEST_LANE_PANIC", "1")
            .output()
            .unwrap();
        assert!(!child.status.success());
    }
}
