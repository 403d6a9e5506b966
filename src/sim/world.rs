//! The network and its clock.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{Context, SHA256};

use super::faults::{Crash, Faults, Moment, Pause};
use super::history::History;
use super::node::{Machine, Node, Settings};
use super::{invariants, learner, letter};
use crate::ids::{Digest, NodeId, Side};
use crate::ledger::Entry;
use crate::protocol::{
    Ask, Delivery, Effect, FailoverView, Fetches, Input, Job, Taken, Timer, To, fixture,
};
use crate::rng::Stream;
use crate::store::{Batch, OutboxItem, Store};
use crate::time::{Mono, Now, Wall};
use crate::wire::{Blob, Body, Chunk, Coding, Get, Manifest};

/// A run. See the module of `sim`.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) history: History,
    pub(crate) crashes: Vec<Crash>,
    /// The order of the runner; a test turns it around to show what it is for.
    pub(crate) commit_first: bool,
    pub(crate) now_ms: u64,
    faults: Faults,
    rng: Stream,
    queue: BTreeMap<(u64, u64), Event>,
    count: u64,
    cut: Option<NodeId>,
    /// Nodes that are stopped, from when to when: what is due goes on behind it.
    pub(crate) pauses: Vec<Pause>,
    /// When an owner and its standby don't hear each other.
    pub(crate) apart: std::ops::Range<u64>,
    trace: Context,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a queue of some hundreds")]
enum Event {
    Letter { from: NodeId, to: NodeId, wire: Vec<u8> },
    Chunk { to: NodeId, chunk: Chunk },
    Timer { node: NodeId, timer: Timer, due: u64 },
    Worked { node: NodeId, life: u64, input: Input },
    Resend { node: NodeId, life: u64 },
    Overdue { node: NodeId, life: u64 },
    Revive { node: NodeId },
    Partition,
}

impl World {
    const RESEND_MS: u64 = 1_500;

    /// One cloud, three sites with four devices each.
    pub(crate) fn new(faults: Faults, seed: u64) -> Self {
        Self::of_size(faults, seed, 8, Coding::Int8)
    }

    /// The same where each node has a model of its own, and they say what they think of `samples` inputs.
    pub(crate) fn of_knowledge(faults: Faults, seed: u64, samples: u32) -> Self {
        let mut world = Self::of_size(faults, seed, 8, Coding::Int8);
        world.settings.plan = fixture::knowledge_plan(samples);
        world
    }

    /// The same with an adapter of another size.
    pub(crate) fn of_size(faults: Faults, seed: u64, width: usize, coding: Coding) -> Self {
        let settings = Settings {
            adapter: fixture::first_adapter(width),
            plan: fixture::plan(coding),
            versions: 3,
        };
        let mut world = Self {
            settings,
            nodes: BTreeMap::new(),
            history: History::default(),
            crashes: Vec::new(),
            commit_first: true,
            now_ms: 0,
            faults,
            rng: Stream::new(seed, "sim"),
            queue: BTreeMap::new(),
            count: 0,
            cut: None,
            pauses: Vec::new(),
            apart: 0..0,
            trace: Context::new(&SHA256),
        };
        let cloud = id("cloud");
        let sites: BTreeSet<NodeId> = ["a", "b", "c"].map(|s| id(&format!("edge-{s}"))).into();
        for edge in &sites {
            let site = edge.as_str().trim_start_matches("edge-");
            let devices: BTreeSet<NodeId> = (1..=4).map(|n| id(&format!("{site}{n}"))).collect();
            for device in &devices {
                world.add(Node::new(device.clone(), Some(edge.clone()), BTreeSet::new()));
            }
            world.add(Node::new(edge.clone(), Some(cloud.clone()), devices));
        }
        world.add(Node::new(cloud, None, sites));
        if faults.partition_ms > 0 {
            world.after(faults.partition_ms, Event::Partition);
        }
        world
    }

    /// The same with a standby of the cloud.
    pub(crate) fn with_standby(faults: Faults, seed: u64) -> Self {
        Self::with_standby_of_size(faults, seed, 8)
    }

    /// The same with an adapter of another size.
    pub(crate) fn with_standby_of_size(faults: Faults, seed: u64, width: usize) -> Self {
        let mut world = Self::of_size(faults, seed, width, Coding::Int8);
        let (cloud, standby) = (id("cloud"), id("cloud-2"));
        let sites = world.nodes[&cloud].children.clone();
        for site in &sites {
            world.node(site).peer = Some(standby.clone());
        }
        world.node(&cloud).peer = Some(standby.clone());
        let mut second = Node::new(standby, None, sites);
        second.peer = Some(cloud);
        world.add(second);
        world
    }

    /// Runs until all have the last version and nothing waits for a receipt.
    ///
    /// # Errors
    /// The invariant that is broken.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        const END_OF_TIME_MS: u64 = 900_000;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now_ms = at;
            if let Some(until) = self.stopped_until(&event) {
                self.put_off(until, event);
                continue;
            }
            if at > END_OF_TIME_MS {
                break;
            }
            self.event(event)?;
            if at > self.faults.until_ms && invariants::converges::check(self).is_ok() {
                return Ok(());
            }
        }
        invariants::converges::check(self)
    }

    /// Runs up to a time.
    ///
    /// # Errors
    /// The invariant that is broken.
    pub(crate) fn run_until(&mut self, ms: u64) -> Result<(), String> {
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= ms) {
            let Some(((at, _), event)) = self.queue.pop_first() else { break };
            self.now_ms = at;
            match self.stopped_until(&event) {
                Some(until) => self.put_off(until, event),
                None => self.event(event)?,
            }
        }
        Ok(())
    }

    /// SHA-256 over everything that was sent so far.
    pub(crate) fn trace(&self) -> Digest {
        let mut out = [0; 32];
        out.copy_from_slice(self.trace.clone().finish().as_ref());
        Digest(out)
    }

    /// Something for a node from outside.
    ///
    /// # Errors
    /// The invariant that is broken.
    pub(crate) fn tell(&mut self, node: &str, input: Input) -> Result<(), String> {
        self.step(&id(node), input)
    }

    /// When the node that an event is for goes on, if it is stopped.
    fn stopped_until(&self, event: &Event) -> Option<u64> {
        let node = match event {
            Event::Letter { to, .. } | Event::Chunk { to, .. } => to,
            Event::Timer { node, .. }
            | Event::Worked { node, .. }
            | Event::Resend { node, .. }
            | Event::Overdue { node, .. }
            | Event::Revive { node } => node,
            Event::Partition => return None,
        };
        let stopped =
            |pause: &&Pause| id(&pause.node) == *node && pause.span.contains(&self.now_ms);
        self.pauses.iter().find(stopped).map(|pause| pause.span.end)
    }

    /// In the order in which it came.
    fn put_off(&mut self, until: u64, event: Event) {
        self.count += 1;
        self.queue.insert((until, self.count), event);
    }

    fn add(&mut self, node: Node) {
        let name = node.id.clone();
        self.nodes.insert(name.clone(), node);
        let at = self.below(50);
        self.after(at, Event::Revive { node: name });
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Letter { from, to, wire } => self.deliver(&from, &to, &wire),
            Event::Chunk { to, chunk } => self.chunk(&to, chunk),
            Event::Timer { node, timer, due } => {
                let known = self.node(&node).timers.get(&timer) == Some(&due);
                if known { self.step(&node, Input::Timer(timer)) } else { Ok(()) }
            }
            Event::Worked { node, life, input } => {
                if self.lives(&node, life) {
                    self.step(&node, input)
                } else {
                    Ok(())
                }
            }
            Event::Resend { node, life } => {
                if self.lives(&node, life) {
                    self.resend(&node, false);
                    self.after(Self::RESEND_MS, Event::Resend { node, life });
                }
                Ok(())
            }
            Event::Overdue { node, life } => {
                if self.lives(&node, life) {
                    let now = Mono(self.now_ms);
                    for ask in self.node(&node).fetches.overdue(now) {
                        self.ask(&node, ask);
                    }
                    self.after(Fetches::RETRY_MS, Event::Overdue { node, life });
                }
                Ok(())
            }
            Event::Revive { node } => {
                let settings = self.settings.clone();
                let reborn = self.node(&node);
                reborn.revive(&settings);
                let life = reborn.life;
                self.after(1, Event::Resend { node: node.clone(), life });
                self.after(Fetches::RETRY_MS, Event::Overdue { node: node.clone(), life });
                self.step(&node, Input::Start)
            }
            Event::Partition => {
                let sites = self.nodes[&id("cloud")].children.clone();
                let pick = self.rng.below(sites.len());
                self.cut = match self.cut {
                    Some(_) => None,
                    None => sites.into_iter().nth(pick),
                };
                if self.now_ms < self.faults.until_ms {
                    self.after(self.faults.partition_ms, Event::Partition);
                } else {
                    self.cut = None;
                }
                Ok(())
            }
        }
    }

    fn deliver(&mut self, from: &NodeId, to: &NodeId, wire: &[u8]) -> Result<(), String> {
        let message = letter::open(from, wire);
        let before = self.node(to).store.num_commits();
        let outdated = invariants::epochs_fence::is_outdated(&self.nodes[to], &message);
        self.step(to, Input::Message(message))?;
        if outdated && self.nodes[to].store.num_commits() != before {
            return Err(format!("epochs_fence: {to} changed by a lower epoch"));
        }
        Ok(())
    }

    fn chunk(&mut self, to: &NodeId, chunk: Chunk) -> Result<(), String> {
        let now = Mono(self.now_ms);
        let node = self.node(to);
        match node.fetches.chunk(now, chunk) {
            Ok(Taken::More(Some(ask))) => self.ask(to, ask),
            Ok(Taken::Complete(digest, bytes)) => {
                node.store.put_blob(&bytes).unwrap();
                return self.step(to, Input::Fetched { digest, bytes });
            }
            Ok(Taken::More(None)) | Err(_) => {}
        }
        Ok(())
    }

    /// One step: transaction, then what leaves. The node may die anywhere in it.
    fn step(&mut self, name: &NodeId, input: Input) -> Result<(), String> {
        let now =
            Now { mono: Mono(self.now_ms), micros: self.now_ms * 1_000, wall: Wall(self.now_ms) };
        let node = self.node(name);
        if node.machine.is_none() {
            return Ok(());
        }
        let effects = node.step(now, input);
        let (batch, after) = self.prepare(name, &effects, now.wall);
        let changes = batch != Batch { at: now.wall, ..Batch::default() };
        let death = if changes { self.death(name) } else { None };
        if !self.commit_first {
            self.carry_out_all(name, &after, death);
        }
        if death == Some(Moment::BeforeCommit) {
            self.kill(name);
            return self.check(name);
        }
        if changes {
            self.node(name).store.commit(&[batch]).unwrap();
        }
        if self.is_paired(name) {
            self.history.committed_by_pair(name, &effects);
        } else {
            self.history.committed(name, &effects);
        }
        if self.commit_first {
            self.carry_out_all(name, &after, death);
        }
        if death.is_some() {
            self.kill(name);
        } else if effects.iter().any(Effect::frees_blobs) {
            let node = self.node(name);
            let keep = node.blobs();
            node.store.retain_blobs(&keep).unwrap();
        }
        if changes { self.check(name) } else { Ok(()) }
    }

    fn check(&self, name: &NodeId) -> Result<(), String> {
        invariants::check(&self.history, &self.nodes[name])
            .map_err(|what| format!("at {} ms: {what}", self.now_ms))
    }

    fn prepare(&mut self, name: &NodeId, effects: &[Effect], at: Wall) -> (Batch, Vec<Leaving>) {
        let mut batch = Batch { at, ..Batch::default() };
        let mut after = Vec::new();
        for effect in effects {
            match effect {
                Effect::Put(key, value) => batch.state.push((key.clone(), Some(value.clone()))),
                Effect::Delete(key) => batch.state.push((key.clone(), None)),
                Effect::Record(event) => {
                    batch.entries.push(Entry::new(name.clone(), at, event.clone()).to_bytes());
                }
                Effect::SaveBlob(bytes) => {
                    self.node(name).store.put_blob(bytes).unwrap();
                }
                Effect::Settle(key) => batch.outbox_delete.push(key.clone()),
                Effect::Send { to, body, round, epoch, delivery } => {
                    let wire = letter::seal(body, *round, *epoch);
                    let item = |key: &str, retain| OutboxItem {
                        key: key.into(),
                        side: match to {
                            To::Parent | To::Standby(_) => Side::Up,
                            To::Children | To::Child(_) => Side::Down,
                        },
                        topic: body.kind().as_str().into(),
                        wire: wire.clone(),
                        retain,
                        sealed_at: at,
                    };
                    match delivery {
                        Delivery::Volatile => {}
                        Delivery::UntilSettled(key) => batch.outbox_put.push(item(key, false)),
                        Delivery::Latest => {
                            batch.outbox_put.push(item(body.kind().as_str(), true));
                        }
                    }
                    after.push(Leaving::Letter { to: to.clone(), body: body.clone(), wire });
                }
                other => after.push(Leaving::Effect(other.clone())),
            }
        }
        (batch, after)
    }

    fn carry_out_all(&mut self, name: &NodeId, after: &[Leaving], death: Option<Moment>) {
        let most = match death {
            Some(Moment::AfterEffects(count)) => count,
            Some(Moment::BeforeCommit) | None => usize::MAX,
        };
        for leaving in after.iter().take(most) {
            match leaving {
                Leaving::Letter { to, body, wire } => {
                    match body {
                        _ if self.is_paired(name) => self.history.said_by_pair(name, body),
                        Body::Receipt(receipt) => self.history.receipt(name, receipt),
                        _ => {}
                    }
                    let to_both = matches!(body, Body::Contribution(_));
                    for to in self.addressees(name, to, to_both) {
                        self.post(name, &to, wire);
                    }
                }
                Leaving::Effect(effect) => self.carry_out(name, effect),
            }
        }
    }

    fn carry_out(&mut self, name: &NodeId, effect: &Effect) {
        match effect.clone() {
            Effect::Republish => self.resend(name, true),
            Effect::SendChunks { to, sha256, chunk_bytes, indices, .. } => {
                let Some(bytes) = self.nodes[name].store.blob(&sha256).unwrap() else { return };
                for index in indices {
                    let at = usize::try_from(index).unwrap();
                    let piece = bytes.chunks(usize::try_from(chunk_bytes).unwrap()).nth(at);
                    let Some(data) = piece.map(<[u8]>::to_vec) else { continue };
                    if let Some(delays) = self.fate(name, &to) {
                        for delay in delays {
                            let chunk = Chunk { sha256, index, data: data.clone() };
                            self.after(delay, Event::Chunk { to: to.clone(), chunk });
                        }
                    }
                }
            }
            Effect::Fetch { from, side, manifest } => self.fetch(name, from, side, manifest),
            Effect::Timer { timer, after_ms } => {
                let due = self.now_ms + after_ms;
                self.node(name).timers.insert(timer, due);
                self.after(after_ms, Event::Timer { node: name.clone(), timer, due });
            }
            Effect::Job(job) => {
                let life = self.nodes[name].life;
                let store = self.nodes[name].store.clone();
                let blob = |digest: &Digest| store.blob(digest).unwrap();
                let input = match &job {
                    Job::Train(task) => Input::Worked {
                        offer: task.offer,
                        work: Ok(learner::train(name, task, &blob)),
                    },
                    Job::Combine(job) => {
                        Input::Combined { offer: job.offer, outcome: learner::combine(job, &blob) }
                    }
                    Job::Front(_) | Job::Back { .. } => return, // no model is split here
                    Job::Distil(task) => Input::Distilled {
                        offer: task.offer,
                        outcome: Ok(learner::distil(name, task, &blob)),
                    },
                };
                let delay = 50 + self.below(400);
                self.after(delay, Event::Worked { node: name.clone(), life, input });
            }
            _ => {}
        }
    }

    fn fetch(&mut self, name: &NodeId, from: NodeId, side: Side, manifest: Manifest) {
        let now = Mono(self.now_ms);
        let digest = manifest.sha256;
        let node = self.node(name);
        if let Some(bytes) = node.store.blob(&digest).unwrap() {
            let (life, input) = (node.life, Input::Fetched { digest, bytes });
            return self.after(0, Event::Worked { node: name.clone(), life, input });
        }
        if let Ok(Some(ask)) = node.fetches.begin(now, from, side, manifest) {
            self.ask(name, ask);
        }
    }

    fn ask(&mut self, name: &NodeId, ask: Ask) {
        let body = Body::Get(Get { wanted: ask.wanted });
        // The runner knows the parent's epoch no better than 0, and a get changes nothing.
        let wire = letter::seal(&body, 0, 0);
        self.post(name, &ask.from, &wire);
    }

    /// Sends what waits for a receipt, or the retained state, once more.
    fn resend(&mut self, name: &NodeId, retained: bool) {
        for item in self.nodes[name].store.outbox().unwrap() {
            if item.retain == retained {
                let to = if item.side == Side::Up { To::Parent } else { To::Children };
                for to in self.addressees(name, &to, true) {
                    self.post(name, &to, &item.wire);
                }
            }
        }
    }

    /// Whether it is one of an owner and its standby.
    fn is_paired(&self, name: &NodeId) -> bool {
        let node = &self.nodes[name];
        node.parent.is_none() && node.peer.is_some()
    }

    fn addressees(&self, name: &NodeId, to: &To, to_both: bool) -> Vec<NodeId> {
        let node = &self.nodes[name];
        let peer = node.peer.iter().filter(|_| node.parent.is_none() || to_both);
        match to {
            To::Children => {
                let peer = peer.filter(|_| node.parent.is_none());
                node.children.iter().chain(peer).cloned().collect()
            }
            To::Standby(node) => vec![node.clone()],
            To::Child(child) => vec![child.clone()],
            To::Parent => node.parent.iter().chain(peer).cloned().collect(),
        }
    }

    fn post(&mut self, from: &NodeId, to: &NodeId, wire: &[u8]) {
        self.trace.update(format!("{} {from} {to} ", self.now_ms).as_bytes());
        self.trace.update(wire);
        for delay in self.fate(from, to).unwrap_or_default() {
            let letter = Event::Letter { from: from.clone(), to: to.clone(), wire: wire.to_vec() };
            self.after(delay, letter);
        }
    }

    /// Delays of a message's copies; `None` when it is lost.
    fn fate(&mut self, from: &NodeId, to: &NodeId) -> Option<Vec<u64>> {
        let on = self.now_ms < self.faults.until_ms;
        let cut = self.cut.as_ref().is_some_and(|site| {
            let cloud = id("cloud");
            (from == site && *to == cloud) || (to == site && *from == cloud)
        });
        let apart = self.apart.contains(&self.now_ms);
        if apart && self.is_paired(from) && self.is_paired(to) {
            return None;
        }
        if on && (cut || self.rng.unit() < self.faults.loss) {
            return None;
        }
        let copies = if on && self.rng.unit() < self.faults.duplicate { 2 } else { 1 };
        let longest = if on { self.faults.delay_ms } else { Faults::NONE.delay_ms };
        Some((0..copies).map(|_| 1 + self.below(longest)).collect())
    }

    fn death(&mut self, name: &NodeId) -> Option<Moment> {
        let step = self.nodes[name].steps;
        self.node(name).steps += 1;
        let planned = |crash: &&Crash| crash.node == name.as_str() && crash.step == step;
        if let Some(crash) = self.crashes.iter().find(planned) {
            return Some(crash.at);
        }
        if self.now_ms < self.faults.until_ms && self.rng.unit() < self.faults.crash {
            let at = self.rng.below(5);
            return Some(at.checked_sub(1).map_or(Moment::BeforeCommit, Moment::AfterEffects));
        }
        None
    }

    fn kill(&mut self, name: &NodeId) {
        self.node(name).die();
        let delay = 200 + self.below(3_000);
        self.after(delay, Event::Revive { node: name.clone() });
    }

    fn node(&mut self, name: &NodeId) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this network")
    }

    fn lives(&self, name: &NodeId, life: u64) -> bool {
        let node = &self.nodes[name];
        node.machine.is_some() && node.life == life
    }

    fn after(&mut self, delay_ms: u64, event: Event) {
        self.count += 1;
        self.queue.insert((self.now_ms + delay_ms, self.count), event);
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng.below(usize::try_from(n).unwrap()) as u64
    }
}

/// What leaves a node after its transaction.
#[derive(Debug)]
enum Leaving {
    Letter { to: To, body: Body, wire: Vec<u8> },
    Effect(Effect),
}

/// Whether the root waits for nothing, and its standby has all of it.
pub(crate) fn root_is_idle(world: &World) -> bool {
    match &world.nodes[&id("cloud")].machine {
        Some(Machine::Root(round)) => round.view().phase == "idle",
        Some(Machine::Failover(_)) => {
            let views: Vec<_> = ["cloud", "cloud-2"].map(|node| view(world, node)).into();
            let in_step = views.iter().flatten().filter(|view| view.in_step).count();
            let leads = views.iter().flatten().filter(|view| view.post == "paired").count();
            (in_step, leads) == (2, 1) && views.iter().flatten().all(|v| v.round.phase == "idle")
        }
        _ => false,
    }
}

/// What one of an owner and its standby shows, `None` while it is dead.
pub(crate) fn view(world: &World, node: &str) -> Option<FailoverView> {
    match &world.nodes[&id(node)].machine {
        Some(Machine::Failover(failover)) => Some(failover.view()),
        _ => None,
    }
}

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// Digest of an adapter in chunks or not.
pub(crate) fn is_cut(bytes: &[u8]) -> bool {
    matches!(Blob::of(bytes, fixture::CHUNK_BYTES), Blob::Manifest(_))
}
