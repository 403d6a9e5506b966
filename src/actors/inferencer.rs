//! Answers: one base, the newest adapter, for tag streams and for requests.
//!
//! ```text
//!   plant tags --> windows --.
//!   infer/{model} -----------+--> serve lane --> inference/{model} or reply/infer
//!   runner: Serve{version} --'    (swaps the adapter between two answers)
//! ```
//! Tags that bind a label say what the machine does now: answers on windows that lie wholly in it are
//! judged by it, for the figure `accuracy`. Labels on `feedback/{model}` come later and judge what was answered (`labels.rs`). Tags that bind `idle` say when training may go on. Where a
//! cascade answers, what isn't sure enough goes to the tier above first (`tiers.rs`). A device with the front
//! of a split model asks its edge each time, and an edge answers such questions (`halves.rs`).
//!
//! Everything here is volatile and stays in the site's zone. Each answer names the version that
//! made it, and its quality is never left out. What it is told is in `inferencer/messages.rs`, what comes of each in `inferencer/handling.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;

pub use self::messages::{AboveSaid, Attend, LateLabel, Leaves, Request, Serve, TagSample};
use self::messages::{Answered, Compared, Finished, Passed, Probed, Scored};
pub(super) use self::messages::{Asked, Loaded, Source};
use super::MAILBOX;
use super::attending::Attending;
use super::busy::Busy;
use super::drift_watch::DriftWatch;
use super::figures::Figures;
use super::halves::{HalfParts, Halves};
use super::labels::Labels;
use super::lanes::{Lane, ServeRequest};
use super::machines::Machines;
use super::role::{Checked, Seen, Stimulus};
use super::tiers::{Act, CascadeParts, Tiers};
use crate::bus::{Ack, Bus, Priority, Publish};
use crate::ids::{Digest, Name, NodeId, Version};
use crate::learn::{DriftConfig, LearnError, Prediction, probe_window};
use crate::protocol::cascade::Ticket;
use crate::protocol::{Check, Input as ProtocolInput};
use crate::scada::RequestId;
use crate::scada::answer_book::BookLimits;
use crate::scada::at_cut::AtCut;
use crate::scada::command::CommandPolicy;
use crate::scada::infer::{InferError, InferReply, Input};
use crate::scada::tags::{Tag, TagMap};
use crate::scada::telegram::{Event, Inference, Quality, Tier};
use crate::scada::window::{Window, WindowConfig, WindowStream};
use crate::time::{Clock, Mono, Now, Wall};
use crate::topic::{Branch, CommandName};
use crate::wire::Wishes;

mod handling;
mod messages;

/// What an inferencer works with.
pub struct InferencerParts {
    /// The part of the topic tree that it writes to.
    pub branch: Branch,
    /// Its model.
    pub model: Name,
    /// Names of the classes, by index.
    pub labels: Vec<String>,
    /// Samples a window.
    pub window: NonZeroUsize,
    /// A pause between telegrams that breaks a window.
    pub max_gap_ms: u64,
    /// An answer is stale when no sample came for so long.
    pub stale_after_ms: u64,
    /// Where it stands.
    pub tier: Tier,
    /// Which requests are taken unsigned.
    pub policy: CommandPolicy,
    /// Plant topics.
    pub tags: TagMap,
    /// The thread that answers.
    pub lane: Lane<ServeRequest>,
    /// Whether the machine works.
    pub busy: Arc<Busy>,
    /// The link on the plant's side.
    pub bus: Arc<dyn Bus>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Tiers that answer together; none where each answers for itself.
    pub cascade: Option<CascadeParts>,
    /// The half of a split model that this node has; none where the model is whole everywhere. A front needs
    /// a `cascade` to ask its edge by.
    pub half: Option<HalfParts>,
    /// How many answers it remembers for labels that come later, and for how long.
    pub book: BookLimits,
    /// How it watches for drift, if it does.
    pub drift: Option<DriftConfig>,
    /// Hears of drift and of labels: a round may be wanted for them.
    pub wishes: Recipient<Stimulus>,
    /// Hears what comes of a look at the served version.
    pub checked: Recipient<Checked>,
    /// Hears what was counted of a version that is rolled out.
    pub seen: Recipient<Seen>,
}

/// See the module.
pub struct Inferencer {
    parts: InferencerParts,
    version: Version,
    /// Blob of the adapter in use.
    adapter: Digest,
    /// The last turn that was to be served.
    turn: u64,
    probe: Probe,
    /// One window stream for each tag and topic: a wildcard covers several machines.
    streams: BTreeMap<(usize, String), WindowStream>,
    /// Topics whose last telegram couldn't be read: each is told once.
    unreadable: BTreeSet<String>,
    truth: Option<Truth>,
    machines: Machines,
    /// Windows in the lane's queue, also those whose answer found the mailbox full.
    waiting: Arc<AtomicUsize>,
    last: Option<Inference>,
    tickets: Ticket,
    tiers: Option<Tiers>,
    halves: Option<Halves>,
    /// Answers that may get a label later.
    late: Labels,
    drift: Option<DriftWatch>,
    /// What is counted of a version that is rolled out.
    attending: Option<Attending>,
    /// Timers of the questions that wait for the tier above.
    wakes: BTreeMap<Ticket, SpawnHandle>,
}

/// What the machine does, as its label says.
#[derive(Debug)]
struct Truth {
    label: String,
    /// Number of the first sample of each stream that it is true of.
    from: BTreeMap<(usize, String), u64>,
}

/// When the built-in window is answered again.
#[derive(Debug, Clone, Copy, Default)]
struct Probe {
    due: bool,
    running: bool,
    /// Since the last one.
    seconds: u64,
}

impl Probe {
    const EVERY_S: u64 = 60;
}

impl Inferencer {
    /// Windows that wait for the lane; more get a busy reply.
    const MAX_WAITING: usize = 64;
    /// Topics whose samples are collected; a wildcard must not fill the memory.
    const MAX_STREAMS: usize = 256;
    const WATCHDOG: Duration = Duration::from_secs(1);

    /// An inferencer that answers with the untrained adapter until it is told another.
    pub fn new(mut parts: InferencerParts) -> Self {
        let tiers = parts.cascade.take().map(|cascade| {
            let (model, labels) = (parts.model.clone(), parts.labels.clone());
            let (clock, figures) = (Arc::clone(&parts.clock), Arc::clone(&parts.figures));
            Tiers::new(cascade, model, labels, parts.tier, clock, figures)
        });
        let halves = parts.half.take().map(Halves::new);
        let late = Labels::new(
            parts.branch.node.clone(),
            parts.model.clone(),
            parts.labels.clone(),
            parts.policy.clone(),
            parts.book,
        );
        let drift = parts.drift.map(|config| DriftWatch::new(config, parts.model.clone()));
        Self {
            drift,
            machines: Machines::new(Arc::clone(&parts.busy)),
            tiers,
            halves,
            late,
            attending: None,
            tickets: 0,
            wakes: BTreeMap::new(),
            parts,
            version: 0,
            turn: 0,
            adapter: Digest([0; 32]),
            probe: Probe::default(),
            streams: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            truth: None,
            waiting: Arc::default(),
            last: None,
        }
    }

    fn ask(
        &mut self,
        window: Vec<f32>,
        from: Source,
        deadline_ms: Option<u64>,
        via: Vec<NodeId>,
        ctx: &mut Context<Self>,
    ) {
        let at = self.parts.clock.now();
        if let (Source::Tag { .. }, Some(drift)) = (&from, &mut self.drift) {
            let found = drift.asked(&window, at.wall, &self.parts.figures);
            if let (Some(distance), Some(attending)) = (drift.looked(), &mut self.attending) {
                attending.drifted(distance);
            }
            self.drifted(found, ctx);
        }
        if self.waiting.load(Ordering::Relaxed) >= Self::MAX_WAITING {
            return self.busy(&from);
        }
        let me = ctx.address();
        let reply_to = from.clone();
        let waiting = Arc::clone(&self.waiting);
        let deadline = deadline_ms.map(|ms| Mono(at.mono.0.saturating_add(ms)));
        let has_front = self.halves.as_ref().is_some_and(Halves::is_front);
        let again = self.tiers.is_some() && !has_front;
        let input = again.then(|| Input::Window(window.clone()));
        let watched = self.attending.is_some() && matches!(from, Source::Tag { .. });
        let window_again = watched.then(|| window.clone());
        let ticket = self.tickets;
        let asked = Asked { ticket, from, at, deadline, via, input, window: window_again };
        self.tickets += 1;
        let len = self.parts.window.get();
        let request = if has_front {
            let done = Box::new(move |result| {
                waiting.fetch_sub(1, Ordering::Relaxed);
                let _ = me.try_send(Passed { asked, result });
            });
            ServeRequest::Pass { x: window, len, done }
        } else {
            let done = Box::new(move |result: Result<Vec<Prediction>, LearnError>| {
                waiting.fetch_sub(1, Ordering::Relaxed);
                let none = || LearnError::Engine { engine: "lane", message: "no answer".into() };
                let result = result.and_then(|all| all.into_iter().next().ok_or_else(none));
                let _ = me.try_send(Answered { asked, result });
            });
            ServeRequest::Predict { x: window, len, done }
        };
        // Before it is submitted, for the lane may be done with it at once.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.parts.lane.submit(request).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.busy(&reply_to);
        }
    }

    /// Goes on from where a device's front stopped.
    fn finish(&mut self, id: Option<RequestId>, question: &AtCut, ctx: &mut Context<Self>) {
        let taken = match &mut self.halves {
            Some(halves) => halves.taken(id.as_ref(), question),
            None => Err("no_back"),
        };
        let at_cut = match taken {
            Ok(Some(at_cut)) => at_cut,
            Ok(None) => return self.parts.figures.count("split_repeated"),
            Err(kind) => return self.refuse(&InferError::no_half(id, kind)),
        };
        let from = Source::Request(id.clone());
        if self.waiting.load(Ordering::Relaxed) >= Self::MAX_WAITING {
            return self.busy(&from);
        }
        let (me, at, front) = (ctx.address(), self.parts.clock.now(), question.front);
        let waiting = Arc::clone(&self.waiting);
        let done = Box::new(move |result| {
            waiting.fetch_sub(1, Ordering::Relaxed);
            let _ = me.try_send(Finished { id, at, front, result });
        });
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.parts.lane.submit(ServeRequest::Finish { front, at_cut, done }).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.busy(&from);
        }
    }

    fn refuse(&self, error: &InferError) {
        self.parts.figures.count(error.kind());
        self.reply(&error.reply());
    }

    /// The answer that a prediction is.
    #[expect(clippy::cast_precision_loss, reason = "a class index and milliseconds are small")]
    fn inference(&self, prediction: &Prediction, version: Version, asked: Now) -> Inference {
        let now = self.parts.clock.now();
        let Prediction { probabilities, class } = prediction;
        Inference {
            value: Some(*class as f64),
            label: self.parts.labels.get(*class).cloned(),
            confidence: probabilities.get(*class).copied().map(f64::from),
            quality: quality(version),
            ts: now.wall,
            model_version: version,
            latency_ms: now.micros.saturating_sub(asked.micros) as f64 / 1_000.0,
            tier: self.parts.tier,
            id: None,
            cascade: None,
        }
    }

    /// Sends held-out examples through the lane, if some are due.
    fn measure(&mut self, ctx: &mut Context<Self>) {
        let Some(tiers) = &mut self.tiers else { return };
        let Some(batch) = tiers.examples() else { return };
        let (me, run) = (ctx.address(), batch.run);
        let done = Box::new(move |result| {
            let _ = me.try_send(Scored { run, result });
        });
        let request = ServeRequest::Predict { x: batch.x, len: batch.len, done };
        if self.parts.lane.submit(request).is_err() {
            tiers.not_taken(); // the watchdog tries again
        }
    }

    /// Counts what the version in use made of a window, where a rollout wants to know.
    fn attend(&mut self, asked: &mut Asked, class: Option<usize>, ctx: &mut Context<Self>) {
        let Source::Tag { label, .. } = &asked.from else { return };
        let truth = label.as_deref().and_then(|label| self.class_of(label));
        // What has no label yet may get one later.
        let window = if truth.is_some() { asked.window.take() } else { asked.window.clone() };
        let micros = self.parts.clock.now().micros.saturating_sub(asked.at.micros);
        #[expect(clippy::cast_precision_loss, reason = "microseconds are few")]
        let latency_ms = micros as f64 / 1_000.0;
        let version = self.version;
        if let Some(attending) = &mut self.attending {
            attending.answered(version, window, class, truth, latency_ms);
        }
        self.compare(false, ctx);
    }

    /// Tells of a drift, if one was found.
    fn drifted(&mut self, found: Option<Event>, ctx: &mut Context<Self>) {
        let Some(event) = found else { return };
        tracing::warn!(message = event.message, "drift");
        self.publish(self.parts.branch.event(event.kind.as_str()), &event, false);
        self.wish(Wishes { drifts: 1, labels: 0 }, ctx);
    }

    /// Something was counted that a round may be wanted for.
    fn wish(&self, wishes: Wishes, ctx: &mut Context<Self>) {
        let role = self.parts.wishes.clone();
        let told = Stimulus { input: ProtocolInput::Wish(wishes), ack: Ack::none() };
        ctx.spawn(async move { role.send(told).await.unwrap_or(()) }.into_actor(self));
    }

    /// Has the other version answer what waits for it.
    fn compare(&mut self, all: bool, ctx: &mut Context<Self>) {
        let Some(attending) = &mut self.attending else { return };
        let Some(batch) = attending.batch(all) else { return };
        let (me, serial, waiting) = (ctx.address(), batch.serial, batch.waiting);
        // Without a bound: one is under way at a time, and without it none would be compared any more.
        let done = Box::new(move |result| me.do_send(Compared { serial, waiting, result }));
        let (adapter, x, len) = (batch.adapter, batch.x, self.parts.window.get());
        if self.parts.lane.submit(ServeRequest::Beside { adapter, x, len, done }).is_err() {
            attending.not_taken();
        }
    }

    /// Tells what was counted since.
    fn tell_seen(&mut self, ctx: &mut Context<Self>) {
        let Some((serial, tally)) = self.attending.as_mut().and_then(Attending::news) else {
            return;
        };
        let seen = self.parts.seen.clone();
        let told = async move { seen.send(Seen { serial, tally }).await.unwrap_or(()) };
        ctx.spawn(told.into_actor(self));
    }

    /// The class that a label names, or whose index it is.
    fn class_of(&self, label: &str) -> Option<usize> {
        index(&self.parts.labels, label)
            .or_else(|| label.parse().ok().filter(|index| *index < self.parts.labels.len()))
    }

    /// Whether this node has the front of a model alone: no window can be answered here without its edge.
    fn has_front(&self) -> bool {
        self.halves.as_ref().is_some_and(Halves::is_front)
    }

    /// Has the built-in window answered, if that is due: each new version, each minute, and after an answer
    /// that was none.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let Probe { due, running, seconds } = self.probe;
        if self.has_front() || running || !(due || seconds >= Probe::EVERY_S) {
            return;
        }
        let (me, turn) = (ctx.address(), self.turn);
        // Without a bound: one is under way at a time, and without it nothing would be looked at again.
        let done = Box::new(move |result| me.do_send(Probed { turn, result }));
        let len = self.parts.window.get();
        let request = ServeRequest::Predict { x: probe_window(len), len, done };
        // For the lane may be done with it at once.
        self.probe = Probe { due: false, running: true, seconds: 0 };
        if self.parts.lane.submit(request).is_err() {
            self.probe = Probe { due: true, running: false, seconds }; // the watchdog tries again
        }
    }

    fn tell(&self, version: Version, adapter: Digest, check: Check, ctx: &mut Context<Self>) {
        let checked = self.parts.checked.clone();
        let told =
            async move { checked.send(Checked { version, adapter, check }).await.unwrap_or(()) };
        ctx.spawn(told.into_actor(self));
    }

    fn carry_out(&mut self, acts: Vec<Act>, ctx: &mut Context<Self>) {
        for act in acts {
            match act {
                Act::Answer(asked, inference) => {
                    // A deadline may be minutes ahead, and answers come by the hundred.
                    if let Some(wake) = self.wakes.remove(&asked.ticket) {
                        ctx.cancel_future(wake);
                    }
                    self.answer(asked, inference);
                }
                Act::Wake(ticket, after_ms) => {
                    let after = Duration::from_millis(after_ms);
                    let wake = ctx.run_later(after, move |this, ctx| {
                        this.wakes.remove(&ticket);
                        this.in_tiers(ctx, |tiers| tiers.wake(ticket));
                    });
                    self.wakes.insert(ticket, wake);
                }
            }
        }
    }

    fn in_tiers(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(&mut Tiers) -> Vec<Act>) {
        if let Some(tiers) = &mut self.tiers {
            let acts = work(tiers);
            self.carry_out(acts, ctx);
        }
    }

    /// Gives an answer to whom it is for.
    fn answer(&mut self, asked: Asked, inference: Inference) {
        if inference.value.is_some() {
            self.parts.figures.answered(inference.latency_ms);
            let now = self.parts.clock.now().wall;
            let number = self.late.gave(&asked.from, &inference, now);
            if let (Some(attending), Some(number), Some(window)) =
                (&mut self.attending, number, asked.window)
            {
                let class =
                    inference.label.as_deref().and_then(|label| index(&self.parts.labels, label));
                attending.may_be_labelled(number, inference.model_version, window, class);
            }
        }
        match asked.from {
            Source::Tag { label, .. } => {
                if let Some(label) = label {
                    self.judge(&inference, &label);
                }
                self.publish_answer(inference);
            }
            Source::Request(id) => self.reply(&InferReply::answer(id, inference)),
        }
    }

    /// The model has no answer to it.
    fn unanswered(&mut self, asked: Asked, error: &LearnError) {
        tracing::warn!(%error, "a window can't be answered");
        self.parts.figures.count(error.kind());
        let bad = self.bad(self.parts.clock.now().wall);
        self.answer(asked, bad);
    }

    /// There is none.
    fn bad(&self, now: Wall) -> Inference {
        let bad = Inference::bad(now, self.version, self.parts.tier);
        match &self.tiers {
            Some(tiers) => tiers.own(bad),
            None => bad,
        }
    }

    fn busy(&self, from: &Source) {
        self.parts.figures.count("busy");
        if let Source::Request(id) = from {
            self.reply(&InferError::busy(id.clone(), self.waiting.load(Ordering::Relaxed)).reply());
        }
    }

    fn reply(&self, reply: &InferReply) {
        if let Ok(name) = CommandName::new("infer") {
            self.publish(self.parts.branch.reply(&name), reply, false);
        }
    }

    fn publish<T: serde::Serialize>(&self, topic: String, telegram: &T, retain: bool) {
        let Ok(payload) = serde_json::to_vec(telegram) else { return };
        let (at_least_once, priority) = (true, Priority::Control);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        if let Err(error) = self.parts.bus.publish(message) {
            self.parts.figures.count(error.kind());
        }
    }

    fn publish_answer(&mut self, inference: Inference) {
        self.publish(self.parts.branch.inference(&self.parts.model), &inference, true);
        self.last = Some(inference);
    }

    fn samples(
        &mut self,
        key: (usize, String),
        samples: &[f32],
        now: Wall,
        ctx: &mut Context<Self>,
    ) {
        if !self.streams.contains_key(&key) && self.streams.len() >= Self::MAX_STREAMS {
            return self.parts.figures.count("too_many_streams");
        }
        let tag = self.parts.tags.tags().get(key.0);
        let config = WindowConfig {
            len: self.parts.window,
            hop: tag.and_then(Tag::hop).unwrap_or(self.parts.window),
            max_gap_ms: tag.and_then(Tag::max_gap_ms).unwrap_or(self.parts.max_gap_ms),
        };
        let source = Digest::of(key.1.as_bytes());
        let true_from = self.truth.as_ref().map(|truth| truth.from.get(&key).copied().unwrap_or(0));
        let stream = self.streams.entry(key).or_insert_with(|| WindowStream::new(config));
        stream.push(samples, now);
        let next = |stream: &mut WindowStream| {
            let (start, window) = stream.next_window_with_start()?;
            Some((start, stream.began().unwrap_or(now), window))
        };
        let windows: Vec<(u64, Wall, Window)> = std::iter::from_fn(|| next(stream)).collect();
        for (start, began, window) in windows {
            match window {
                Window::Good(samples) => {
                    let judged = true_from.is_some_and(|from| start >= from);
                    let truth = self.truth.as_ref().filter(|_| judged);
                    let label = truth.map(|truth| truth.label.clone());
                    self.ask(samples, Source::Tag { label, source, began }, None, Vec::new(), ctx);
                }
                Window::Bad { .. } => {
                    self.parts.figures.count("bad_window");
                    let bad = self.bad(now);
                    self.publish_answer(bad);
                }
            }
        }
    }

    /// From the next sample on this is what the machine does.
    fn label(&mut self, label: String) {
        if self.truth.as_ref().is_some_and(|truth| truth.label == label) {
            return;
        }
        let from = self.streams.iter().map(|(key, stream)| (key.clone(), stream.seen())).collect();
        self.truth = Some(Truth { label, from });
    }

    /// Compares an answer with the label, which names a class or is its index.
    fn judge(&self, inference: &Inference, label: &str) {
        let Some(truth) = self.class_of(label) else {
            return self.parts.figures.count("unknown_label");
        };
        let answered = inference.label.as_deref().and_then(|name| index(&self.parts.labels, name));
        let Some(answered) = answered else { return };
        let right = answered == truth;
        self.parts.figures.update(|view| {
            view.judged = (view.judged.0 + u64::from(right), view.judged.1 + 1);
        });
    }

    /// Marks the last answer stale once its tags have stopped.
    fn watch(&mut self) {
        let now = self.parts.clock.now().wall;
        let fresh = |stream: &WindowStream| {
            let quality =
                crate::scada::window::quality(now, stream.last_sample(), self.parts.stale_after_ms);
            quality == Quality::Good
        };
        if let Some(last) = &self.last
            && matches!(last.quality, Quality::Good | Quality::Uncertain)
            && !self.streams.values().any(fresh)
        {
            let stale = last.clone().stale();
            self.publish_answer(stale);
        }
    }
}

/// The class of a name.
fn index(labels: &[String], name: &str) -> Option<usize> {
    labels.iter().position(|known| known == name)
}

/// What answers of a version are worth: those of the adapter that nobody has trained yet are guesses.
fn quality(version: Version) -> Quality {
    if version == 0 { Quality::Uncertain } else { Quality::Good }
}

impl Actor for Inferencer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(Self::WATCHDOG, |this, ctx| {
            this.watch();
            this.probe.seconds += 1;
            this.look(ctx);
            if let Some(tiers) = &mut this.tiers {
                tiers.record(false);
            }
            this.measure(ctx);
            this.compare(true, ctx);
            this.tell_seen(ctx);
        });
    }
}
