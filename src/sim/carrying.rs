//! A step and what is done with its effects, in the order of the real runner: transaction first, then whatever leaves.

use std::sync::Arc;

use super::broken::Broken;
use super::faults::Moment;
use super::learner;
use super::letter::{Letter, Saying};
use super::nodes::Place;
use super::world::{Event, World};
use crate::ids::{Digest, NodeId, RoundNo, Side};
use crate::ledger::Entry;
use crate::protocol::{Ask, Delivery, Effect, Fetches, Input, Job, Taken, To};
use crate::store::{Batch, OutboxItem, Store};
use crate::time::{Mono, Wall};
use crate::trust::To as Address;
use crate::wire::{Body, Chunk, Get, Kind, Manifest};

/// What leaves a node after its transaction.
enum Leaving<'e> {
    Letter { to: &'e To, letter: Arc<Letter>, retained: bool, number: RoundNo, body: &'e Body },
    Effect(&'e Effect),
}

impl World {
    const RESEND_MS: u64 = 1_500;
    const RESEND_MOST_MS: u64 = 24_000;
    const REPUBLISH_MIN_MS: u64 = 500;

    /// One step: transaction, then what leaves. The node may die anywhere in it. Gives whether its store changed.
    ///
    /// # Errors
    /// The invariant that is broken.
    pub(crate) fn step(&mut self, at: Place, input: Input) -> Result<bool, Broken> {
        let now = self.now();
        let node = self.nodes.at_mut(at);
        if node.machine.is_none() {
            return Ok(false);
        }
        self.figures.steps += 1;
        let effects = node.step(now, input);
        self.settle(at, &effects)
    }

    /// Carries effects out as a runner does.
    ///
    /// # Errors
    /// As [`World::step`].
    pub(super) fn settle(&mut self, at: Place, effects: &[Effect]) -> Result<bool, Broken> {
        let (batch, after) = self.prepare(at, effects, self.now().wall)?;
        let changes = batch.is_some();
        let death = if changes { self.death(at) } else { None };
        if !self.guards.commit_first {
            self.carry_out_all(at, &after, death)?;
        }
        if death == Some(Moment::BeforeCommit) {
            self.kill(at);
            return Ok(false);
        }
        if let Some(batch) = batch {
            self.figures.commits += 1;
            let waits = batch.outbox_put.iter().any(|item| !item.retain);
            self.nodes.at_mut(at).store.commit(&[batch])?;
            if waits && death.is_none() {
                self.plan_resend(at, Self::RESEND_MS);
            }
        }
        self.count(at, effects);
        self.invariants.committed(&self.nodes, at, effects)?;
        if self.guards.commit_first {
            self.carry_out_all(at, &after, death)?;
        }
        if death.is_some() {
            self.kill(at);
        } else if effects.iter().any(Effect::frees_blobs) {
            let node = self.nodes.at_mut(at);
            let keep = node.blobs();
            node.store.retain_blobs(&keep)?;
        }
        Ok(changes)
    }

    /// A piece of a blob arrived.
    pub(super) fn chunk(&mut self, to: Place, chunk: Chunk) -> Result<(), Broken> {
        let now = Mono(self.now_ms);
        let node = self.nodes.at_mut(to);
        match node.fetches.chunk(now, chunk) {
            Ok(Taken::More(Some(ask))) => return self.ask(to, ask),
            Ok(Taken::Complete(digest, bytes)) => {
                node.store.put_blob(&bytes)?;
                self.step(to, Input::Fetched { digest, bytes })?;
            }
            Ok(Taken::More(None)) | Err(_) => {}
        }
        Ok(())
    }

    /// Asks a neighbour for chunks.
    pub(super) fn ask(&mut self, at: Place, ask: Ask) -> Result<(), Broken> {
        let Some(to) = self.nodes.find(&ask.from) else { return Ok(()) };
        let body = Body::Get(Get { wanted: ask.wanted });
        // The runner knows the parent's epoch no better than 0, and a get changes nothing.
        let address = Address::Directly(ask.from);
        let saying = Saying { to: &address, body: &body, round: 0, epoch: 0 };
        let sender = &self.nodes.at(at).id;
        let letter = self.post.seal(at, sender, saying, Wall(self.now_ms))?;
        self.send(to, &Arc::new(letter));
        Ok(())
    }

    /// Plans that what waits for a receipt is sent again in so long, unless it is sooner anyway.
    pub(super) fn plan_resend(&mut self, at: Place, after_ms: u64) {
        let due = self.now_ms + after_ms;
        let node = self.nodes.at_mut(at);
        let sooner = node.resend_at.is_some_and(|planned| planned <= due);
        if node.machine.is_none() || !self.guards.resend || sooner {
            return;
        }
        (node.resend_at, node.resend_ms) = (Some(due), Self::RESEND_MS);
        self.at(due, Event::Resend { node: at, due });
    }

    /// Sends what waits once more, less often the longer it waits.
    pub(super) fn resend_due(&mut self, at: Place, due: u64) -> Result<(), Broken> {
        let node = self.nodes.at(at);
        if node.resend_at != Some(due) {
            return Ok(());
        }
        let waiting = node.store.outbox()?;
        let waiting: Vec<OutboxItem> = waiting.into_iter().filter(|item| !item.retain).collect();
        let node = self.nodes.at_mut(at);
        node.resend_at = None;
        if waiting.is_empty() {
            return Ok(());
        }
        let next = self.now_ms + node.resend_ms;
        node.resend_ms = (node.resend_ms * 2).min(Self::RESEND_MOST_MS);
        node.resend_at = Some(next);
        let is_there = node.away == 0;
        self.at(next, Event::Resend { node: at, due: next });
        if is_there {
            waiting.iter().try_for_each(|item| self.resend(at, item))?;
        }
        Ok(())
    }

    fn resend(&mut self, at: Place, item: &OutboxItem) -> Result<(), Broken> {
        let node = self.nodes.at(at);
        let letter = Arc::new(self.post.again(at, &node.id, item)?);
        let to = match (item.side, addressee(&item.topic)) {
            (Side::Up, Some(other)) => To::Standby(other),
            (Side::Up, None) => To::Parent,
            (Side::Down, _) => To::Children,
        };
        self.send_to(at, &to, &letter, item.retain);
        Ok(())
    }

    fn send_to(&mut self, at: Place, to: &To, letter: &Arc<Letter>, retained: bool) {
        let node = self.nodes.at_mut(at);
        if retained && node.away == 0 {
            node.broker.retained.insert(letter.kind, letter.clone());
        }
        match to {
            To::Children => {
                let standby = node.peer.as_ref().filter(|_| node.parent.is_none());
                let standby = standby.map(|(place, _)| *place);
                let (children, guests) = (node.children.clone(), node.guests.clone());
                for to in children.iter().chain(guests.iter()).copied().chain(standby) {
                    self.send(to, letter);
                }
            }
            To::Child(node) | To::Standby(node) => {
                if let Some(place) = self.nodes.find(node) {
                    self.send(place, letter);
                }
            }
            To::Parent => {
                let to_both = letter.kind == Kind::Contribution;
                let parent = node.parent.as_ref().map(|(place, _)| *place);
                let standby = node.peer.as_ref().filter(|_| to_both).map(|(place, _)| *place);
                for to in parent.into_iter().chain(standby) {
                    self.send(to, letter);
                }
            }
        }
    }

    fn count(&mut self, at: Place, effects: &[Effect]) {
        use crate::ledger::Event as Entry;
        let is_root = self.nodes.at(at).parent.is_none();
        for effect in effects {
            match effect {
                Effect::Count(word) => *self.figures.counted.entry(word).or_default() += 1,
                Effect::Record(Entry::Accept { .. }) => self.figures.accepted += 1,
                Effect::Record(Entry::Late { .. }) => self.figures.late += 1,
                Effect::Record(Entry::Move { .. }) => self.figures.moves += 1,
                Effect::Apply { version, .. } if is_root => {
                    self.figures.versions = *version;
                    if *version >= self.settings.rounds.count {
                        self.complete_ms.get_or_insert(self.now_ms);
                    }
                }
                _ => {}
            }
        }
    }

    /// What is committed, if the step changes the store, and what leaves behind it.
    fn prepare<'e>(
        &mut self,
        at: Place,
        effects: &'e [Effect],
        wall: Wall,
    ) -> Result<(Option<Batch>, Vec<Leaving<'e>>), Broken> {
        let mut batch = Batch { at: wall, ..Batch::default() };
        let mut after = Vec::new();
        let mut changes = false;
        for effect in effects {
            match effect {
                Effect::Put(key, value) => batch.state.push((key.clone(), Some(value.clone()))),
                Effect::Delete(key) => batch.state.push((key.clone(), None)),
                Effect::Record(event) => {
                    changes = true;
                    if self.scenario.ledgers {
                        let node = self.nodes.at(at).id.clone();
                        batch.entries.push(Entry::new(node, wall, event.clone()).to_bytes());
                    }
                }
                Effect::SaveBlob(bytes) => drop(self.nodes.at_mut(at).store.put_blob(bytes)?),
                Effect::Settle(key) => batch.outbox_delete.push(key.clone()),
                Effect::Send { to, body, round, epoch, delivery } => {
                    let node = self.nodes.at(at);
                    let parent = node.parent.as_ref().map(|(_, parent)| parent);
                    let address = address(to, body.kind(), parent);
                    let saying = Saying { to: &address, body, round: *round, epoch: *epoch };
                    let letter = self.post.seal(at, &node.id, saying, wall)?;
                    let (key, retained) = match delivery {
                        Delivery::Volatile => (None, false),
                        Delivery::UntilSettled(key) => (Some(key.clone()), false),
                        Delivery::Latest => (Some(body.kind().as_str().to_owned()), true),
                    };
                    if let Some(key) = key {
                        let (mut topic, wire) = letter.kept()?;
                        if let To::Standby(other) = to
                            && addressee(&topic).is_none()
                        {
                            topic = format!("to/{other}/{topic}");
                        }
                        let side = match to {
                            To::Parent | To::Standby(_) => Side::Up,
                            To::Children | To::Child(_) => Side::Down,
                        };
                        let (retain, sealed_at) = (retained, wall);
                        let item = OutboxItem { key, side, topic, wire, retain, sealed_at };
                        batch.outbox_put.push(item);
                    }
                    let (letter, number) = (Arc::new(letter), *round);
                    after.push(Leaving::Letter { to, letter, retained, number, body });
                }
                other => after.push(Leaving::Effect(other)),
            }
        }
        changes |= !batch.state.is_empty()
            || !batch.outbox_put.is_empty()
            || !batch.outbox_delete.is_empty();
        Ok((changes.then_some(batch), after))
    }

    fn carry_out_all(
        &mut self,
        at: Place,
        after: &[Leaving<'_>],
        death: Option<Moment>,
    ) -> Result<(), Broken> {
        let most = match death {
            Some(Moment::AfterEffects(count)) => count,
            Some(Moment::BeforeCommit) | None => usize::MAX,
        };
        for leaving in after.iter().take(most) {
            match leaving {
                Leaving::Letter { to, letter, retained, number, body } => {
                    self.invariants.said(&self.nodes, at, *number, body)?;
                    self.send_to(at, to, letter, *retained);
                }
                Leaving::Effect(effect) => self.carry_out(at, effect)?,
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, at: Place, effect: &Effect) -> Result<(), Broken> {
        match effect {
            Effect::Republish => self.republish(at)?,
            Effect::SendChunks { to, sha256, chunk_bytes, indices, .. } => {
                self.send_chunks(at, to, sha256, *chunk_bytes, indices)?;
            }
            Effect::Fetch { from, side, manifest } => self.fetch(at, from, *side, manifest)?,
            Effect::Forget(digest) => self.nodes.at_mut(at).fetches.forget(digest),
            Effect::Timer { timer, after_ms } => {
                let (timer, due) = (*timer, self.now_ms + after_ms);
                self.nodes.at_mut(at).timers.insert(timer, due);
                self.after(*after_ms, Event::Timer { node: at, timer, due });
            }
            Effect::Job(job) => {
                let Some(input) = self.work(at, job) else { return Ok(()) };
                let life = self.nodes.at(at).life;
                let work_ms = self.scenario.pace.work_ms;
                let delay = work_ms / 9 + self.below(work_ms - work_ms / 9);
                self.after(delay, Event::Worked { node: at, life, input: Box::new(input) });
            }
            _ => {}
        }
        Ok(())
    }

    /// What a lane makes of a job. `None` where no model is split.
    fn work(&self, at: Place, job: &Job) -> Option<Input> {
        let node = self.nodes.at(at);
        let blob = |digest: &Digest| node.store.blob(digest).ok().flatten();
        match job {
            Job::Train(task) => {
                let work = learner::train(&node.id, task, &blob);
                Some(Input::Worked { offer: task.offer, work })
            }
            Job::Combine(job) => {
                let outcome = learner::combine(job, &blob);
                Some(Input::Combined { offer: job.offer, outcome })
            }
            Job::Distil(task) => {
                let outcome = learner::distil(&node.id, task, &blob);
                Some(Input::Distilled { offer: task.offer, outcome })
            }
            Job::Front(_) | Job::Back { .. } => None,
        }
    }

    /// Publishes the retained state again, but not more often than a runner does.
    fn republish(&mut self, at: Place) -> Result<(), Broken> {
        let now_ms = self.now_ms;
        let node = self.nodes.at_mut(at);
        if node.republished_ms.is_some_and(|ms| now_ms - ms < Self::REPUBLISH_MIN_MS) {
            return Ok(());
        }
        node.republished_ms = Some(now_ms);
        let items = node.store.outbox()?;
        items.iter().filter(|item| item.retain).try_for_each(|item| self.resend(at, item))
    }

    fn send_chunks(
        &mut self,
        at: Place,
        to: &NodeId,
        sha256: &Digest,
        chunk_bytes: u32,
        indices: &[u32],
    ) -> Result<(), Broken> {
        let Some(place) = self.nodes.find(to) else { return Ok(()) };
        let Some(bytes) = self.nodes.at(at).store.blob(sha256)? else { return Ok(()) };
        let size = usize::try_from(chunk_bytes).unwrap_or(usize::MAX).max(1);
        let lapses = self.nodes.at(self.owner_of_link(at, place)).broker.lapses;
        for &index in indices {
            let piece = bytes.chunks(size).nth(usize::try_from(index).unwrap_or(usize::MAX));
            let Some(data) = piece.map(<[u8]>::to_vec) else { continue };
            self.figures.chunks += 1;
            let fate = self.fate(at, place);
            for arrival in fate.into_iter().flatten() {
                let chunk = Box::new(Chunk { sha256: *sha256, index, data: data.clone() });
                self.at(arrival, Event::Chunk { from: at, to: place, chunk, lapses });
            }
        }
        Ok(())
    }

    fn fetch(
        &mut self,
        at: Place,
        from: &NodeId,
        side: Side,
        manifest: &Manifest,
    ) -> Result<(), Broken> {
        let (now, digest) = (Mono(self.now_ms), manifest.sha256);
        let node = self.nodes.at_mut(at);
        let life = node.life;
        if let Some(bytes) = node.store.blob(&digest)? {
            let input = Box::new(Input::Fetched { digest, bytes });
            self.after(0, Event::Worked { node: at, life, input });
            return Ok(());
        }
        let begun = node.fetches.begin(now, from.clone(), side, manifest.clone());
        if !node.looks_overdue {
            node.looks_overdue = true;
            self.after(Fetches::RETRY_MS, Event::Overdue { node: at, life });
        }
        match begun {
            Ok(Some(ask)) => self.ask(at, ask),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn death(&mut self, at: Place) -> Option<Moment> {
        let node = self.nodes.at_mut(at);
        node.steps += 1;
        #[cfg(test)]
        {
            let (id, step) = (node.id.as_str(), node.steps - 1);
            let planned = |crash: &&super::faults::Crash| crash.node == id && crash.step == step;
            if let Some(crash) = self.crashes.iter().find(planned) {
                return Some(crash.at);
            }
        }
        let crash = self.scenario.faults.crash;
        if crash > 0.0 && self.has_faults() && self.rng.unit() < crash {
            let at = self.rng.below(5);
            return Some(at.checked_sub(1).map_or(Moment::BeforeCommit, Moment::AfterEffects));
        }
        None
    }
}

/// Who is named in the topic that an outbox keeps, if somebody is.
fn addressee(topic: &str) -> Option<NodeId> {
    let mut levels = topic.split('/').skip_while(|level| *level != "to");
    NodeId::new(levels.nth(1)?).ok()
}

/// Where a message is published: as the runner does it.
fn address(to: &To, kind: Kind, parent: Option<&NodeId>) -> Address {
    let directly = kind.is_direct();
    match (to, parent) {
        (To::Child(node) | To::Standby(node), _) => Address::Directly(node.clone()),
        (To::Parent, Some(parent)) if directly => Address::Directly(parent.clone()),
        (To::Parent, Some(parent)) => Address::Named(parent.clone()),
        (To::Children, _) | (To::Parent, None) => Address::Anyone,
    }
}
