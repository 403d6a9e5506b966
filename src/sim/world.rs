//! The federation, its clock, and what happens when.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use ring::digest::{Context, SHA256};

use super::broken::Broken;
#[cfg(test)]
use super::faults::Crash;
use super::faults::Guards;
use super::figures::Figures;
use super::invariants::{self, Invariants};
use super::letter::{Identity, Letter, PostOffice};
use super::node::{Node, Settings};
use super::nodes::{Nodes, Place};
use super::queue::Queue;
use super::scenario::{Pause, Scenario, TrustKind};
use super::{Progress, learner};
use crate::ids::{Digest, Name, NodeId};
use crate::protocol::{Fetches, Input, Timer, update};
use crate::rng::Stream;
use crate::time::{Mono, Now, Wall};
use crate::trust::keyring::Role;
use crate::wire::{Chunk, Coding, Plan};

/// A run. See the module of `sim`.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) nodes: Nodes,
    pub(crate) invariants: Invariants,
    pub(crate) figures: Figures,
    pub(crate) guards: Guards,
    #[cfg(test)]
    pub(crate) crashes: Vec<Crash>,
    pub(crate) now_ms: u64,
    pub(super) scenario: Scenario,
    pub(super) post: PostOffice,
    pub(super) rng: Stream,
    /// The site that is cut off from the cloud.
    pub(super) cut: Option<Place>,
    /// When the last version was there: then faults end, unless the scenario says when.
    pub(super) complete_ms: Option<u64>,
    pub(super) trace: Context,
    queue: Queue<Event>,
    outages_left: usize,
    looked_ms: u64,
    /// The node that kept the network from being at rest when it was looked at last.
    behind: Place,
}

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A message arrives, unless the broker forgot it on the way.
    Letter {
        to: Place,
        letter: Arc<Letter>,
        lapses: u32,
        /// The broker had kept it.
        kept: bool,
    },
    Chunk {
        from: Place,
        to: Place,
        chunk: Box<Chunk>,
        lapses: u32,
    },
    Timer {
        node: Place,
        timer: Timer,
        due: u64,
    },
    Worked {
        node: Place,
        life: u32,
        input: Box<Input>,
    },
    Resend {
        node: Place,
        due: u64,
    },
    Overdue {
        node: Place,
        life: u32,
    },
    Revive {
        node: Place,
        life: u32,
    },
    /// A device may go.
    Churn {
        node: Place,
    },
    /// A node that was away is back.
    Back {
        node: Place,
    },
    Partition,
    Amnesia,
    OutageBegins {
        node: Place,
        crash: bool,
    },
    OutageEnds {
        node: Place,
    },
}

impl Event {
    /// The node that it is for, if it is for one and that can be stopped.
    fn is_for(&self) -> Option<Place> {
        match self {
            Self::Letter { to, .. } | Self::Chunk { to, .. } => Some(*to),
            Self::Timer { node, .. }
            | Self::Worked { node, .. }
            | Self::Resend { node, .. }
            | Self::Overdue { node, .. }
            | Self::Revive { node, .. } => Some(*node),
            Self::Churn { .. }
            | Self::Back { .. }
            | Self::Partition
            | Self::Amnesia
            | Self::OutageBegins { .. }
            | Self::OutageEnds { .. } => None,
        }
    }
}

impl World {
    /// Virtual time of a turn, in which a hundred devices have a few steps.
    pub(super) const TURN_MS: u64 = 64;

    /// The federation of a scenario, at the beginning of a run.
    ///
    /// # Errors
    /// [`Broken`] when the scenario's numbers are beyond what messages can carry.
    pub(crate) fn new(scenario: &Scenario, seed: u64) -> Result<Self, Broken> {
        let settings = settings_of(scenario)?;
        let (nodes, identities) = tiers_of(scenario)?;
        let federation = settings.federation.clone();
        let post = match scenario.trust {
            TrustKind::Assumed => PostOffice::assuming(federation, seed),
            TrustKind::Signed => PostOffice::signing(federation, seed, &identities)?,
        };
        let mut world = Self {
            settings,
            nodes,
            invariants: Invariants::default(),
            figures: Figures::default(),
            guards: Guards::ALL,
            #[cfg(test)]
            crashes: Vec::new(),
            now_ms: 0,
            scenario: scenario.clone(),
            post,
            rng: Stream::new(seed, "sim"),
            cut: None,
            complete_ms: None,
            trace: Context::new(&SHA256),
            queue: Queue::new(),
            outages_left: scenario.outages.len(),
            looked_ms: 0,
            behind: Place::CLOUD,
        };
        world.plan_events()?;
        Ok(world)
    }

    /// Runs until all have the last version and nothing waits for a receipt.
    ///
    /// # Errors
    /// The invariant that is broken.
    pub(crate) fn run(&mut self, watch: &mut dyn FnMut(Progress)) -> Result<(), Broken> {
        while self.turn()?.is_continue() {
            watch(self.progress());
        }
        Ok(())
    }

    /// Runs on from what is due next for [`Self::TURN_MS`], or to the end.
    ///
    /// # Errors
    /// The invariant that is broken.
    pub(super) fn turn(&mut self) -> Result<ControlFlow<()>, Broken> {
        let end_ms = self.scenario.pace.end_ms;
        let until_ms = self.queue.next_ms().map_or(0, |at| at.saturating_add(Self::TURN_MS));
        while let Some((at, event)) = self.queue.pop_until(until_ms.min(end_ms)) {
            self.now_ms = at;
            self.unless_stopped(event)?;
            if self.is_at_rest() {
                return invariants::at_rest(self).map(ControlFlow::Break);
            }
        }
        if self.queue.next_ms().is_some_and(|at| at <= end_ms) {
            return Ok(ControlFlow::Continue(()));
        }
        let converges = invariants::converges::check(self, self.behind);
        converges.map(ControlFlow::Break).map_err(|(_, broken)| broken)
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        Progress { versions: self.figures.versions, of: self.settings.rounds.count }
    }

    /// Runs up to a time.
    ///
    /// # Errors
    /// The invariant that is broken.
    #[cfg(test)]
    pub(crate) fn run_until(&mut self, ms: u64) -> Result<(), Broken> {
        while let Some((at, event)) = self.queue.pop_until(ms) {
            self.now_ms = at;
            self.unless_stopped(event)?;
        }
        Ok(())
    }

    /// SHA-256 over everything that was sent so far.
    pub(crate) fn trace(&self) -> Digest {
        let mut out = [0; 32];
        out.copy_from_slice(self.trace.clone().finish().as_ref());
        Digest(out)
    }

    /// Whether something may go wrong now.
    pub(super) fn has_faults(&self) -> bool {
        match self.scenario.faults.until_ms {
            0 => self.complete_ms.is_none(),
            until_ms => self.now_ms < until_ms,
        }
    }

    pub(super) fn now(&self) -> Now {
        let ms = self.now_ms;
        Now { mono: Mono(ms), micros: ms * 1_000, wall: Wall(ms) }
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now_ms + delay_ms, event);
    }

    pub(super) fn at(&mut self, ms: u64, event: Event) {
        self.queue.push(ms, event);
    }

    /// Uniform in `0..n`, 0 for 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        if n == 0 { 0 } else { self.rng.below(n) as u64 }
    }

    pub(super) fn kill(&mut self, at: Place) {
        self.figures.crashes += 1;
        let node = self.nodes.at_mut(at);
        node.die();
        let life = node.life;
        let delay = 200 + self.below(3_000);
        self.after(delay, Event::Revive { node: at, life });
    }

    /// What is due at a node that is stopped waits until it goes on.
    fn unless_stopped(&mut self, event: Event) -> Result<(), Broken> {
        let stops = |at: Place| {
            let id = self.nodes.at(at).id.as_str();
            let stops = |pause: &&Pause| {
                pause.node == id && (pause.from_ms..pause.until_ms).contains(&self.now_ms)
            };
            self.scenario.pauses.iter().find(stops).map(|pause| pause.until_ms)
        };
        match event.is_for().and_then(stops) {
            Some(until) => {
                self.at(until, event);
                Ok(())
            }
            None => self.event(event),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Letter { to, letter, lapses, kept } => {
                return self.deliver(to, &letter, lapses, kept);
            }
            Event::Chunk { from, to, chunk, lapses } => {
                if self.arrives(from, to, lapses) {
                    return self.chunk(to, *chunk);
                }
            }
            Event::Timer { node, timer, due } => {
                if self.nodes.at(node).timers.get(&timer) == Some(&due) {
                    self.step(node, Input::Timer(timer))?;
                }
            }
            Event::Worked { node, life, input } => {
                if self.nodes.at(node).lives(life) {
                    self.step(node, *input)?;
                }
            }
            Event::Resend { node, due } => return self.resend_due(node, due),
            Event::Overdue { node, life } => return self.overdue(node, life),
            Event::Revive { node, life } => {
                let dead = self.nodes.at(node);
                if dead.machine.is_none() && dead.life == life {
                    return self.revive(node);
                }
            }
            Event::Churn { node } => self.may_leave(node),
            Event::Back { node } => return self.comes_back(node),
            Event::Partition => self.partition(),
            Event::Amnesia => self.forget(),
            Event::OutageBegins { node, crash } => self.leaves(node, crash),
            Event::OutageEnds { node } => {
                self.outages_left -= 1;
                return self.comes_back(node);
            }
        }
        Ok(())
    }

    fn overdue(&mut self, at: Place, life: u32) -> Result<(), Broken> {
        let now = Mono(self.now_ms);
        let node = self.nodes.at_mut(at);
        if !node.lives(life) {
            return Ok(());
        }
        let asks = node.fetches.overdue(now);
        node.looks_overdue = !node.fetches.is_empty();
        if node.looks_overdue {
            self.after(Fetches::RETRY_MS, Event::Overdue { node: at, life });
        }
        asks.into_iter().try_for_each(|ask| self.ask(at, ask))
    }

    pub(super) fn revive(&mut self, at: Place) -> Result<(), Broken> {
        self.post.starts(at);
        let node = self.nodes.at_mut(at);
        node.revive(&self.settings)?;
        let life = node.life;
        self.step(at, Input::Start)?;
        if self.nodes.at(at).lives(life) {
            self.plan_resend(at, 1);
            self.hand_over_retained(at);
        }
        Ok(())
    }

    /// Whether faults are over and all have come to the same; looked at every so often.
    fn is_at_rest(&mut self) -> bool {
        const LOOK_MS: u64 = 250;
        let apart = self.scenario.standby.map_or(0, |standby| standby.apart_ms[1]);
        let pauses = self.scenario.pauses.iter().map(|pause| pause.until_ms);
        let planned = pauses.fold(apart, u64::max) > self.now_ms || self.outages_left > 0;
        let over = !self.has_faults() && !planned && self.complete_ms.is_some();
        if !over || self.now_ms < self.looked_ms + LOOK_MS {
            return false;
        }
        self.looked_ms = self.now_ms;
        match invariants::converges::check(self, self.behind) {
            Ok(()) => true,
            Err((behind, _)) => {
                self.behind = behind;
                false
            }
        }
    }

    fn plan_events(&mut self) -> Result<(), Broken> {
        let places: Vec<Place> = self.nodes.places().collect();
        let churn = self.scenario.churn;
        for at in places {
            let node = self.nodes.at(at);
            let (life, is_device) = (node.life, node.children.is_empty());
            let delay = self.below(50);
            self.after(delay, Event::Revive { node: at, life });
            if is_device && churn.every_ms > 0 {
                let first = self.below(churn.every_ms);
                self.after(first, Event::Churn { node: at });
            }
        }
        if self.scenario.partitions.each_ms > 0 {
            self.after(self.scenario.partitions.each_ms, Event::Partition);
        }
        if self.scenario.amnesia.every_ms > 0 {
            self.after(self.scenario.amnesia.every_ms, Event::Amnesia);
        }
        for outage in self.scenario.outages.clone() {
            let place = name(&outage.node).map(|id| self.nodes.find(&id));
            let Some(node) = place? else {
                return Err(Broken::new("simulator", format!("no node {}", outage.node)));
            };
            self.at(outage.from_ms, Event::OutageBegins { node, crash: outage.crash });
            self.at(outage.until_ms, Event::OutageEnds { node });
        }
        Ok(())
    }
}

fn settings_of(scenario: &Scenario) -> Result<Settings, Broken> {
    let failed = |what: &str| Broken::new("simulator", format!("the first adapter: {what}"));
    let adapter = learner::first_adapter(scenario.model.width).map_err(failed)?;
    let layout = update::unpack(&adapter).map_err(|e| failed(e.kind()))?.layout().into();
    let coding = scenario.model.coding;
    Ok(Settings {
        adapter,
        layout,
        plan: Plan {
            adapter_delta: true,
            class_logits: false,
            local_steps: 4,
            batch_size: 8,
            learning_rate: 0.1,
            final_rate: None,
            prox_mu: 0.0,
            distill_lambda: 0.0,
            rank: 2,
            alpha: 4.0,
            coding,
            block: if coding == Coding::F32 { 0 } else { 64 },
            min_cell: 5,
            seed: 7,
            local_epochs: None,
            knowledge: None,
            cluster_rounds: None,
        },
        rounds: scenario.rounds,
        federation: name("simulated")?,
        model: name("m")?,
        knows: None,
        distils: None,
        island: None,
        lease_ms: scenario.standby.unwrap_or_default().lease_ms,
        second_edge_after_ms: scenario.second_edges.unwrap_or_default().after_ms,
    })
}

/// One cloud, its edges `edge-1` and on, their devices `device-1-1` and on; last the standby, if there is one.
fn tiers_of(scenario: &Scenario) -> Result<(Nodes, Vec<Identity>), Broken> {
    let mut nodes = Nodes::default();
    let mut identities = Vec::new();
    let mut add = |nodes: &mut Nodes, id: NodeId, parent: Option<Place>, role, site: &Name| {
        let parent = parent.map(|place| (place, nodes.at(place).id.clone()));
        let place = nodes.add(Node::new(id.clone(), parent.clone()));
        let line = if role == Role::Device { name("line")? } else { name("_")? };
        let (parent, site) = (parent.map(|(_, id)| id), site.clone());
        identities.push(Identity {
            place,
            id: id.clone(),
            role,
            parent,
            site,
            line,
            stands_by: None,
            second_edge: None,
        });
        Ok::<_, Broken>((place, id))
    };
    let (cloud, cloud_id) = add(&mut nodes, name("cloud")?, None, Role::Cloud, &name("_")?)?;
    let mut edges = Vec::new();
    let mut devices_of = Vec::new();
    let mut second_edges = BTreeMap::new();
    for e in 1..=scenario.tiers.edges {
        let site = if scenario.second_edges.is_some() { 1 } else { e };
        let site = name(&format!("site-{site}"))?;
        let edge = name(&format!("edge-{e}"))?;
        let edge = add(&mut nodes, edge, Some(cloud), Role::Edge, &site)?;
        let mut devices = Vec::new();
        for d in 1..=scenario.tiers.devices {
            let device = name(&format!("device-{e}-{d}"))?;
            devices.push(add(&mut nodes, device, Some(edge.0), Role::Device, &site)?);
        }
        nodes.at_mut(edge.0).adopt(&devices);
        edges.push(edge);
        devices_of.push(devices);
    }
    if scenario.second_edges.is_some() {
        let next = edges.iter().cycle().skip(1);
        for ((devices, (edge, _)), second) in devices_of.iter().zip(&edges).zip(next) {
            second_edges.insert(*edge, second.1.clone());
            nodes.at_mut(second.0).take_in(devices);
            for (device, _) in devices {
                nodes.at_mut(*device).second = Some(second.clone());
            }
        }
    }
    nodes.at_mut(cloud).adopt(&edges);
    if scenario.standby.is_some() {
        let standby = name(Scenario::STANDBY)?;
        let standby = add(&mut nodes, standby, None, Role::Cloud, &name("_")?)?;
        nodes.at_mut(standby.0).adopt(&edges);
        nodes.at_mut(standby.0).peer = Some((cloud, cloud_id.clone()));
        for at in edges.iter().map(|(edge, _)| *edge).chain([cloud]) {
            nodes.at_mut(at).peer = Some(standby.clone());
        }
        if let Some(last) = identities.last_mut() {
            last.stands_by = Some(cloud_id);
        }
    }
    for identity in &mut identities {
        identity.second_edge = second_edges.remove(&identity.place);
    }
    Ok((nodes, identities))
}

fn name(text: &str) -> Result<Name, Broken> {
    Name::new(text).map_err(|error| Broken::new("simulator", error.to_string()))
}
