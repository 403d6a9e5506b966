//! The lane that writes text: one generator, many requests at once.
//!
//! ```text
//! actor -- submit --> bounded queue --> lane's thread: Scheduler + Generator, step by step
//!   ^---------------- told (bounded) --------'
//! ```
//! Between two steps it takes some of what was submitted (requests, cancellations, adapters; never so much
//! that whoever submits without end would keep it from its steps) and gives the core up once, so that a
//! training round and other answers stay quick. When the actor is behind, the lane waits for it instead of
//! dropping text. Dropping the lane lets it work off what it has, then it ends.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::lanes::{Done, EndOnPanic, LaneError};
use crate::learn::{AdapterId, Ask, BatchLimits, Generator, Scheduler, TensorSet, Tokens, Told};
use crate::time::Clock;

/// News with their ticket.
pub type Letter = (u64, Told);

/// Work for the lane that writes text.
pub enum TextRequest {
    /// Put an adapter in place; on an error the old one stays.
    Load {
        /// Its version or name.
        id: AdapterId,
        /// The adapter.
        adapter: Arc<TensorSet>,
        /// Learns if it fits, on the lane's thread; must not block.
        done: Done<()>,
    },
    /// Write.
    Ask {
        /// Never used before.
        ticket: u64,
        /// What.
        ask: Ask,
        /// Gets the news; the last is a [`Told::End`].
        told: Sender<Letter>,
    },
    /// Let the request of this ticket end; an unknown one is fine.
    Cancel {
        /// Its ticket.
        ticket: u64,
    },
}

/// What a lane writes with.
pub struct Writer {
    /// The model.
    pub generator: Box<dyn Generator>,
    /// Its alphabet.
    pub tokens: Arc<dyn Tokens>,
}

/// A queue in front of a [`Writer`].
#[derive(Debug)]
pub struct TextLane {
    queue: Sender<TextRequest>,
    /// None where it works on its caller's.
    thread: Option<JoinHandle<()>>,
}

impl TextLane {
    /// Starts the lane on a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(
        writer: Writer,
        limits: BatchLimits,
        clock: Arc<dyn Clock>,
        capacity: usize,
    ) -> io::Result<Self> {
        let (queue, mut requests) = channel(capacity);
        let mut desk = Desk::new(writer, limits);
        let body = move || {
            let _guard = EndOnPanic;
            while !desk.is_idle() || desk.take(requests.blocking_recv()) {
                if !desk.take_some(&mut requests) {
                    break;
                }
                desk.step(clock.as_ref());
                for (to, letter) in desk.letters() {
                    // Nobody listens any more where the actor has ended.
                    let _ = to.blocking_send(letter);
                }
                thread::yield_now();
            }
        };
        let thread = thread::Builder::new().name("gaisnet-text".to_owned()).spawn(body)?;
        Ok(Self { queue, thread: Some(thread) })
    }

    /// A lane on the caller's arbiter whose every step takes `step`: for networks under a paused clock.
    pub fn inline(
        writer: Writer,
        limits: BatchLimits,
        clock: Arc<dyn Clock>,
        capacity: usize,
        step: Duration,
    ) -> Self {
        let (queue, mut requests) = channel(capacity);
        let mut desk = Desk::new(writer, limits);
        actix::spawn(async move {
            while !desk.is_idle() || desk.take(requests.recv().await) {
                if !desk.take_some(&mut requests) {
                    break;
                }
                tokio::time::sleep(step).await;
                desk.step(clock.as_ref());
                for (to, letter) in desk.letters() {
                    let _ = to.send(letter).await;
                }
            }
        });
        Self { queue, thread: None }
    }

    /// Queues work; never blocks.
    ///
    /// # Errors
    /// [`LaneError`]; nothing is told of the request then.
    pub fn submit(&self, request: TextRequest) -> Result<(), LaneError> {
        self.queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => LaneError::Full,
            TrySendError::Closed(_) => LaneError::Closed,
        })
    }

    /// Works off what is queued, then ends the thread. Blocks until it has, so somebody else has to take
    /// the news meanwhile.
    pub fn close(self) {
        drop(self.queue);
        if let Some(thread) = self.thread {
            // An error would mean a panic, and that ends the process.
            let _ = thread.join();
        }
    }
}

/// The lane's work without its thread.
struct Desk {
    scheduler: Scheduler,
    writer: Writer,
    /// By ticket.
    listeners: BTreeMap<u64, Sender<Letter>>,
    news: Vec<Letter>,
}

impl Desk {
    fn new(writer: Writer, limits: BatchLimits) -> Self {
        let scheduler = Scheduler::with_named(limits, writer.generator.named());
        Self { scheduler, writer, listeners: BTreeMap::new(), news: Vec::new() }
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.news.is_empty()
    }

    /// Takes one request; false when there will never be one again.
    fn take(&mut self, request: Option<TextRequest>) -> bool {
        let generator = self.writer.generator.as_mut();
        match request {
            None => return false,
            Some(TextRequest::Load { id, adapter, done }) => {
                done(self.scheduler.load(id, &adapter, generator));
            }
            Some(TextRequest::Ask { ticket, ask, told }) => {
                self.listeners.insert(ticket, told);
                let asked = self.scheduler.ask(ticket, ask, generator, self.writer.tokens.as_ref());
                if let Err(error) = asked {
                    self.news.push((ticket, Told::End(Err(error))));
                }
            }
            Some(TextRequest::Cancel { ticket }) => {
                let told = self.scheduler.cancel(ticket, generator);
                self.news.extend(told);
            }
        }
        true
    }

    /// Takes some of what is there; false when there will never be more and nothing is left to do.
    fn take_some(&mut self, requests: &mut Receiver<TextRequest>) -> bool {
        for _ in 0..TAKEN_A_STEP {
            match requests.try_recv() {
                Ok(request) => drop(self.take(Some(request))),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.is_idle(),
            }
        }
        true
    }

    fn step(&mut self, clock: &dyn Clock) {
        let now = clock.now().mono;
        let (generator, tokens) = (self.writer.generator.as_mut(), self.writer.tokens.as_ref());
        let told = self.scheduler.step(now, generator, tokens);
        self.news.extend(told);
    }

    /// What there is to tell, with its listeners.
    fn letters(&mut self) -> Vec<(Sender<Letter>, Letter)> {
        let mut letters = Vec::new();
        for (ticket, told) in std::mem::take(&mut self.news) {
            let listener = match told {
                Told::End(_) => self.listeners.remove(&ticket),
                Told::Piece(..) => self.listeners.get(&ticket).cloned(),
            };
            letters.extend(listener.map(|listener| (listener, (ticket, told))));
        }
        letters
    }
}

/// Requests that are taken between two steps.
const TAKEN_A_STEP: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::toy_generator::{ToyGenerator, ToyTokens, answer, shift_by};
    use crate::learn::{Finish, Sampling};
    use crate::time::{Mono, Now};

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Now {
            Now::default()
        }
    }

    fn lane() -> TextLane {
        let writer =
            Writer { generator: Box::new(ToyGenerator::default()), tokens: Arc::new(ToyTokens) };
        TextLane::spawn(writer, BatchLimits::default(), Arc::new(Still), 64).unwrap()
    }

    fn ask(prompt: &str) -> Ask {
        Ask {
            prompt: prompt.into(),
            max_tokens: 5,
            sampling: Sampling::GREEDY,
            seed: 1,
            stop: vec![],
            stream: true,
            adapter: None,
            deadline: Mono(1),
        }
    }

    #[test]
    fn requests_without_end_do_not_keep_the_lane_from_its_steps() {
        let writer =
            Writer { generator: Box::new(ToyGenerator::default()), tokens: Arc::new(ToyTokens) };
        let mut desk = Desk::new(writer, BatchLimits::default());
        let (queue, mut requests) = channel(64);
        for ticket in 0..40 {
            queue.try_send(TextRequest::Cancel { ticket }).unwrap();
        }
        assert!(desk.take_some(&mut requests));
        assert_eq!(requests.len(), 40 - TAKEN_A_STEP);
    }

    fn drain(mut letters: Receiver<Letter>) -> BTreeMap<u64, (String, Option<Told>)> {
        let mut all: BTreeMap<u64, (String, Option<Told>)> = BTreeMap::new();
        while let Some((ticket, told)) = letters.blocking_recv() {
            let (pieces, end) = all.entry(ticket).or_default();
            assert!(end.is_none(), "nothing follows the end");
            match told {
                Told::Piece(text, _) => pieces.push_str(&text),
                last @ Told::End(_) => *end = Some(last),
            }
        }
        all
    }

    #[test]
    fn all_that_was_submitted_is_answered_though_the_listener_is_slow() {
        let lane = lane();
        // A channel of one: the lane has to wait for each letter to be taken.
        let (told, letters) = channel(1);
        let done: Done<()> = Box::new(|result| result.unwrap());
        let (id, adapter) = (AdapterId::Version(1), Arc::new(shift_by(1)));
        lane.submit(TextRequest::Load { id, adapter, done }).unwrap();
        for ticket in 0..20 {
            let told = told.clone();
            lane.submit(TextRequest::Ask { ticket, ask: ask("abc"), told }).unwrap();
        }
        lane.submit(TextRequest::Ask { ticket: 20, ask: ask(""), told }).unwrap();
        let reader = thread::spawn(move || drain(letters));
        lane.close();
        let all = reader.join().unwrap();
        assert_eq!(all.len(), 21);
        for ticket in 0..20 {
            let (pieces, Some(Told::End(Ok(end)))) = &all[&ticket] else { panic!("{ticket}") };
            assert_eq!((pieces, &end.text), (&answer("abc", 1, 5), &answer("abc", 1, 5)));
            assert_eq!(end.finish, Finish::Length);
        }
        assert!(
            matches!(&all[&20].1, Some(Told::End(Err(error))) if error.kind() == "empty_prompt")
        );
    }

    #[test]
    fn a_lane_whose_listener_has_gone_goes_on() {
        let lane = lane();
        let (gone, letters) = channel(1);
        drop(letters);
        lane.submit(TextRequest::Ask { ticket: 1, ask: ask("abc"), told: gone }).unwrap();
        let (told, letters) = channel(64);
        lane.submit(TextRequest::Ask { ticket: 2, ask: ask("abc"), told }).unwrap();
        lane.submit(TextRequest::Cancel { ticket: 77 }).unwrap();
        lane.close();
        assert!(drain(letters)[&2].1.is_some());
    }
}
