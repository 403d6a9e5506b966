//! A node: the machines, actors and adapters of one identity, put together.
//!
//! Starting is recovering: the ledger is replayed and held against the heads that were signed, the
//! machines are rebuilt from their state, the outbox is taken up again. Called by `gaisnet run`,
//! by the demo, and by tests over the in-memory bus with a clock of their own.

#[cfg(feature = "cli")]
mod base;
mod clock;
#[cfg(feature = "web")]
mod health;
#[cfg(feature = "cli")]
mod hours;
#[cfg(all(feature = "cli", feature = "torch"))]
mod language;
#[cfg(all(feature = "cli", feature = "torch"))]
mod plan;
mod rollback;
mod rollouts;
#[cfg(feature = "cli")]
mod settings;
#[cfg(feature = "cli")]
mod split;
#[cfg(feature = "cli")]
mod texts;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{Notify, mpsc, watch};

use crate::actors::lanes::{Lane, ServeRequest};
use crate::actors::text_lane::TextLane;
use crate::actors::{
    Above, AboveLink, AboveSaid, Adopt, Attend, BaseDesk, Bounds, Busy, CascadeParts, Cease,
    Checked, Decide, Figures, Gateway, GatewayParts, HalfOf, HalfParts, HeldBase, Inferencer,
    InferencerParts, Introduce, LateLabel, Leave, Leaves, Link, Machine, MachineView, Measure,
    Observe, Operator, OperatorParts, Request, Role, Run, Runner, RunnerParts, Seen, Serve, Served,
    Steer, Stimulus, TagSample, TextInferencer, TextParts, Way, Workbench, pump, subscribe,
    subscriptions,
};
use crate::bus::{Ack, Border, Bus, BusEvent, Line, ToCloud};
use crate::ids::{BootId, Digest, Name, NodeId, Side};
use crate::learn::{DriftConfig, RateSchedule, ReferenceSet, labels_digest};
use crate::ledger::{Event, LedgerError, Log, Origin, Replay, SignedCheckpoint, Word};
use crate::privacy::Gate;
use crate::protocol::cascade::{Calibrated, CascadeConfig, Uncalibrated};
use crate::protocol::{
    Backs, Distils, Effect, Failover, FailoverConfig, Follower, FrontConfig, Input, IslandTerms,
    Knows, Leads, Member, MemberConfig, Owner, Relay, RelayConfig, Rollouts, Round, RoundConfig,
    SecondEdge, ShareBounds, Slots, SlotsConfig, SplitDevice, SplitTerms, Steward, Triggers,
    update,
};
use crate::scada::answer_book::BookLimits;
use crate::scada::command::CommandPolicy;
use crate::scada::replay::ReplayWindow;
use crate::scada::tags::{Tag, TagMap};
use crate::scada::telegram::{ModelMeta, Tier};
use crate::store::{Store, StoreError};
use crate::time::Clock;
use crate::topic::{Branch, CommandName, Prefix};
use crate::trust::keyring::{Keyring, NodeEntry, Role as KeyRole, Standing};
use crate::trust::keys::SigningKey;
use crate::trust::{Sealer, Sequences};
use crate::wire::{Manifest, Plan};

#[cfg(feature = "cli")]
pub use base::{BaseError, BaseFetchParts, BaseProgress, HeldFiles, WantedBase, fetch_base};
pub use clock::SystemClock;
#[cfg(feature = "web")]
pub use health::Health;
#[cfg(all(feature = "cli", feature = "torch"))]
pub use language::language_brain;
#[cfg(all(feature = "cli", feature = "torch"))]
pub use plan::{PlannedModel, floor_of, learned_of, planned_model, round_work};
pub use rollback::{AtRestError, roll_back_at_rest};
pub use rollouts::{RolloutTerms, rollout_config};
#[cfg(feature = "cli")]
pub use settings::{
    Brain, Links, Server, SettingsProblem, brain, bus_of, data_of, distils_of, identity_of,
    learning_of, links_of, missing_base, parts_of, plan_of, reference_of,
};
#[cfg(feature = "cli")]
pub use split::{FrontHalf, front_half, front_parts_of, split_of};
#[cfg(feature = "cli")]
pub use texts::{TextReader, text_brain};

/// Who a node is.
pub struct Identity {
    /// First levels of our topics.
    pub prefix: Prefix,
    /// Its name.
    pub me: NodeId,
    /// Its key.
    pub key: SigningKey,
    /// Whom it knows; itself among them.
    pub keyring: Arc<Keyring>,
    /// Random for each start.
    pub boot: BootId,
    /// SHA-256 of the effective settings.
    pub config: Digest,
}

/// What is learned and how.
pub struct Learning {
    /// The model.
    pub model: ModelMeta,
    /// Digest of its base.
    pub base: Digest,
    /// Its untrained adapter, packed.
    pub adapter: Vec<u8>,
    /// What rounds ask for.
    pub plan: Plan,
    /// What may leave.
    pub gate: Gate,
    /// Part of the members that is enough after the deadline.
    pub quorum: f64,
    /// A round's deadline.
    pub deadline_ms: u64,
    /// An edge's round ends this much earlier.
    pub relay_margin_ms: u64,
    /// An open round's offer is published again this often.
    pub republish_ms: u64,
    /// Pause between rounds.
    pub pause_ms: u64,
    /// The cloud stops at this version; 0 waits for a command each time.
    pub versions: u64,
    /// How the learning rate goes on.
    pub schedule: RateSchedule,
    /// Late contributions that are further behind count nowhere.
    pub max_staleness: u64,
    /// A cloud or its standby takes the other one for gone after this long.
    pub lease_ms: u64,
    /// Members ask their parent for news after this long without any.
    pub resync_ms: u64,
    /// Bytes a chunk.
    pub chunk_bytes: u32,
    /// Reference inputs that were made here, for rounds of knowledge.
    pub reference: Option<Arc<ReferenceSet>>,
    /// How a relay's or aggregator's own model learns what its members know, if it has one.
    pub distils: Option<Distils>,
    /// What keeps one member of a round from owning its outcome.
    pub share_bounds: ShareBounds,
    /// How an edge goes on while its parent is away; off: it waits.
    pub island: Option<IslandTerms>,
    /// A device whose edge was silent for so long goes to its second one, where the keyring names one.
    pub second_edge_after_ms: u64,
    /// What opens a cloud's rounds, instead of one after the other.
    pub triggers: Option<Triggers>,
    /// A site whose devices train the front of the model only: the same on the edge and on them.
    pub split: Option<Split>,
}

/// How a site's model is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// What device and edge agree on.
    pub terms: SplitTerms,
    /// How many backs the edge trains.
    pub backs: Backs,
    /// An answer in a step that takes longer is lost.
    pub step_timeout_ms: u64,
}

impl Split {
    /// Devices with a front give answers: where the head is behind the cut, the edge has them.
    pub fn answers(&self) -> bool {
        !self.terms.cut.head_in_front
    }
}

/// The thread that answers, by what the model takes.
pub enum AnswerLane {
    /// Windows of samples, from tags or requests.
    Windows(Lane<ServeRequest>),
    /// Prompts.
    Text(TextLane),
}

/// Answers to the plant.
pub struct Answering {
    /// The thread that answers.
    pub lane: AnswerLane,
    /// Plant topics.
    pub tags: Vec<Tag>,
    /// Whether the machine works; training waits for it.
    pub busy: Arc<Busy>,
    /// A pause between telegrams that breaks a window.
    pub max_gap_ms: u64,
    /// An answer is stale when no sample came for so long.
    pub stale_after_ms: u64,
    /// Tiers that answer windows together; none where each answers for itself. A device with the front of a
    /// split model has no answer without its edge, and needs it.
    pub cascade: Option<Cascading>,
}

/// How a node answers as one of several tiers.
pub struct Cascading {
    /// How it decides. Without a parent nobody is above, whatever it says.
    pub config: CascadeConfig,
    /// Whether an edge may ask the cloud: a window leaves the site then.
    pub to_cloud: bool,
    /// The label that it falls back to where it abstains.
    pub safe_default: Option<String>,
    /// What each version is measured on; none where there are no examples.
    pub measure: Option<Measure>,
}

/// Everything that a node is made of.
pub struct NodeParts {
    /// Who.
    pub identity: Identity,
    /// What.
    pub learning: Learning,
    /// Durable memory.
    pub store: Box<dyn Store>,
    /// Links with their events.
    pub links: BTreeMap<Side, (Arc<dyn Bus>, mpsc::Receiver<BusEvent>)>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Long work.
    pub bench: Box<dyn Workbench>,
    /// Answers, where the node gives any.
    pub answering: Option<Answering>,
    /// What may be asked for without a signature.
    pub policy: CommandPolicy,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Processor seconds and peak memory in MiB.
    pub resources: Arc<dyn Fn() -> (f64, f64) + Send + Sync>,
    /// Bounds of what it keeps.
    pub bounds: Bounds,
    /// Takes over a newer keyring on command; none where the keyring isn't a file.
    pub adopt: Option<Adopt>,
    /// Files of the base, for children that ask for them.
    pub bases: Option<Arc<dyn HeldBase>>,
    /// How it takes part in rollouts.
    pub rollout: RolloutTerms,
    /// Answers that it remembers for labels that come later.
    pub book: BookLimits,
    /// How it watches for drift, if it does.
    pub drift: Option<DriftConfig>,
    /// Called when the node can't go on.
    pub fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A running node.
pub struct Node {
    /// Its name.
    pub me: NodeId,
    /// Its counters.
    pub figures: Arc<Figures>,
    /// The adapter in use.
    pub serving: watch::Receiver<Served>,
    observe: Recipient<Observe>,
    role: Recipient<Stimulus>,
    runner: Addr<Runner>,
    buses: Vec<Arc<dyn Bus>>,
    boot: BootId,
    keyring: Arc<Keyring>,
    again: Arc<Notify>,
    clock: Arc<dyn Clock>,
    operator: Addr<Operator>,
    /// Records what left the site, where something may.
    leaves: Option<Recipient<Leaves>>,
    /// End when their links have said goodbye.
    pumps: Vec<tokio::task::JoinHandle<()>>,
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Its own name isn't in the keyring.
    #[error("{0} is not in the keyring, or its key was revoked: enrol it (gaisnet keys enrol)")]
    NotEnrolled(NodeId),
    /// The key file isn't that of the keyring.
    #[error("the key on this machine is not the one that the keyring has for {0}")]
    WrongKey(NodeId),
    /// No role that it could play.
    #[error("{0} has none of the roles device, edge, cloud in the keyring")]
    NoRole(NodeId),
    /// A link that its role needs is missing.
    #[error("{0} needs a link {1}: set {2} in its settings")]
    NoLink(NodeId, &'static str, &'static str),
    /// A standby knows nothing of rollouts.
    #[error(
        "{0} has a standby, which doesn't copy rollouts: set rollout.steward to false, or let each site's edge decide"
    )]
    StewardWithStandby(NodeId),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger.
    #[error("the ledger in the store is damaged: {0}")]
    Ledger(#[from] LedgerError),
    /// A state value.
    #[error("the state in the store is damaged: {0}")]
    State(String),
}

/// Starts a node on the current actix arbiter.
///
/// # Errors
/// [`NodeError`]; nothing was published then.
pub fn start(parts: NodeParts) -> Result<Node, NodeError> {
    let NodeParts { identity, learning, store, links, clock, bench, answering, .. } = parts;
    let me = identity.me.clone();
    let keyring = Arc::clone(&identity.keyring);
    let entry = keyring.node(&me).ok_or_else(|| NodeError::NotEnrolled(me.clone()))?.clone();
    if entry.key != *identity.key.public() {
        return Err(NodeError::WrongKey(me));
    }
    let branch = Branch {
        prefix: identity.prefix.clone(),
        site: entry.site.clone(),
        line: entry.line.clone(),
        node: me.clone(),
    };
    let tier = tier_of(&entry).ok_or_else(|| NodeError::NoRole(me.clone()))?;
    let plant = if tier == Tier::Device { Side::Up } else { Side::Down };
    let mut buses = BTreeMap::new();
    let mut events = Vec::new();
    for (side, (bus, receiver)) in links {
        buses.insert(side, bus);
        events.push((side, receiver));
        parts.figures.update(|view| {
            view.down.insert(side, "not connected yet".to_owned());
        });
    }
    let missing = |side: &str, key| NodeError::NoLink(me.clone(), side_name(side), key);
    let plant_bus = buses.get(&plant).cloned().ok_or_else(|| missing("plant", "bus.site"))?;
    if entry.parent.is_some() && !buses.contains_key(&Side::Up) {
        return Err(missing("parent", "bus.parent"));
    }
    let lines: BTreeMap<Side, Line> =
        buses.iter().map(|(side, bus)| (*side, line_of(tier, *side, Arc::clone(bus)))).collect();
    let federation = keyring.federation().clone();
    let log = replay(store.as_ref(), &federation, &me)?;
    let state = store.state("")?;
    let shared = Shared {
        me: me.clone(),
        federation: federation.clone(),
        entry: &entry,
        learning: &learning,
    };
    let pair = match tier {
        Tier::Cloud => pair_of(&shared, &keyring, store.as_ref(), &state)?,
        Tier::Edge | Tier::Device => None,
    };
    let (served, serving) = watch::channel((0, Arc::new(learning.adapter.clone())));
    let runner = Runner::new(RunnerParts {
        store,
        sealer: Sealer::new(identity.key, federation.clone(), branch.clone(), identity.boot),
        log,
        lines: lines.clone(),
        parent: entry.parent.clone(),
        clock: Arc::clone(&clock),
        bench,
        figures: Arc::clone(&parts.figures),
        seed: u64::from_le_bytes(first_eight(&identity.boot)),
        served,
        bounds: parts.bounds,
        fatal: parts.fatal,
    })?
    .start();
    let started = Effect::Record(Event::NodeStart {
        boot: identity.boot,
        config: identity.config,
        epoch: 0,
        program: Word::new(concat!("gaisnet-", env!("CARGO_PKG_VERSION"))),
    });
    let adapter = Effect::SaveBlob(learning.adapter.clone());
    let first = Run { effects: vec![adapter, started], ack: Ack::none() };
    // The mailbox is empty; this can't fail, and a failure would show as a missing entry.
    let _ = runner.try_send(first);
    // Front and back of a split model are of one version: nothing is served before the other half has it.
    let whole = learning.split.is_none();
    if parts.rollout.steward && pair.is_some() {
        return Err(NodeError::StewardWithStandby(me));
    }
    let stewards = parts.rollout.steward && tier != Tier::Device && whole;
    let above = entry.parent.as_ref().filter(|_| parts.rollout.follow && whole);
    let leads = stewards || tier == Tier::Edge && above.is_some();
    // Whose assignments it follows, and who has the adapters that those name.
    let leader = match (tier, above) {
        (Tier::Device, above) => above.map(|edge| (edge, edge)),
        (Tier::Edge | Tier::Cloud, _) if !leads || answering.is_none() => None,
        (_, Some(cloud)) if !stewards => Some((&me, cloud)),
        _ => Some((&me, &me)),
    };
    let follows = |leader| rollouts::follower(&me, leader, &learning, &of(Follower::KEY, &state));
    let follower = leader.map(follows).transpose()?;
    let slots = SlotsConfig {
        base: learning.base,
        untrained: Digest::of(&learning.adapter),
        checks: answering.is_some() && learning.split.is_none(),
        follow: follower.is_some(),
    };
    let slots = Slots::new(slots, &of(Slots::KEY, &state)).map_err(NodeError::State)?;
    let steward = |served| {
        let answers = (answering.is_some(), served);
        let model = (&learning.model.name, learning.base);
        let config = rollout_config(&keyring, &me, model, answers, &parts.rollout);
        rollouts::steward(config, &learning, &of(Steward::PREFIX, &state)).map(Leads::Steward)
    };
    let at_work = |leads| (slots, Rollouts::new(me.clone(), leads, follower));
    let Played { role, observe, steer, checked, decide, seen } = match tier {
        Tier::Device => {
            if let Some(device) = split_device(&shared, &keyring, &state)? {
                play(device, at_work(Leads::Nobody), &runner, &clock)
            } else {
                let member = member(&shared, &keyring, false, &state)?;
                play(member, at_work(Leads::Nobody), &runner, &clock)
            }
        }
        Tier::Cloud => {
            if let Some(pair) = pair {
                let failover = failover(&shared, &keyring, pair, &state)?;
                play(failover, at_work(Leads::Nobody), &runner, &clock)
            } else {
                let round = round(&shared, &keyring, Owner::Root, &state)?;
                let leads = if stewards { steward(round.view().version)? } else { Leads::Nobody };
                play(round, at_work(leads), &runner, &clock)
            }
        }
        Tier::Edge => {
            let inner = round(&shared, &keyring, Owner::Relay, &state)?;
            let outer = member(&shared, &keyring, true, &state)?;
            let config = RelayConfig {
                margin_ms: learning.relay_margin_ms,
                split: learning.split.map(|split| split.terms),
                chunk_bytes: learning.chunk_bytes,
                island: learning.island,
            };
            let relay = Relay::new(config, outer, inner, &state).map_err(NodeError::State)?;
            let leads = match above {
                _ if stewards => steward(relay.version())?,
                Some(cloud) => {
                    let state = of(Steward::PREFIX, &state);
                    let deputy = rollouts::deputy(&keyring, &me, cloud, &learning, &state)?;
                    Leads::Deputy(deputy)
                }
                None => Leads::Nobody,
            };
            play(relay, at_work(leads), &runner, &clock)
        }
    };
    let again = Arc::new(Notify::new());
    let operator = Operator::new(OperatorParts {
        branch: branch.clone(),
        roles: roles_of(tier, answering.is_some()),
        models: answering.iter().map(|_| learning.model.clone()).collect(),
        key_id: entry.key.key_id(),
        policy: parts.policy.clone(),
        role: role.clone(),
        observe: observe.clone(),
        steer: learning.split.is_none().then_some(steer),
        decide: stewards.then_some(decide),
        rolls_out: stewards.then(|| learning.model.name.clone()),
        runner: runner.clone(),
        bus: Arc::clone(&plant_bus),
        plant,
        lines,
        clock: Arc::clone(&clock),
        figures: Arc::clone(&parts.figures),
        replays: ReplayWindow::from_state(&state).map_err(NodeError::State)?,
        sequences: Sequences::from_state(&state).map_err(NodeError::State)?,
        adopt: parts.adopt,
        again: Arc::clone(&again),
        resources: parts.resources,
    })
    .start();
    let parent_branch =
        entry.parent.as_ref().and_then(|parent| keyring.node(parent)).map(|parent| {
            let (site, line, node) =
                (parent.site.clone(), parent.line.clone(), parent.node.clone());
            Branch { prefix: identity.prefix.clone(), site, line, node }
        });
    let mut asked_above = None;
    let mut tags = Vec::new();
    let answerer = answering.map(|answering| {
        tags = answering.tags.iter().map(|tag| tag.filter().as_str().to_owned()).collect();
        let (branch, model) = (branch.clone(), learning.model.name.clone());
        let (bus, clock) = (Arc::clone(&plant_bus), Arc::clone(&clock));
        let (figures, policy) = (Arc::clone(&parts.figures), parts.policy);
        let (busy, tags) = (answering.busy, TagMap::new(answering.tags));
        let cascade = answering.cascade.map(|cascading| {
            let Cascading { config, to_cloud, safe_default, measure } = cascading;
            let stored = state.iter().find(|(key, _)| key == Calibrated::KEY);
            // An edge's parent is at another broker, outside the site's zone.
            let leaves_site = tier != Tier::Device;
            let mut config = config;
            if leaves_site {
                // Only what is known to be unsure leaves it, not all that nothing is known about yet.
                config.uncalibrated = Uncalibrated::Own;
            }
            let parent = parent_branch.clone().zip(buses.get(&Side::Up).cloned());
            // What a front makes of a window goes to an edge, never out of the site.
            let is_edge = entry.parent.as_ref().and_then(|parent| keyring.node(parent));
            let is_edge = is_edge.is_some_and(|parent| parent.roles.contains(&KeyRole::Edge));
            let has_front = learning.split.is_some() && tier == Tier::Device;
            let way = |bus| match (leaves_site, ToCloud::opened(to_cloud)) {
                (false, _) => Some(Way::Site(bus)),
                (true, door) => door.map(|door| Way::Cloud(Border::new(bus), door)),
            };
            let above = parent.filter(|_| config.above && (is_edge || !has_front));
            let above = above.and_then(|(branch, bus)| Some(Above { branch, way: way(bus)? }));
            CascadeParts {
                config,
                me: me.clone(),
                boot: identity.boot,
                above,
                safe_default,
                measure,
                stored: stored.map(|(_, bytes)| bytes.clone()),
                runner: runner.clone(),
            }
        });
        match answering.lane {
            AnswerLane::Windows(lane) => {
                let asks = cascade.as_ref().and_then(|cascade| cascade.above.as_ref());
                let asks = asks.map(|above| above.branch.clone());
                let half = learning.split.filter(Split::answers).map(|split| HalfParts {
                    terms: split.terms,
                    base: learning.base,
                    half: if tier == Tier::Device { HalfOf::Front } else { HalfOf::Back },
                });
                let inferencer = Inferencer::new(InferencerParts {
                    branch,
                    model,
                    labels: learning.model.labels.clone(),
                    window: window_of(&learning.model),
                    busy,
                    max_gap_ms: answering.max_gap_ms,
                    stale_after_ms: answering.stale_after_ms,
                    tier,
                    policy,
                    tags,
                    lane,
                    bus,
                    clock,
                    figures,
                    cascade,
                    half,
                    book: parts.book,
                    drift: parts.drift,
                    wishes: role.clone(),
                    checked,
                    seen,
                })
                .start();
                asked_above = asks.map(|branch| AskedAbove {
                    branch,
                    replies: inferencer.clone().recipient(),
                    links: inferencer.clone().recipient(),
                    leaves: inferencer.clone().recipient(),
                });
                let watcher = Some(inferencer.clone().recipient());
                let labels = Some(inferencer.clone().recipient());
                Answerer { watcher, labels, ..Answerer::of(inferencer) }
            }
            AnswerLane::Text(lane) => {
                let seed = u64::from_le_bytes(first_eight(&identity.boot));
                let text = TextParts {
                    branch,
                    model,
                    adapters: learning.model.adapters.clone(),
                    tier,
                    policy,
                    tags,
                    lane,
                    busy,
                    bus,
                    clock,
                    figures,
                    seed,
                    checked,
                };
                Answerer::of(TextInferencer::new(text).start())
            }
        }
    });
    let bases = (tier != Tier::Device).then(|| {
        let figures = Arc::clone(&parts.figures);
        BaseDesk::new(parts.bases, runner.clone(), figures).start().recipient()
    });
    let gateway = Gateway::new(GatewayParts {
        federation,
        prefix: identity.prefix.clone(),
        me: me.clone(),
        keyring: Arc::clone(&keyring),
        role: role.clone(),
        runner: runner.clone(),
        requests: answerer.as_ref().map(|answerer| answerer.requests.clone()),
        labels: answerer.as_ref().and_then(|answerer| answerer.labels.clone()),
        plant,
        samples: answerer.as_ref().map(|answerer| answerer.samples.clone()),
        operator: Some(operator.clone()),
        bases,
        clock: Arc::clone(&clock),
        figures: Arc::clone(&parts.figures),
        chunk_bytes: learning.chunk_bytes,
        above: asked_above.as_ref().map(|above| AboveLink {
            branch: above.branch.clone(),
            replies: above.replies.clone(),
            links: above.links.clone(),
        }),
    })
    .start();
    let (server, watcher) = answerer.map(|answerer| (answerer.serve, answerer.watcher)).unzip();
    let _ = runner.try_send(Introduce { role: role.clone(), server, watcher: watcher.flatten() });
    let sides: Vec<Side> = buses.keys().copied().collect();
    let mut filters = subscriptions(&keyring, &identity.prefix, &me, &sides, &tags);
    if let Some(above) = &asked_above
        && let Ok(infer) = CommandName::new("infer")
    {
        let up = filters.iter_mut().filter(|(side, _)| *side == Side::Up);
        up.for_each(|(_, filters)| filters.push(above.branch.reply(&infer)));
    }
    subscribe(&buses, &filters);
    let pumps = events
        .into_iter()
        .map(|(side, receiver)| actix::spawn(pump(side, receiver, gateway.clone())))
        .collect();
    Ok(Node {
        me,
        figures: parts.figures,
        serving,
        observe,
        role,
        runner,
        buses: buses.into_values().collect(),
        boot: identity.boot,
        keyring,
        again,
        clock,
        operator,
        leaves: asked_above.map(|above| above.leaves),
        pumps,
    })
}

impl Node {
    /// What its machine shows.
    pub async fn view(&self) -> Option<MachineView> {
        self.observe.send(Observe).await.ok()
    }

    /// Opens a round, stops or resumes: what an operator's command does.
    pub async fn order(&self, input: Input) {
        let _ = self.role.send(Stimulus { input, ack: Ack::none() }).await;
    }

    /// Waits until a command wants the node to start again, with what lies ready on disk.
    pub async fn must_start_again(&self) {
        self.again.notified().await;
    }

    /// Whether its keyring still lets anything change.
    pub fn standing(&self) -> Standing {
        self.keyring.standing(self.clock.now().wall)
    }

    /// Records the end, says goodbye and closes the links; back when all of it is done, after
    /// little more than `drain_ms` at the latest.
    pub async fn stop(self, reason: &'static str, drain_ms: u64) {
        if let Some(leaves) = self.leaves {
            let _ = leaves.send(Leaves).await;
        }
        let event = Event::NodeStop { boot: self.boot, reason: Word::new(reason) };
        let run = Run { effects: vec![Effect::Record(event)], ack: Ack::none() };
        let _ = self.runner.send(run).await;
        let _ = self.runner.send(Cease).await;
        let _ = self.operator.send(Leave).await;
        for bus in self.buses {
            bus.close(drain_ms);
        }
        let limit = Duration::from_millis(drain_ms.saturating_add(GOODBYE_MS));
        for pump in self.pumps {
            let _ = tokio::time::timeout(limit, pump).await;
        }
    }
}

/// Behind an edge's link to its parent the site ends.
fn line_of(tier: Tier, side: Side, bus: Arc<dyn Bus>) -> Line {
    match (tier, side) {
        (Tier::Edge, Side::Up) => Line::Border(Border::new(bus)),
        (Tier::Device | Tier::Cloud, _) | (Tier::Edge, Side::Down) => Line::Inside(bus),
    }
}

/// Whoever answers, by what it takes.
struct Answerer {
    requests: Recipient<Request>,
    samples: Recipient<TagSample>,
    serve: Recipient<Serve>,
    /// Where windows are answered.
    watcher: Option<Recipient<Attend>>,
    /// The same.
    labels: Option<Recipient<LateLabel>>,
}

impl Answerer {
    fn of<A>(actor: Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Request> + Handler<TagSample> + Handler<Serve>,
    {
        let (requests, samples) = (actor.clone().recipient(), actor.clone().recipient());
        Self { requests, samples, serve: actor.recipient(), watcher: None, labels: None }
    }
}

/// The tier above, and who hears of it.
struct AskedAbove {
    branch: Branch,
    replies: Recipient<AboveSaid>,
    links: Recipient<Link>,
    leaves: Recipient<Leaves>,
}

/// What the machines of a node share.
struct Shared<'a> {
    me: NodeId,
    federation: Name,
    entry: &'a NodeEntry,
    learning: &'a Learning,
}

fn member(
    shared: &Shared<'_>,
    keyring: &Keyring,
    relay: bool,
    state: &[(String, Vec<u8>)],
) -> Result<Member, NodeError> {
    let Shared { me, federation, entry, learning } = shared;
    let adapter = update::unpack(&learning.adapter);
    let layout = adapter.map_err(|error| NodeError::State(error.to_string()))?.layout();
    let config = MemberConfig {
        federation: federation.clone(),
        me: me.clone(),
        parent: entry.parent.clone().ok_or_else(|| NodeError::NoRole(me.clone()))?,
        standby: entry
            .parent
            .as_ref()
            .and_then(|parent| keyring.standby_of(parent))
            .map(|standby| standby.node.clone()),
        // The other half of a split model is at the edge that has it.
        second: keyring.second_edge_of(me).filter(|_| learning.split.is_none()).map(|second| {
            SecondEdge { edge: second.node.clone(), after_ms: learning.second_edge_after_ms }
        }),
        model: learning.model.name.clone(),
        base: learning.base,
        layout: layout.into(),
        relay,
        gate: learning.gate,
        resync_ms: learning.resync_ms,
        chunk_bytes: learning.chunk_bytes,
        // Whoever wasn't told to have a model of its own says nothing of one.
        knows: learning.plan.knowledge.as_ref().filter(|_| learning.split.is_none()).map(|plan| {
            Knows {
                untrained: Digest::of(&learning.adapter),
                references: learning.reference.iter().map(|set| set.digest).collect(),
                labels: labels_digest(&learning.model.labels),
                top_logits: plan.top_logits.clone(),
            }
        }),
        split: learning.split.is_some(),
    };
    Member::new(config, &of(Member::PREFIX, state)).map_err(NodeError::State)
}

/// A member that trains the front of a split model, where the settings say so.
fn split_device(
    shared: &Shared<'_>,
    keyring: &Keyring,
    state: &[(String, Vec<u8>)],
) -> Result<Option<SplitDevice>, NodeError> {
    let Some(split) = shared.learning.split else { return Ok(None) };
    let member = member(shared, keyring, false, state)?;
    let parent = shared.entry.parent.clone();
    let parent = parent.ok_or_else(|| NodeError::NoRole(shared.me.clone()))?;
    let config = FrontConfig {
        terms: split.terms,
        min_steps: shared.learning.gate.min_steps,
        step_timeout_ms: split.step_timeout_ms,
    };
    let device = SplitDevice::new(parent, config, member, &of(SplitDevice::PREFIX, state));
    device.map(Some).map_err(NodeError::State)
}

/// A cloud that has a standby, or that standby.
struct Pair {
    config: FailoverConfig,
    /// Blobs that its state names.
    blobs: Vec<Manifest>,
}

/// What the keyring says of this cloud and another one, and what the store has of their rounds.
fn pair_of(
    shared: &Shared<'_>,
    keyring: &Keyring,
    store: &dyn Store,
    state: &[(String, Vec<u8>)],
) -> Result<Option<Pair>, NodeError> {
    let Shared { me, learning, .. } = shared;
    let Some(peer) = keyring.peer_of(me) else { return Ok(None) };
    let config = FailoverConfig {
        peer: peer.clone(),
        first: keyring.stands_by(me).is_none(),
        lease_ms: learning.lease_ms,
        chunk_bytes: learning.chunk_bytes,
    };
    let rounds = round_config(shared, keyring, Owner::Root);
    let needs = Failover::needs(&rounds, &learning.adapter, &of(Round::PREFIX, state));
    let mut blobs = Vec::new();
    for digest in needs.map_err(NodeError::State)? {
        if let Some(bytes) = store.blob(&digest)? {
            blobs.push(Manifest::of(&bytes, learning.chunk_bytes));
        }
    }
    Ok(Some(Pair { config, blobs }))
}

fn failover(
    shared: &Shared<'_>,
    keyring: &Keyring,
    pair: Pair,
    state: &[(String, Vec<u8>)],
) -> Result<Failover, NodeError> {
    let rounds = round_config(shared, keyring, Owner::Root);
    let (own, state) = (of(Failover::PREFIX, state), of(Round::PREFIX, state));
    let adapter = &shared.learning.adapter;
    Failover::new(pair.config, rounds, adapter, &own, &state, pair.blobs).map_err(NodeError::State)
}

fn round_config(shared: &Shared<'_>, keyring: &Keyring, owner: Owner) -> RoundConfig {
    let Shared { me, learning, .. } = shared;
    RoundConfig {
        owner,
        members: keyring.members_of(me).map(|entry| entry.node.clone()).collect(),
        guests: keyring.guests_of(me).map(|entry| entry.node.clone()).collect(),
        quorum: learning.quorum,
        deadline_ms: learning.deadline_ms,
        republish_ms: learning.republish_ms,
        pause_ms: learning.pause_ms,
        versions: learning.versions,
        schedule: learning.schedule,
        max_staleness: learning.max_staleness,
        chunk_bytes: learning.chunk_bytes,
        model: learning.model.name.clone(),
        base: learning.base,
        plan: learning.plan.clone(),
        bounds: learning.share_bounds,
        split: learning.split.filter(|_| owner == Owner::Relay).map(|split| split.backs),
        distils: learning.distils,
        triggers: learning.triggers,
    }
}

fn round(
    shared: &Shared<'_>,
    keyring: &Keyring,
    owner: Owner,
    state: &[(String, Vec<u8>)],
) -> Result<Round, NodeError> {
    let learning = shared.learning;
    let config = round_config(shared, keyring, owner);
    let front = match learning.split.filter(|_| owner == Owner::Relay) {
        Some(Split { terms, .. }) => {
            let front = update::part(&learning.adapter, |name| terms.cut.is_front(name));
            Some(front.map_err(|error| NodeError::State(error.to_string()))?)
        }
        None => None,
    };
    let adapter = front.as_ref().unwrap_or(&learning.adapter);
    Round::new(config, adapter, &of(Round::PREFIX, state)).map_err(NodeError::State)
}

fn of(prefix: &str, state: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    state.iter().filter(|(key, _)| key.starts_with(prefix)).cloned().collect()
}

/// A machine at work, by what it takes.
struct Played {
    role: Recipient<Stimulus>,
    observe: Recipient<Observe>,
    steer: Recipient<Steer>,
    checked: Recipient<Checked>,
    decide: Recipient<Decide>,
    seen: Recipient<Seen>,
}

fn play<M: Machine>(
    machine: M,
    (slots, rollouts): (Slots, Rollouts),
    runner: &Addr<Runner>,
    clock: &Arc<dyn Clock>,
) -> Played {
    let role = Role::new(machine, slots, rollouts, runner.clone(), Arc::clone(clock)).start();
    Played {
        role: role.clone().recipient(),
        observe: role.clone().recipient(),
        steer: role.clone().recipient(),
        checked: role.clone().recipient(),
        decide: role.clone().recipient(),
        seen: role.recipient(),
    }
}

/// Re-derives the ledger and holds it against the last head that was signed.
fn replay(store: &dyn Store, federation: &Name, me: &NodeId) -> Result<Log, NodeError> {
    let origin = Origin { federation: federation.clone(), node: me.clone() };
    let last = match store.checkpoints()?.last() {
        Some(note) => Some(SignedCheckpoint::parse(note)?.checkpoint().head),
        None => None,
    };
    let mut replay = Replay::new(origin, last.as_slice())?;
    let (mut from, total) = (0, store.num_entries()?);
    while from < total {
        let to = total.min(from + ENTRIES_AT_ONCE);
        for bytes in store.entries(from, to)? {
            replay.push(&bytes)?;
        }
        from = to;
    }
    Ok(replay.finish()?)
}

const ENTRIES_AT_ONCE: u64 = 4_096;
/// What a link's goodbye takes beyond its draining.
const GOODBYE_MS: u64 = 500;

fn tier_of(entry: &NodeEntry) -> Option<Tier> {
    [(KeyRole::Cloud, Tier::Cloud), (KeyRole::Edge, Tier::Edge), (KeyRole::Device, Tier::Device)]
        .into_iter()
        .find(|(role, _)| entry.roles.contains(role))
        .map(|(_, tier)| tier)
}

/// What `status` says of a node; one with the front of a model and its head gives no answers.
fn roles_of(tier: Tier, answers: bool) -> Vec<String> {
    let first = match tier {
        Tier::Device => "trainer",
        Tier::Edge => "relay",
        Tier::Cloud => "aggregator",
    };
    [Some(first), answers.then_some("inferencer")]
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .collect()
}

fn window_of(model: &ModelMeta) -> NonZeroUsize {
    usize::try_from(model.window).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

fn side_name(side: &str) -> &'static str {
    if side == "plant" { "to its site's broker" } else { "to its parent's broker" }
}

fn first_eight(boot: &BootId) -> [u8; 8] {
    let mut out = [0; 8];
    for (to, from) in out.iter_mut().zip(boot.0) {
        *to = from;
    }
    out
}
