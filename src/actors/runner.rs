//! Carries out what the machines want, in the one order that keeps every promise:
//! **commit** (state, ledger and outbox in one transaction) -> **publish** -> **ack** -> timers, jobs.
//!
//! Acknowledged means recorded, published means recorded. What has to arrive is kept in the outbox
//! and sent verbatim, with back-off and full jitter, until the machine settles it by a receipt.
//! Steps that come while a commit is due share its transaction (group commit).
//!
//! A store that fails ends the process: in doubt it is better to start again from what is on disk.
//! Only a full disk is waited for: the step stays as it was prepared, unpublished and unacknowledged,
//! and is committed when there is room again. Before it comes to that, new work is refused
//! ([`Bounds::full_percent`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

use super::MAILBOX;
use super::figures::Figures;
use super::inferencer::{Attend, Serve};
use super::outbox::Outbox;
use super::quota::Quota;
use super::role::Stimulus;
use super::room::{Bounds, Waits};
use super::story;
use super::workbench::{Task, Workbench};
use crate::bus::{Ack, BusError, Crossing, Line, Outgoing, Priority, Publish, SealError};
use crate::fail;
use crate::ids::{BootId, Digest, Epoch, NodeId, RoundNo, Side, Version};
use crate::ledger::{Event, Head, Log, OwnWord, Twin};
use crate::protocol::{
    Ask, BackTask, Delivery, Effect, Fetches, FrontTask, Input, Job, Taken, Timer, To, Watch,
};
use crate::store::{Batch, OutboxItem, Store, StoreError};
use crate::time::{Clock, Mono, Now, Wall};
use crate::trust::{self, Sealer};
use crate::wire::{Body, Checkpoint, Chunk, Get, Kind, Leaving, Manifest, StaysInSite};

/// What a runner works with.
pub struct RunnerParts {
    /// Durable memory.
    pub store: Box<dyn Store>,
    /// Signs what leaves.
    pub sealer: Sealer,
    /// The ledger as the store has it.
    pub log: Log,
    /// Links that this node has.
    pub lines: BTreeMap<Side, Line>,
    /// Parent, of all but the cloud.
    pub parent: Option<NodeId>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Long work.
    pub bench: Box<dyn Workbench>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Seed of the back-off's jitter.
    pub seed: u64,
    /// Shows which adapter is in use.
    pub served: watch::Sender<Served>,
    /// Bounds of what it keeps.
    pub bounds: Bounds,
    /// Called when the node can't go on; ends the process, or stops a test.
    pub fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

/// The adapter in use: its version and packed bytes.
pub type Served = (Version, Arc<Vec<u8>>);

/// See the module.
pub struct Runner {
    parts: RunnerParts,
    role: Option<Recipient<Stimulus>>,
    server: Option<Recipient<Serve>>,
    watcher: Option<Recipient<Attend>>,
    pending: Vec<Run>,
    flushing: bool,
    /// A step that the disk has no room for.
    stalled: Option<Step>,
    /// Why new work is refused.
    full: Option<String>,
    timers: BTreeMap<Timer, SpawnHandle>,
    fetches: Fetches,
    outbox: Outbox,
    checkpoint_published: u64,
    own_word: OwnWord,
    /// When another one with this node's key was last told how long the ledger is.
    told_twin: Option<Mono>,
    quota: Quota,
    /// The blob that was given out last.
    lent: Option<Lent>,
    /// Adapters that were given to the server so far.
    served: u64,
    stopped: bool,
}

/// A blob in memory, for whoever fetches it.
struct Lent {
    sha256: Digest,
    bytes: Arc<Vec<u8>>,
    asked_at: Mono,
}

/// The effects of one step.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Run {
    /// In order.
    pub effects: Vec<Effect>,
    /// Released after the commit.
    pub ack: Ack,
}

/// Tells the runner who takes inputs and who serves.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Introduce {
    /// The role's actor.
    pub role: Recipient<Stimulus>,
    /// The inferencer, where there is one.
    pub server: Option<Recipient<Serve>>,
    /// The same, where it counts what is seen of a version that is rolled out.
    pub watcher: Option<Recipient<Attend>>,
}

/// Commit what waits now; answered when it is on disk.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Finish;

/// Commit what waits, and nothing any more: what comes behind the node's last entry is for its next start.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Cease;

/// Blobs that the machine still needs; others may go.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Keep(pub BTreeSet<Digest>);

/// A link came up or went down.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Link {
    /// Which.
    pub side: Side,
    /// Whether it is up.
    pub up: bool,
}

/// A chunk arrived.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ChunkArrived(pub Chunk);

/// Seal this for a child, and publish it when nothing else waits. It is kept nowhere.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), BusError>")]
pub struct Lend {
    /// The child.
    pub to: NodeId,
    /// What.
    pub body: Body,
}

/// A head that was signed with this node's key came back, of the start `boot`.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct OwnHead {
    /// That start.
    pub boot: BootId,
    /// When the message ends.
    pub expires_at: Wall,
    /// The head.
    pub head: Head,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Flush;

/// What one step leads to once it is committed.
#[derive(Default)]
struct After {
    publishes: Vec<(Side, Outgoing)>,
    acks: Vec<Ack>,
    rest: Vec<Effect>,
    told: Vec<Event>,
}

/// Steps that share a transaction, ready to be committed.
struct Step {
    batch: Batch,
    after: After,
}

impl Runner {
    const TICK: Duration = Duration::from_millis(250);
    const ROOM_EVERY: Duration = Duration::from_secs(5);
    /// How often a full disk is tried again.
    const FULL_PAUSE: Duration = Duration::from_secs(1);
    const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
    /// A blob that nobody asks for any more leaves the memory after this long.
    const LENT_MS: u64 = 10_000;
    /// Old heads that somebody says again are answered no more often than this.
    const TOLD_TWIN_MS: u64 = 1_000;
    /// Steps that share a transaction at most.
    const MAX_STEPS: usize = 512;

    /// A runner over a store whose outbox it takes up again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(parts: RunnerParts) -> Result<Self, StoreError> {
        let outbox = Outbox::new(parts.store.outbox()?, parts.seed);
        let own_word = OwnWord::new(parts.sealer.boot());
        Ok(Self {
            parts,
            role: None,
            server: None,
            watcher: None,
            pending: Vec::new(),
            flushing: false,
            stalled: None,
            full: None,
            timers: BTreeMap::new(),
            fetches: Fetches::default(),
            outbox,
            checkpoint_published: 0,
            own_word,
            told_twin: None,
            quota: Quota::default(),
            lent: None,
            served: 0,
            stopped: false,
        })
    }

    /// Commits once nothing more comes: the disk takes its milliseconds for a transaction, not for a
    /// step, so what is on its way through the gateway already should share this one.
    fn gather(&mut self, known: usize, ctx: &mut Context<Self>) {
        let others_first = tokio::task::yield_now().into_actor(self);
        ctx.spawn(others_first.map(move |(), this, ctx| {
            let waiting = this.pending.len();
            if waiting > known && waiting < Self::MAX_STEPS {
                this.gather(waiting, ctx);
            } else {
                this.flush(ctx);
            }
        }));
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        self.flushing = false;
        if self.stopped {
            return;
        }
        let step = match self.stalled.take() {
            Some(step) => step,
            None if self.pending.is_empty() => return,
            None => match self.save_blobs() {
                Ok(()) => match self.collect() {
                    Ok(step) => step,
                    Err(error) => return self.fail(&error, ctx),
                },
                Err(error @ StoreError::Full { .. }) => return self.wait_for_room(&error, ctx),
                Err(error) => return self.fail(&error.to_string(), ctx),
            },
        };
        fail::here("blobs-saved", "");
        self.commit(step, ctx);
        if !self.pending.is_empty() && !self.flushing && !self.stopped {
            self.flushing = true;
            ctx.notify(Flush);
        }
    }

    /// Blobs first: what names them may be committed then, and a full disk leaves the steps whole.
    fn save_blobs(&mut self) -> Result<(), StoreError> {
        for effect in self.pending.iter().flat_map(|run| &run.effects) {
            if let Effect::SaveBlob(bytes) = effect {
                self.parts.store.put_blob(bytes)?;
            }
        }
        Ok(())
    }

    /// Makes one transaction of all steps that wait.
    fn collect(&mut self) -> Result<Step, String> {
        let now = self.parts.clock.now();
        let mut batch = Batch { at: now.wall, ..Batch::default() };
        let mut after = After::default();
        for run in std::mem::take(&mut self.pending) {
            for effect in run.effects {
                self.prepare(effect, now, &mut batch, &mut after)?;
            }
            after.acks.push(run.ack);
        }
        if !batch.entries.is_empty() {
            let note = self.parts.log.checkpoint(self.parts.sealer.key());
            batch.checkpoint = Some(note.to_text().into_bytes());
        }
        Ok(Step { batch, after })
    }

    fn commit(&mut self, step: Step, ctx: &mut Context<Self>) {
        let now = self.parts.clock.now();
        let Step { batch, after } = step;
        fail::here("before-commit", "");
        let changes = batch != Batch { at: batch.at, ..Batch::default() };
        if changes {
            match self.parts.store.commit(std::slice::from_ref(&batch)) {
                Ok(()) => {}
                Err(error @ StoreError::Full { .. }) => {
                    self.stalled = Some(Step { batch, after });
                    return self.wait_for_room(&error, ctx);
                }
                Err(error) => return self.fail(&error.to_string(), ctx),
            }
        }
        self.parts.figures.update(|view| {
            view.commits += u64::from(changes);
            view.entries = self.parts.log.head().size;
            view.stalled = false;
        });
        fail::here("committed", "");
        after.told.iter().for_each(|event| fail::here("recorded", event.name()));
        after.told.iter().for_each(story::tell);
        self.outbox.mirror(batch, now.mono);
        let waiting = self.outbox.waiting().len() as u64;
        self.parts.figures.update(|view| view.outbox = waiting);
        self.publish_all(after.publishes);
        fail::here("published", "");
        after.acks.into_iter().for_each(Ack::release);
        fail::here("acknowledged", "");
        for effect in after.rest {
            self.carry_out(effect, now, ctx);
        }
    }

    /// Puts an effect into the transaction, or behind it.
    fn prepare(
        &mut self,
        effect: Effect,
        now: Now,
        batch: &mut Batch,
        after: &mut After,
    ) -> Result<(), String> {
        match effect {
            Effect::Put(key, value) => batch.state.push((key, Some(value))),
            Effect::Delete(key) => batch.state.push((key, None)),
            Effect::Record(event) if !self.quota.admits(&event, now.mono) => {
                self.parts.figures.count("ledger_quota");
            }
            Effect::Record(event) => {
                after.told.push(event.clone());
                if let Event::Contribute { bytes, .. } = &event {
                    let bytes = *bytes;
                    self.parts.figures.update(|view| {
                        view.deltas = (view.deltas.0 + bytes, view.deltas.1 + 1);
                    });
                }
                batch.entries.push(self.parts.log.append(now.wall, event));
            }
            Effect::SaveBlob(_) => {} // it is on disk: see `save_blobs`
            Effect::Settle(key) => batch.outbox_delete.push(key),
            Effect::Send { to, body, round, epoch, delivery } => {
                let kind = body.kind();
                let Some((side, outgoing)) = self.seal(to, body, (round, epoch), now)? else {
                    return Ok(());
                };
                self.parts.figures.update(|view| {
                    *view.sent.entry(kind.as_str()).or_default() += 1;
                });
                let priority = match kind {
                    Kind::Contribution | Kind::Result | Kind::Frame => Priority::Update,
                    _ => Priority::Control,
                };
                let at_least_once = kind != Kind::Frame; // a late one is worth nothing
                let (topic, wire) = (outgoing.topic().to_owned(), outgoing.payload().to_vec());
                let (key, retain) = match delivery {
                    Delivery::Volatile => (None, false),
                    Delivery::UntilSettled(key) => (Some(key), false),
                    Delivery::Latest => (Some(topic.clone()), true),
                };
                after.publishes.push((side, outgoing.sent(at_least_once, retain, priority)));
                if let Some(key) = key {
                    let sealed_at = now.wall;
                    let item = OutboxItem { key, side, topic, wire, retain, sealed_at };
                    batch.outbox_put.push(item);
                }
            }
            Effect::Fatal(what) => return Err(what),
            other => after.rest.push(other),
        }
        Ok(())
    }

    /// Nothing where the message may not go there: it is counted.
    fn seal(
        &mut self,
        to: To,
        body: Body,
        place: (RoundNo, Epoch),
        now: Now,
    ) -> Result<Option<(Side, Outgoing)>, String> {
        let directly = body.kind().is_direct();
        let (side, address) = match to {
            To::Children => (Side::Down, trust::To::Anyone),
            To::Child(node) => (Side::Down, trust::To::Directly(node)),
            To::Standby(node) => (Side::Up, trust::To::Directly(node)),
            To::Parent => {
                let parent = self.parts.parent.clone().ok_or("this node has no parent")?;
                let address =
                    if directly { trust::To::Directly(parent) } else { trust::To::Named(parent) };
                (Side::Up, address)
            }
        };
        let Some(line) = self.parts.lines.get(&side) else {
            self.parts.figures.count("no_such_link");
            return Ok(None);
        };
        match line.seal(&mut self.parts.sealer, &address, body, place, now.wall) {
            Ok(outgoing) => Ok(Some((side, outgoing))),
            Err(SealError::Stays(error)) => {
                tracing::error!(%error, "a bug: something was kept back at the border of the site");
                self.parts.figures.count(StaysInSite::KIND);
                Ok(None)
            }
            Err(error) => Err(format!("can't be sealed: {error}")),
        }
    }

    fn carry_out(&mut self, effect: Effect, now: Now, ctx: &mut Context<Self>) {
        match effect {
            Effect::Republish => {
                let messages = self.outbox.republish(now.mono);
                self.publish_again(messages);
            }
            Effect::SendChunks { to, side, sha256, chunk_bytes, indices } => {
                self.send_chunks(&to, side, &sha256, chunk_bytes, &indices);
            }
            Effect::Fetch { from, side, manifest } => self.fetch(from, side, manifest, now, ctx),
            Effect::Forget(digest) => self.fetches.forget(&digest),
            Effect::Timer { timer, after_ms } => self.set_timer(timer, after_ms, ctx),
            Effect::Job(job) => self.start_job(job, ctx),
            Effect::Apply { version, adapter } => self.apply(version, adapter, ctx),
            Effect::Watch(watch) => self.watch(watch, ctx),
            Effect::Count(reason) => self.parts.figures.count(reason),
            // Handled in `prepare`, or inside of a relay.
            Effect::Put(..)
            | Effect::Delete(_)
            | Effect::Record(_)
            | Effect::SaveBlob(_)
            | Effect::Settle(_)
            | Effect::Send { .. }
            | Effect::Fatal(_)
            | Effect::Contribute { .. }
            | Effect::Local(_)
            | Effect::WishAbove(_)
            | Effect::PassOn { .. } => self.parts.figures.count("effect_out_of_place"),
        }
    }

    fn publish(&self, side: Side, outgoing: Outgoing) {
        let Some(line) = self.parts.lines.get(&side) else {
            return self.parts.figures.count("no_such_link");
        };
        let bytes = outgoing.payload().len() as u64;
        match line.publish(outgoing) {
            Ok(()) => self.parts.figures.update(|view| {
                *view.bytes_out.entry(side).or_default() += bytes;
            }),
            Err(error) => {
                if let BusError::TooLarge { .. } = error {
                    tracing::error!(%error, "raise the broker's packet limit or lower ours");
                }
                self.parts.figures.count(error.kind());
            }
        }
    }

    fn publish_all(&self, messages: Vec<(Side, Outgoing)>) {
        for (side, outgoing) in messages {
            fail::here("publishing", outgoing.topic().rsplit('/').next().unwrap_or_default());
            self.publish(side, outgoing);
        }
    }

    /// What lay in the outbox.
    fn publish_again(&self, messages: Vec<(Side, Publish)>) {
        for (side, message) in messages {
            match self.parts.lines.get(&side).map(|line| line.kept(message)) {
                Some(Ok(outgoing)) => self.publish(side, outgoing),
                Some(Err(_)) => self.parts.figures.count(StaysInSite::KIND),
                None => self.parts.figures.count("no_such_link"),
            }
        }
    }

    fn send_chunks(
        &mut self,
        to: &NodeId,
        side: Side,
        sha256: &Digest,
        chunk_bytes: u32,
        indices: &[u32],
    ) {
        let Some(bytes) = self.lend(sha256) else {
            return self.parts.figures.count("chunk_of_unknown_blob");
        };
        let size = usize::try_from(chunk_bytes).unwrap_or(usize::MAX).max(1);
        for index in indices {
            let at = usize::try_from(*index).unwrap_or(usize::MAX);
            let Some(data) = bytes.chunks(size).nth(at) else {
                self.parts.figures.count("chunk_out_of_range");
                continue;
            };
            let chunk = Chunk { sha256: *sha256, index: *index, data: data.to_vec() };
            if let Ok(crossing) = Crossing::chunk(self.parts.sealer.branch(), to, &chunk) {
                self.publish(side, crossing.into());
            }
        }
    }

    /// A blob that is given out in chunks: read and checked once, not for each eight of them.
    fn lend(&mut self, sha256: &Digest) -> Option<Arc<Vec<u8>>> {
        let now = self.parts.clock.now().mono;
        let bytes = match &self.lent {
            Some(lent) if lent.sha256 == *sha256 => Arc::clone(&lent.bytes),
            _ => Arc::new(self.parts.store.blob(sha256).ok().flatten()?),
        };
        self.lent = Some(Lent { sha256: *sha256, bytes: Arc::clone(&bytes), asked_at: now });
        Some(bytes)
    }

    fn fetch(
        &mut self,
        from: NodeId,
        side: Side,
        manifest: Manifest,
        now: Now,
        ctx: &mut Context<Self>,
    ) {
        match self.parts.store.blob(&manifest.sha256) {
            Ok(Some(bytes)) => self.feed(Input::Fetched { digest: manifest.sha256, bytes }, ctx),
            Ok(None) => match self.fetches.begin(now.mono, from, side, manifest) {
                Ok(ask) => ask.into_iter().for_each(|ask| self.ask(ask, now)),
                Err(reason) => self.parts.figures.count(reason),
            },
            Err(error) => self.fail(&error.to_string(), ctx),
        }
    }

    fn ask(&mut self, ask: Ask, now: Now) {
        let to = trust::To::Directly(ask.from);
        let leaving = Leaving::new(Get { wanted: ask.wanted });
        match Crossing::seal(&mut self.parts.sealer, &to, &leaving, 0, 0, now.wall) {
            Ok(crossing) => self.publish(ask.side, crossing.into()),
            Err(error) => tracing::error!(%error, "a request can't be sealed"),
        }
    }

    fn set_timer(&mut self, timer: Timer, after_ms: u64, ctx: &mut Context<Self>) {
        let handle = ctx.run_later(Duration::from_millis(after_ms), move |this, ctx| {
            this.timers.remove(&timer);
            this.feed(Input::Timer(timer), ctx);
        });
        if let Some(old) = self.timers.insert(timer, handle) {
            ctx.cancel_future(old);
        }
    }

    fn start_job(&mut self, job: Job, ctx: &mut Context<Self>) {
        let task = match job {
            Job::Train(task) => {
                let adapter = self.parts.store.blob(&task.adapter);
                let residual = task.residual.map(|digest| self.parts.store.blob(&digest));
                let said = task.knowledge.as_ref().map(|said| self.parts.store.blob(&said.set));
                match (adapter, residual.transpose(), said.transpose()) {
                    (Ok(Some(adapter)), Ok(residual), Ok(said)) => Task::Train {
                        task: *task,
                        adapter,
                        residual: residual.flatten(),
                        knowledge: said.flatten(),
                    },
                    _ => return self.fail("the adapter to train from is not in the store", ctx),
                }
            }
            Job::Distil(task) => {
                let said = task.offered.as_ref().map(|said| said.set);
                match (self.blob_of(Some(task.adapter)), self.blob_of(said)) {
                    (Ok(adapter), Ok(offered)) => {
                        Task::Distil { task: *task, adapter: adapter.unwrap_or_default(), offered }
                    }
                    (Err(what), _) | (_, Err(what)) => return self.fail(&what, ctx),
                }
            }
            Job::Combine(job) => Task::Combine { job: *job, blobs: self.parts.store.blob_reader() },
            Job::Front(task) => {
                let (adapter, residual) = match &task {
                    FrontTask::Begin { task, .. } => (Some(task.adapter), task.residual),
                    _ => (None, None),
                };
                match (self.blob_of(adapter), self.blob_of(residual)) {
                    (Ok(adapter), Ok(residual)) => Task::Front { task, adapter, residual },
                    (Err(what), _) | (_, Err(what)) => return self.fail(&what, ctx),
                }
            }
            Job::Back { device, run, task } => {
                let adapter = match &task {
                    BackTask::Open { adapter, .. } => Some(*adapter),
                    _ => None,
                };
                match self.blob_of(adapter) {
                    Ok(adapter) => Task::Back { device, run, task, adapter },
                    Err(what) => return self.fail(&what, ctx),
                }
            }
        };
        let me = ctx.address();
        let done = move |end| {
            // From a lane's thread. A machine waits for each end without a timer, so none may get lost in a full
            // mailbox; the lanes' queues bound how many there are.
            me.do_send(JobEnded(end));
        };
        self.parts.bench.start(task, Box::new(done));
    }

    /// The bytes of a blob that a job names, if it names one.
    fn blob_of(&self, digest: Option<Digest>) -> Result<Option<Vec<u8>>, String> {
        let Some(digest) = digest else { return Ok(None) };
        let found = self.parts.store.blob(&digest).map_err(|error| error.to_string())?;
        found.map(Some).ok_or_else(|| format!("blob {digest} is not in the store"))
    }

    fn apply(&mut self, version: u64, adapter: Digest, ctx: &mut Context<Self>) {
        match self.parts.store.blob(&adapter) {
            Ok(Some(bytes)) => {
                self.parts.served.send_replace((version, Arc::new(bytes.clone())));
                let Some(server) = self.server.clone() else { return };
                self.served += 1;
                let serve = Serve { turn: self.served, version, adapter: bytes };
                ctx.spawn(async move { server.send(serve).await.unwrap_or(()) }.into_actor(self));
            }
            Ok(None) => self.parts.figures.count("adapter_missing"),
            Err(error) => self.fail(&error.to_string(), ctx),
        }
    }

    /// Has the inferencer count what is seen of a version that is rolled out.
    fn watch(&mut self, watch: Option<Watch>, ctx: &mut Context<Self>) {
        let Some(watcher) = self.watcher.clone() else { return };
        let beside = self.blob_of(watch.as_ref().and_then(|watch| watch.beside));
        if beside.is_err() {
            self.parts.figures.count("adapter_missing");
        }
        // Without it answers are counted, and none is compared.
        let beside = beside.ok().flatten();
        let attend = Attend { watch, beside };
        ctx.spawn(async move { watcher.send(attend).await.unwrap_or(()) }.into_actor(self));
    }

    /// Gives the machine an input of our own making.
    fn feed(&mut self, input: Input, ctx: &mut Context<Self>) {
        let Some(role) = self.role.clone() else { return };
        let stimulus = Stimulus { input, ack: Ack::none() };
        // Not awaited here: the role waits for us when it hands over effects.
        ctx.spawn(async move { role.send(stimulus).await.unwrap_or(()) }.into_actor(self));
    }

    fn fail(&mut self, what: &str, ctx: &mut Context<Self>) {
        self.stopped = true;
        tracing::error!(what, "the node can't go on");
        (self.parts.fatal)(what);
        ctx.stop();
    }

    fn wait_for_room(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        self.parts.figures.update(|view| view.stalled = true);
        self.flushing = true;
        ctx.notify_later(Flush, Self::FULL_PAUSE);
        self.set_full(Some(error.to_string()), ctx);
    }

    /// Looks how much room there is, and tells the machine when that changes what it may begin.
    fn look_for_room(&mut self, ctx: &mut Context<Self>) {
        if self.stalled.is_some() {
            return;
        }
        let now = self.parts.clock.now().wall;
        let waits = self.outbox.waiting().map(|item| Waits::of(item, now));
        let (dropped, waits) = self.parts.bounds.drop_summaries(waits);
        for key in dropped {
            self.feed(Input::Expired(key), ctx);
        }
        let quota = self.parts.store.fill_percent();
        let reason = self.parts.bounds.full(quota, waits);
        self.set_full(reason, ctx);
    }

    fn set_full(&mut self, reason: Option<String>, ctx: &mut Context<Self>) {
        let full = reason.is_some();
        if full != self.full.is_some() {
            if let Some(reason) = &reason {
                tracing::warn!(reason, "no new work is taken; answers go on");
            } else {
                tracing::info!("there is room again; new work is taken");
            }
            self.feed(Input::Full(full), ctx);
        }
        self.parts.figures.update(|view| view.full.clone_from(&reason));
        self.full = reason;
    }

    fn publish_checkpoint(&mut self) {
        if self.parts.log.head().size != self.checkpoint_published {
            let sides: Vec<Side> = self.parts.lines.keys().copied().collect();
            self.publish_head(&sides);
        }
    }

    /// On a link that is up: whoever has this node's key and another ledger is to hear of ours, and we of theirs.
    fn look_for_twin(&mut self, side: Side) {
        // Again each time: a broker that kept the session tells nothing that it retained.
        let own = self.parts.sealer.branch().machine(Kind::Checkpoint.as_str());
        if let Some(line) = self.parts.lines.get(&side)
            && let Err(error) = line.subscribe(&[own])
        {
            tracing::error!(?side, %error, "can't subscribe");
        }
        self.publish_head(&[side]);
    }

    fn publish_head(&mut self, sides: &[Side]) {
        let head = self.parts.log.head();
        if self.stalled.is_some() || head.size == 0 {
            return; // its newest entries aren't on disk
        }
        self.checkpoint_published = head.size;
        let note = self.parts.log.checkpoint(self.parts.sealer.key());
        let leaving = Leaving::new(Checkpoint { document: note.to_text().into_bytes() });
        let (to, now) = (trust::To::Anyone, self.parts.clock.now());
        let sealed = Crossing::seal(&mut self.parts.sealer, &to, &leaving, 0, 0, now.wall);
        let Ok(crossing) = sealed else { return };
        let outgoing = Outgoing::from(crossing).sent(true, true, Priority::Control);
        for side in sides {
            self.publish(*side, outgoing.clone());
        }
    }
}

impl Actor for Runner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(Self::TICK, |this, _| {
            let now = this.parts.clock.now();
            let due = this.outbox.due(now.mono);
            this.publish_again(due);
            let idle = |at: Mono| now.mono.0.saturating_sub(at.0) >= Self::LENT_MS;
            this.lent = this.lent.take().filter(|lent| !idle(lent.asked_at));
            for ask in this.fetches.overdue(now.mono) {
                this.ask(ask, now);
            }
        });
        ctx.run_interval(Self::ROOM_EVERY, Self::look_for_room);
        ctx.run_interval(Self::CHECKPOINT_EVERY, |this, _| this.publish_checkpoint());
    }
}

impl Handler<Run> for Runner {
    type Result = ();

    fn handle(&mut self, run: Run, ctx: &mut Self::Context) {
        self.pending.push(run);
        if !self.flushing {
            self.flushing = true;
            self.gather(self.pending.len(), ctx);
        }
    }
}

impl Handler<Flush> for Runner {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush(ctx);
    }
}

impl Handler<Finish> for Runner {
    type Result = ();

    fn handle(&mut self, _: Finish, ctx: &mut Self::Context) {
        self.flush(ctx);
    }
}

impl Handler<Cease> for Runner {
    type Result = ();

    fn handle(&mut self, _: Cease, ctx: &mut Self::Context) {
        self.flush(ctx);
        self.stopped = true;
    }
}

impl Handler<Introduce> for Runner {
    type Result = ();

    fn handle(&mut self, Introduce { role, server, watcher }: Introduce, ctx: &mut Self::Context) {
        self.role = Some(role);
        self.server = server;
        self.watcher = watcher;
        self.look_for_room(ctx); // before anything is begun
        self.feed(Input::Start, ctx);
    }
}

impl Handler<Keep> for Runner {
    type Result = ();

    fn handle(&mut self, Keep(blobs): Keep, ctx: &mut Self::Context) {
        // What the machine no longer needs may still be named by the state on disk, until the step
        // that left it is there too.
        self.flush(ctx);
        if self.stalled.is_some() || !self.pending.is_empty() || self.stopped {
            return;
        }
        if let Err(error) = self.parts.store.retain_blobs(&blobs) {
            tracing::warn!(%error, "old blobs can't be deleted");
        }
    }
}

impl Handler<Link> for Runner {
    type Result = ();

    fn handle(&mut self, Link { side, up }: Link, _: &mut Self::Context) {
        if up {
            let messages = self.outbox.link_up(side, self.parts.clock.now().mono);
            self.publish_again(messages);
            self.look_for_twin(side);
        } else {
            self.outbox.link_down(side);
        }
    }
}

impl Handler<OwnHead> for Runner {
    type Result = ();

    fn handle(&mut self, OwnHead { boot, expires_at, head }: OwnHead, ctx: &mut Self::Context) {
        let own = self.parts.log.head();
        match self.own_word.hears(boot, expires_at, &head, &own) {
            None => {}
            Some(Twin::KnewLess) => {
                let now = self.parts.clock.now().mono;
                let is_due = |at: Mono| now.0.saturating_sub(at.0) >= Self::TOLD_TWIN_MS;
                if self.told_twin.is_none_or(is_due) {
                    self.told_twin = Some(now);
                    let sides: Vec<Side> = self.parts.lines.keys().copied().collect();
                    self.publish_head(&sides);
                }
            }
            Some(Twin::KnewMore) => {
                tracing::error!(
                    signed = head.size,
                    stored = own.size,
                    "this node has signed a ledger of another length: the store was put back from a backup, or a \
                     copy of it runs elsewhere. See docs/security.md"
                );
                self.parts.figures.count("older_than_its_word");
            }
            Some(Twin::Lives) => {
                self.parts.figures.count("twin");
                let what = format!(
                    "another process runs with this node's name and key: one of the two has a copy of its disk. This one has \
                     the shorter ledger ({own} entries, {said} there) and ends, which doesn't say that it is the copy. Stop \
                     whichever is the copy, and enrol it under a name and a key of its own",
                    own = own.size,
                    said = head.size
                );
                self.fail(&what, ctx);
            }
        }
    }
}

impl Handler<ChunkArrived> for Runner {
    type Result = ();

    fn handle(&mut self, ChunkArrived(chunk): ChunkArrived, ctx: &mut Self::Context) {
        let now = self.parts.clock.now();
        match self.fetches.chunk(now.mono, chunk) {
            Ok(Taken::More(None)) => {}
            Ok(Taken::More(Some(ask))) => self.ask(ask, now),
            Ok(Taken::Complete(digest, bytes)) => {
                match self.parts.store.put_checked_blob(&digest, &bytes) {
                    Ok(()) => self.feed(Input::Fetched { digest, bytes }, ctx),
                    // Whoever needs it asks for it again when its message comes again.
                    Err(error @ StoreError::Full { .. }) => {
                        self.parts.figures.count(error.kind());
                        self.set_full(Some(error.to_string()), ctx);
                    }
                    Err(error) => self.fail(&error.to_string(), ctx),
                }
            }
            Err(reason) => self.parts.figures.count(reason),
        }
    }
}

impl Handler<Lend> for Runner {
    type Result = Result<(), BusError>;

    fn handle(&mut self, Lend { to, body }: Lend, _: &mut Self::Context) -> Self::Result {
        let now = self.parts.clock.now().wall;
        let kind = body.kind().as_str();
        let line = self.parts.lines.get(&Side::Down).ok_or(BusError::Closed)?;
        let to = trust::To::Directly(to);
        let sealed = line.seal(&mut self.parts.sealer, &to, body, (0, 0), now);
        let outgoing = sealed.map_err(|error| {
            tracing::error!(%error, "a chunk of the base can't be sealed");
            BusError::Closed
        })?;
        let bytes = outgoing.payload().len() as u64;
        line.publish(outgoing.sent(true, false, Priority::Idle))?;
        self.parts.figures.update(|view| {
            *view.bytes_out.entry(Side::Down).or_default() += bytes;
            *view.sent.entry(kind).or_default() += 1;
        });
        Ok(())
    }
}

/// A job's end, from its thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct JobEnded(Result<Input, String>);

impl Handler<JobEnded> for Runner {
    type Result = ();

    fn handle(&mut self, JobEnded(end): JobEnded, ctx: &mut Self::Context) {
        match end {
            Ok(input) => self.feed(input, ctx),
            Err(what) => self.fail(&what, ctx),
        }
    }
}
