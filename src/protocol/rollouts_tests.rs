//! Rollouts without actors: an edge and its devices, or a cloud and two edges with theirs. Whoever dies at any moment changes
//! nothing of what is promised.

use std::collections::{BTreeMap, VecDeque};

use super::super::effect::{CombineInput, CombineJob, Job};
use super::super::fixture::{CHUNK_BYTES, layout_of, plan as round_plan, verified};
use super::super::guard::{Guard, tests::without};
use super::super::rollout::{Expected, Gate, Plan, RolloutConfig, Stage, StagePlan};
use super::super::{
    DeputyConfig, FollowerConfig, ShareBounds, SlotOrder, Slots, SlotsConfig, Steward,
    StewardConfig, Watch, update,
};
use super::*;
use crate::ids::{Name, UpdateId, Version};
use crate::learn::{Tensor, TensorSet};
use crate::ledger::{Event, Word};
use crate::time::{Mono, Wall};
use crate::wire::{
    Assignment, Blob, Candidate, Coding, Manifest, Result as RoundResult, SiteEvidence, Wanted,
};

const DEVICES: [&str; 3] = ["d1", "d2", "d3"];

/// Who decides.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// The edge of all devices.
    Edge,
    /// A cloud, with the edge of two devices and another edge of one.
    Cloud,
}

impl By {
    fn steward(self) -> NodeId {
        node(if self == Self::Edge { "edge" } else { "cloud" })
    }

    fn owners(self) -> &'static [&'static str] {
        if self == Self::Edge { &["edge"] } else { &["cloud", "edge", "edge2"] }
    }

    fn parent(self, name: &NodeId) -> Option<NodeId> {
        match (self, name.as_str()) {
            (Self::Edge, "edge") | (Self::Cloud, "cloud") => None,
            (Self::Cloud, "edge" | "edge2") => Some(node("cloud")),
            (Self::Cloud, "d3") => Some(node("edge2")),
            _ => Some(node("edge")),
        }
    }

    fn children(self, name: &NodeId) -> BTreeSet<NodeId> {
        let all = self.owners().iter().chain(&DEVICES).map(|name| node(name));
        all.filter(|child| self.parent(child).as_ref() == Some(name)).collect()
    }
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn adapter(version: Version) -> Vec<u8> {
    let value = f32::from(u8::try_from(version).unwrap());
    let tensor = Tensor { name: "w".into(), shape: vec![4], data: vec![value; 4] };
    update::pack(&TensorSet::new(vec![tensor]).unwrap(), Coding::F32, 0).unwrap()
}

/// A version is handed down.
fn handed_down(version: Version) -> Effect {
    Effect::Send {
        to: To::Children,
        body: Body::Result(
            RoundResult {
                offer: Digest([9; 32]),
                version,
                adapter: Blob::of(&adapter(version), CHUNK_BYTES),
                class_targets: None,
                contributors: 3,
                contributor_set: Digest([8; 32]),
                knowledge: None,
            }
            .into(),
        ),
        round: version,
        epoch: 1,
        delivery: Delivery::Latest,
    }
}

fn plan(version: Version) -> Plan {
    let gate = Gate {
        least_answers: 16,
        least_nodes: 1,
        least_ms: 10_000,
        most_ms: 600_000,
        delta: 0.1,
        max_errors: Some(0.2),
        max_slow: None,
        slow_ms: 0,
        max_worse: None,
        max_disagreement: None,
        max_drift: None,
        max_risk: None,
        expected: Expected { answers: 500, ..Expected::default() },
    };
    let stage = |stage, nodes: &[&str]| StagePlan {
        stage,
        nodes: nodes.iter().map(|name| node(name)).collect(),
        approvals: 0,
        gate,
    };
    let stages = vec![
        stage(Stage::Shadow, &DEVICES[2..]),
        stage(Stage::Canary, &DEVICES[..1]),
        stage(Stage::Site, &DEVICES),
    ];
    Plan { model: Name::new("m").unwrap(), version, stages, automatic: true }
}

/// What a node is asked to do.
#[derive(Clone)]
enum Ask {
    Hears(Input),
    HandsDown(Version),
    Decides(RolloutOrder),
    Sees(u64, Tally),
    /// Its own check of the served version ends so.
    Checks(super::super::Check),
}

struct Place {
    by: By,
    name: NodeId,
    rollouts: Rollouts,
    slots: Slots,
    disk: BTreeMap<String, Vec<u8>>,
    watch: Option<Watch>,
    seen: BTreeMap<u64, Tally>,
    events: Vec<Event>,
}

impl Place {
    fn new(by: By, name: &str) -> Self {
        let name = node(name);
        let (rollouts, slots) = Self::built(by, &name, &BTreeMap::new());
        let (disk, seen, events) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { by, name, rollouts, slots, disk, watch: None, seen, events }
    }

    fn built(by: By, name: &NodeId, disk: &BTreeMap<String, Vec<u8>>) -> (Rollouts, Slots) {
        let state: Vec<_> = disk.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let model = Name::new("m").unwrap();
        let children = by.children(name);
        let slots = SlotsConfig {
            base: Digest([1; 32]),
            untrained: Digest::of(&adapter(0)),
            checks: true,
            follow: children.is_empty(),
        };
        let slots = Slots::new(slots, &state).unwrap();
        let untrained = Manifest::of(&adapter(0), CHUNK_BYTES);
        let (mut leads, mut follower) = (Leads::Nobody, None);
        match by.parent(name) {
            None => {
                let sites = children.iter().map(|edge| (edge.clone(), by.children(edge)));
                let rollout = RolloutConfig {
                    model,
                    base: Digest([1; 32]),
                    served: 0,
                    widest: Stage::Site,
                    members: DEVICES.iter().map(|name| node(name)).collect(),
                    sites: sites.filter(|(_, devices)| !devices.is_empty()).collect(),
                    approvers: BTreeSet::new(),
                    four_eyes: false,
                    freezes: Vec::new(),
                };
                let code = Word::new("test");
                let config = StewardConfig { rollout, untrained, chunk_bytes: CHUNK_BYTES, code };
                leads = Leads::Steward(Steward::new(config, &state).unwrap());
            }
            Some(steward) if children.is_empty() => {
                let layout = layout_of(&adapter(0));
                let (me, source) = (name.clone(), steward.clone());
                let config = FollowerConfig { me, steward, source, model, layout };
                follower = Some(Follower::new(config, &state).unwrap());
            }
            Some(steward) => {
                let (members, chunk_bytes) = (children, CHUNK_BYTES);
                let config = DeputyConfig { steward, model, members, untrained, chunk_bytes };
                leads = Leads::Deputy(Deputy::new(config, &state).unwrap());
            }
        }
        (Rollouts::new(name.clone(), leads, follower), slots)
    }
}

/// The site; messages come in their order, and a death is one of a step before it was committed.
struct Site {
    by: By,
    now_ms: u64,
    places: Vec<Place>,
    letters: VecDeque<(NodeId, Input)>,
    retained: BTreeMap<NodeId, Assignment>,
    /// What the cloud was told.
    left: Vec<(NodeId, SiteEvidence)>,
    /// Steps that were taken so far.
    steps: usize,
    dies_at: Option<usize>,
    /// Versions that devices were ever told to answer by.
    served: BTreeMap<NodeId, BTreeSet<Version>>,
}

impl Site {
    fn new(dies_at: Option<usize>) -> Self {
        Self::decided(By::Edge, dies_at)
    }

    fn decided(by: By, dies_at: Option<usize>) -> Self {
        let all = || by.owners().iter().chain(&DEVICES);
        let places = all().map(|name| Place::new(by, name)).collect();
        let mut site = Self {
            by,
            now_ms: 0,
            places,
            letters: VecDeque::new(),
            retained: BTreeMap::new(),
            left: Vec::new(),
            steps: 0,
            dies_at,
            served: BTreeMap::new(),
        };
        for name in all() {
            site.starts(&node(name));
        }
        site.post();
        site
    }

    fn place(&mut self, name: &NodeId) -> &mut Place {
        self.places.iter_mut().find(|place| place.name == *name).unwrap()
    }

    fn now(&self) -> Now {
        let ms = self.now_ms;
        Now { mono: Mono(ms), micros: ms * 1_000, wall: Wall(ms) }
    }

    fn starts(&mut self, name: &NodeId) {
        let (now, place) = (self.now(), self.place(name));
        (place.rollouts, place.slots) = Place::built(place.by, name, &place.disk);
        (place.watch, place.seen) = (None, BTreeMap::new());
        let started = place.slots.start(Vec::new());
        let effects = place.rollouts.behind(now, &mut place.slots, true, started);
        self.carry_out(name, effects);
        // What the broker has kept comes with each connection.
        let told = self.by.parent(name).and_then(|parent| self.retained.get(&parent));
        if let Some(told) = told.cloned() {
            self.told(name, told);
        }
    }

    fn told(&mut self, name: &NodeId, told: Assignment) {
        let letter = verified(&self.by.parent(name).unwrap(), 0, 0, Body::Assignment(told));
        self.letters.push_back((name.clone(), Input::Message(letter)));
    }

    /// One step of a node; if it dies in it, it starts again and takes the step then.
    #[expect(clippy::needless_pass_by_value, reason = "it is taken again after a death")]
    fn ask(&mut self, name: &NodeId, ask: Ask) {
        let now = self.now();
        for _ in 0..2 {
            self.steps += 1;
            let place = self.place(name);
            let Place { rollouts, slots, .. } = place;
            let effects = match ask.clone() {
                Ask::Hears(Input::Fetched { digest, bytes }) => {
                    rollouts.fetched(now, slots, digest, &bytes)
                }
                Ask::Hears(input) => rollouts.takes(now, slots, input).unwrap_or_default(),
                Ask::HandsDown(version) => {
                    rollouts.behind(now, slots, false, vec![handed_down(version)])
                }
                Ask::Decides(order) => match rollouts.order(now, slots, &node("anna"), order) {
                    Some(Ok(effects)) => effects,
                    // It was carried out before it died.
                    Some(Err(_)) | None => Vec::new(),
                },
                Ask::Sees(serial, tally) => rollouts.seen(now, slots, serial, tally),
                Ask::Checks(check) => {
                    let (version, adapter) =
                        (slots.served(), slots.adapter_of(slots.served()).unwrap());
                    let mut effects = slots.checked(version, adapter, check);
                    effects.extend(rollouts.look(now, slots));
                    effects
                }
            };
            if self.dies_at == Some(self.steps) {
                self.starts(name);
                continue;
            }
            return self.carry_out(name, effects);
        }
    }

    fn carry_out(&mut self, name: &NodeId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Put(key, value) => {
                    drop(self.place(name).disk.insert(key.into_owned(), value));
                }
                Effect::Delete(key) => drop(self.place(name).disk.remove(&*key)),
                Effect::Record(event) => self.place(name).events.push(event),
                Effect::Watch(watch) => self.place(name).watch = watch,
                Effect::Apply { version, .. } => {
                    self.served.entry(name.clone()).or_default().insert(version);
                }
                Effect::Send { body: Body::Assignment(told), .. } => {
                    self.retained.insert(name.clone(), told.clone());
                    for child in self.by.children(name) {
                        self.told(&child, told.clone());
                    }
                }
                Effect::Send {
                    body: evidence @ (Body::Evidence(_) | Body::SiteEvidence(_)),
                    ..
                } => {
                    if let Body::SiteEvidence(said) = &evidence {
                        self.left.push((name.clone(), said.clone()));
                    }
                    let letter = verified(name, 0, 0, evidence);
                    let parent = self.by.parent(name).unwrap();
                    self.letters.push_back((parent, Input::Message(letter)));
                }
                Effect::Fetch { manifest, .. } => {
                    let wanted = Wanted::Chunks { sha256: manifest.sha256, indices: vec![0] };
                    let get = verified(name, 0, 0, Body::Get(Get { wanted }));
                    let parent = self.by.parent(name).unwrap();
                    let (now, owner) = (self.now(), self.place(&parent));
                    let given = owner.rollouts.takes(now, &mut owner.slots, Input::Message(get));
                    if !matches!(given.as_deref(), Ok([Effect::SendChunks { .. }])) {
                        assert_ne!(parent, self.by.steward(), "it hasn't what it assigned");
                        continue; // on its way from further above: it is asked again
                    }
                    let bytes = (0..9).map(adapter).find(|b| Digest::of(b) == manifest.sha256);
                    let (digest, bytes) = (manifest.sha256, bytes.unwrap());
                    self.letters.push_back((name.clone(), Input::Fetched { digest, bytes }));
                }
                Effect::Fatal(what) => panic!("{what}"),
                _ => {}
            }
        }
    }

    fn post(&mut self) {
        while let Some((to, input)) = self.letters.pop_front() {
            self.ask(&to, Ask::Hears(input));
        }
    }

    /// A second of the plant: whoever is to count has answered once, without an error unless `sick`.
    fn works(&mut self, sick: bool) {
        self.now_ms += 1_000;
        for device in DEVICES.map(node) {
            let place = self.place(&device);
            let Some(watch) = place.watch.clone() else { continue };
            let tally = place.seen.entry(watch.serial).or_default();
            tally.answers += 1;
            tally.errors += u64::from(sick);
            let tally = *tally;
            self.ask(&device, Ask::Sees(watch.serial, tally));
        }
        if self.now_ms.is_multiple_of(10_000) {
            for device in DEVICES.map(node) {
                self.ask(&device, Ask::Hears(Input::Timer(Timer::Follow)));
            }
        }
        if self.now_ms.is_multiple_of(10_000) {
            for owner in self.by.owners() {
                self.ask(&node(owner), Ask::Hears(Input::Timer(Timer::Steward)));
            }
        }
        self.post();
    }

    /// Version 1 goes over the site, or over both; the other edge wasn't there when it was handed down.
    fn rolls_out(&mut self, sick: bool) {
        let edge = self.by.steward();
        for version in 1..=2 {
            self.ask(&edge, Ask::HandsDown(version));
            if self.by == By::Cloud {
                self.ask(&node("edge"), Ask::HandsDown(version));
            }
        }
        self.ask(&edge, Ask::Decides(RolloutOrder::Plan(plan(1))));
        self.ask(&edge, Ask::Decides(RolloutOrder::Start));
        self.post();
        for _ in 0..600 {
            self.works(sick);
            if self.view().rollout.version.is_none() {
                break;
            }
        }
        (0..12).for_each(|_| self.works(sick));
    }

    fn view(&mut self) -> StewardView {
        self.place(&self.by.steward()).rollouts.view().unwrap()
    }

    fn serve(&mut self) -> Vec<Version> {
        DEVICES.map(node).iter().map(|device| self.place(device).slots.served()).collect()
    }
}

#[test]
fn whoever_dies_in_any_step_of_a_rollout_changes_nothing_of_its_course() {
    for by in [By::Edge, By::Cloud] {
        let mut undisturbed = Site::decided(by, None);
        undisturbed.rolls_out(false);
        assert_eq!(undisturbed.serve(), [1; 3]);
        assert_eq!(undisturbed.view().rollout.stable, 1);
        let steps = undisturbed.steps;
        assert!(steps > 100, "{steps}");
        for dies_at in 1..=steps {
            let mut site = Site::decided(by, Some(dies_at));
            site.rolls_out(false);
            assert_eq!(site.serve(), [1; 3], "died in step {dies_at}");
            assert_eq!(site.view().rollout.stable, 1, "died in step {dies_at}");
            let events = &site.place(&by.steward()).events;
            let count = |what: &str| {
                let is = |event: &&Event| matches!(event, Event::RolloutStep { outcome, .. } if outcome.as_str() == what);
                events.iter().filter(is).count()
            };
            let steps = (count("entered"), count("passed"), count("done"));
            assert_eq!(steps, (3, 2, 1), "{dies_at}");
        }
    }
}

#[test]
fn a_sick_version_never_leaves_the_shadow_whoever_dies_in_any_step() {
    for by in [By::Edge, By::Cloud] {
        let mut undisturbed = Site::decided(by, None);
        undisturbed.rolls_out(true);
        for dies_at in 1..=undisturbed.steps {
            let mut site = Site::decided(by, Some(dies_at));
            site.rolls_out(true);
            assert_eq!(site.serve(), [0; 3], "died in step {dies_at}");
            let served: BTreeSet<Version> = site.served.values().flatten().copied().collect();
            assert_eq!(served, [0].into(), "died in step {dies_at}");
            let known = site.view().versions;
            assert_eq!(known[0].barred.as_deref(), Some("errors"), "died in step {dies_at}");
        }
    }
}

#[test]
fn a_candidate_in_whose_shadow_a_device_never_comes_to_an_answer_is_halted_at_the_third_start() {
    let begun = || {
        let mut site = Site::new(None);
        let edge = node("edge");
        site.ask(&edge, Ask::HandsDown(1));
        site.ask(&edge, Ask::Decides(RolloutOrder::Plan(plan(1))));
        site.ask(&edge, Ask::Decides(RolloutOrder::Start));
        site.post();
        assert!(site.place(&node("d3")).watch.as_ref().is_some_and(|watch| watch.shadow));
        site
    };
    let starts = |site: &mut Site| {
        site.starts(&node("d3"));
        site.post();
        site.view().rollout.version
    };
    let mut site = begun();
    assert_eq!([starts(&mut site), starts(&mut site)], [Some(1); 2]);
    assert_eq!(starts(&mut site), None, "it may be what ends the process");
    assert_eq!(site.view().versions[0].barred.as_deref(), Some("failed_checks"));
    assert_eq!(site.place(&node("d3")).watch, None);
    assert_eq!(site.serve(), [0; 3]);
    // One that has answered is no such candidate, however often the device starts, nor one that was asked nothing.
    let (mut site, mut idle) = (begun(), begun());
    for _ in 0..6 {
        assert_eq!([starts(&mut site), starts(&mut idle)], [Some(1); 2]);
        site.works(false);
        for _ in 0..6 {
            idle.ask(&node("d3"), Ask::Hears(Input::Timer(Timer::Follow)));
        }
        idle.post();
    }
}

#[test]
fn a_device_that_gives_it_up_halts_it_and_an_operators_hold_stays() {
    let mut site = Site::new(None);
    let edge = node("edge");
    site.ask(&edge, Ask::HandsDown(1));
    let mut only_site = plan(1);
    only_site.stages.drain(..2);
    site.ask(&edge, Ask::Decides(RolloutOrder::Plan(only_site)));
    site.ask(&edge, Ask::Decides(RolloutOrder::Start));
    site.post();
    assert_eq!(site.serve(), [1; 3]);
    // A person takes it away from one device, which the rollout doesn't know of.
    let by = super::super::RollbackBy::Operator;
    let place = site.place(&node("d1"));
    let back = place.slots.order(SlotOrder::Rollback { to: None, by }).unwrap();
    site.carry_out(&node("d1"), back);
    for _ in 0..5 {
        site.works(false);
    }
    assert_eq!(site.serve(), [0, 1, 1], "it is held until it is released");
    for _ in 0..3 {
        site.ask(&node("d2"), Ask::Checks(super::super::Check::Failed));
    }
    site.post();
    assert_eq!(site.serve(), [0; 3]);
    assert_eq!(site.view().versions[0].barred.as_deref(), Some("failed_checks"));
    // The next one goes where nobody holds it back, and there once it is released.
    site.ask(&edge, Ask::HandsDown(2));
    let mut next = plan(2);
    next.stages.drain(..2);
    site.ask(&edge, Ask::Decides(RolloutOrder::Plan(next)));
    site.ask(&edge, Ask::Decides(RolloutOrder::Start));
    site.post();
    assert_eq!(site.serve(), [0, 2, 2]);
    let (now, place) = (site.now(), site.place(&node("d1")));
    let mut freed = place.slots.order(SlotOrder::Release { least: 2 }).unwrap();
    freed.extend(place.rollouts.look(now, &mut place.slots));
    site.carry_out(&node("d1"), freed);
    site.post();
    assert_eq!(site.serve(), [2; 3]);
}

#[test]
fn nothing_is_served_that_is_not_assigned_and_without_the_guard_it_is() {
    let serve = || {
        let mut place = Place::new(By::Edge, "d1");
        let offered = Effect::Apply { version: 5, adapter: Digest::of(&adapter(5)) };
        place.slots.take(vec![offered]);
        place.slots.served()
    };
    assert_eq!(serve(), 0);
    assert_eq!(without(Guard::Assigned, serve), 5);
}

#[test]
fn an_older_assignment_changes_nothing_also_after_a_restart() {
    let mut site = Site::new(None);
    site.rolls_out(false);
    let device = node("d1");
    let old = Assignment {
        model: Name::new("m").unwrap(),
        serial: 0,
        stable: 0,
        stable_adapter: None,
        candidate: None,
    };
    for _ in 0..2 {
        site.told(&device, old.clone());
        site.post();
        assert_eq!(site.serve(), [1; 3]);
        site.starts(&device);
    }
    // Numbers that no honest edge comes to aren't remembered.
    site.told(&device, Assignment { serial: u64::MAX, ..old });
    site.post();
    assert_eq!(site.serve(), [1; 3]);
}

#[test]
fn a_version_whose_adapter_is_not_kept_or_unknown_is_not_planned() {
    let mut site = Site::new(None);
    for version in 1..=8 {
        site.ask(&node("edge"), Ask::HandsDown(version));
    }
    let (now, edge) = (site.now(), site.place(&node("edge")));
    let mut refused = |version| {
        let order = RolloutOrder::Plan(plan(version));
        let decided = edge.rollouts.order(now, &mut edge.slots, &node("anna"), order);
        decided.unwrap().map_err(|refusal| refusal.kind())
    };
    assert_eq!(refused(2), Err("version_not_kept"));
    assert_eq!(refused(9), Err("version_unknown"));
    assert!(refused(8).is_ok());
    assert_eq!(edge.rollouts.blobs().len(), 5, "four and the untrained one");
}

fn follower() -> (Place, Assignment) {
    let told = Assignment {
        model: Name::new("m").unwrap(),
        serial: 3,
        stable: 1,
        stable_adapter: Some(Manifest::of(&adapter(1), CHUNK_BYTES)),
        candidate: None,
    };
    (Place::new(By::Edge, "d1"), told)
}

fn hears(place: &mut Place, told: &Assignment) -> Vec<Effect> {
    let now = Now { mono: Mono(0), micros: 0, wall: Wall(0) };
    let letter = verified(&node("edge"), 0, 0, Body::Assignment(told.clone()));
    place.rollouts.takes(now, &mut place.slots, Input::Message(letter)).unwrap()
}

fn fetches(place: &mut Place, version: Version) {
    let now = Now { mono: Mono(0), micros: 0, wall: Wall(0) };
    let bytes = adapter(version);
    place.rollouts.fetched(now, &mut place.slots, Digest::of(&bytes), &bytes);
}

#[test]
fn what_is_assigned_is_kept_while_it_is_on_its_way() {
    let (mut place, mut told) = follower();
    hears(&mut place, &told);
    assert_eq!(place.rollouts.blobs(), [Digest::of(&adapter(1))].into());
    let candidate = Candidate {
        version: 2,
        adapter: Manifest::of(&adapter(2), CHUNK_BYTES),
        serve: BTreeSet::new(),
        shadow: [node("d1")].into(),
        slow_ms: 0,
    };
    (told.serial, told.candidate) = (4, Some(candidate));
    hears(&mut place, &told);
    let both = [1, 2].map(|version| Digest::of(&adapter(version)));
    assert_eq!(place.rollouts.blobs(), both.into());
}

#[test]
fn an_assignment_with_an_unsound_manifest_is_refused_before_it_is_remembered() {
    let (mut place, told) = follower();
    let mut unsound = told.clone();
    unsound.stable_adapter.as_mut().unwrap().chunk_bytes = 1;
    assert_eq!(hears(&mut place, &unsound), [Effect::Count("unsound_blob")]);
    assert!(place.rollouts.blobs().is_empty());
    // Its twin of the same number is heard.
    assert!(matches!(hears(&mut place, &told)[..], [Effect::Put(..), Effect::Fetch { .. }]));
}

#[test]
fn another_adapter_of_the_same_version_is_fetched_and_served() {
    let (mut place, mut told) = follower();
    hears(&mut place, &told);
    fetches(&mut place, 1);
    assert_eq!(place.slots.in_use(), (1, Digest::of(&adapter(1))));
    (told.serial, told.stable_adapter) = (4, Some(Manifest::of(&adapter(7), CHUNK_BYTES)));
    let effects = hears(&mut place, &told);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
    fetches(&mut place, 7);
    assert_eq!(place.slots.in_use(), (1, Digest::of(&adapter(7))));
}

#[test]
fn a_number_says_one_thing_only() {
    let (mut place, told) = follower();
    let bare = Assignment { stable_adapter: None, ..told.clone() };
    hears(&mut place, &bare);
    // Its chunks may come later, and it may be repeated ...
    for told in [&told, &told] {
        assert!(!hears(&mut place, told).iter().any(|e| matches!(e, Effect::Count(_))));
    }
    // ... but it is no other version, and no other adapter of it.
    let other = Some(Manifest::of(&adapter(2), CHUNK_BYTES));
    for stable in [1, 2] {
        let told = Assignment { stable, stable_adapter: other.clone(), ..told.clone() };
        assert_eq!(hears(&mut place, &told), [Effect::Count("serial_used_twice")]);
    }
}

#[test]
fn a_cloud_hears_sums_in_steps_and_devices_hear_of_their_own_site_only() {
    let mut site = Site::decided(By::Cloud, None);
    site.rolls_out(false);
    for edge in ["edge", "edge2"] {
        let mut last: Option<SiteEvidence> = None;
        let of_edge = site.left.iter().filter(|(from, _)| from.as_str() == edge);
        for (_, told) in of_edge {
            let before = last.filter(|last| last.serial == told.serial);
            let before = before.map(|before| before.tally).unwrap_or_default();
            assert!(!grew_by_few(&before, &told.tally), "{edge}: {before:?}, {told:?}");
            last = Some(told.clone());
        }
        assert!(last.is_some_and(|last| last.nodes > 0), "{edge}");
    }
    // Each edge tells its own devices, by numbers of its own.
    let mut site = Site::decided(By::Cloud, None);
    site.ask(&node("cloud"), Ask::HandsDown(1));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Plan(plan(1))));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Start));
    site.post();
    let candidate = |site: &Site, edge: &str| site.retained[&node(edge)].candidate.clone();
    assert_eq!(candidate(&site, "edge"), None, "the shadow is at the other site");
    assert_eq!(candidate(&site, "edge2").unwrap().shadow, [node("d3")].into());
}

/// Whether any count has grown, and by less than a step.
fn grew_by_few(before: &Tally, now: &Tally) -> bool {
    let counts = |tally: &Tally| [tally.answers, tally.judged, tally.base_judged, tally.compared];
    let grown = counts(now).into_iter().zip(counts(before)).map(|(now, before)| now - before);
    grown.into_iter().any(|grown| (1..Deputy::STEP).contains(&grown))
}

#[test]
fn a_single_label_is_told_with_fifteen_others() {
    let (mut site, serial) = begun_by_the_cloud();
    let mut says = |answers: u64, judged: u64| {
        let tally = Tally { answers, judged, wrong: judged, ..Tally::default() };
        let told = Evidence { serial, version: 1, life: 1, tally, gave_up: false };
        let letter = verified(&node("d3"), 0, 0, Body::Evidence(told));
        site.letters.push_back((node("edge2"), Input::Message(letter)));
        site.post();
        site.left.last().map(|(_, said)| (said.tally.answers, said.tally.judged, said.tally.wrong))
    };
    assert_eq!(says(15, 15), None);
    assert_eq!(says(16, 15), Some((16, 0, 0)));
    assert_eq!(says(31, 16), Some((16, 16, 16)), "labels that came late");
    assert_eq!(says(40, 17), Some((40, 16, 16)));
    assert_eq!(says(40, 31), Some((40, 16, 16)));
    assert_eq!(says(40, 32), Some((40, 32, 32)));
}

/// A shadow on d3, by the cloud's word; its number at the other site.
fn begun_by_the_cloud() -> (Site, u64) {
    let mut site = Site::decided(By::Cloud, None);
    site.ask(&node("cloud"), Ask::HandsDown(1));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Plan(plan(1))));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Start));
    site.post();
    let serial = site.retained[&node("edge2")].serial;
    (site, serial)
}

#[test]
fn a_liar_neither_silences_its_site_nor_hides_that_another_one_gave_up() {
    let (mut site, _) = begun_by_the_cloud();
    // Both devices of the edge are to serve it.
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Halt));
    let mut only_site = plan(1);
    only_site.stages.drain(..2);
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Plan(only_site)));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Start));
    site.post();
    let serial = site.retained[&node("edge")].serial;
    for life in 1..4 {
        let tally = Tally { answers: Tally::MAX_COUNT, ..Tally::default() };
        let lie = Evidence { serial, version: 1, life, tally, gave_up: false };
        let letter = verified(&node("d1"), 0, 0, Body::Evidence(lie));
        site.letters.push_back((node("edge"), Input::Message(letter)));
    }
    site.post();
    let seen = site.view().rollout.seen;
    assert!(seen.answers >= Tally::MAX_COUNT / 4, "it is believed that much");
    // What the other one sees is told all the same.
    let tally = Tally { answers: 300, errors: 300, drift: 0.5, ..Tally::default() };
    let told = Evidence { serial, version: 1, life: 1, tally, gave_up: false };
    let letter = verified(&node("d2"), 0, 0, Body::Evidence(told));
    site.letters.push_back((node("edge"), Input::Message(letter)));
    site.post();
    let seen = site.view().rollout.seen;
    assert_eq!((seen.errors, seen.drift), (300, 0.5));
    for _ in 0..3 {
        site.ask(&node("d2"), Ask::Checks(super::super::Check::Failed));
    }
    site.post();
    assert_eq!(site.view().versions[0].barred.as_deref(), Some("failed_checks"));
}

#[test]
fn an_edge_may_decide_today_and_its_cloud_tomorrow_and_devices_go_by_the_last_of_them() {
    let mut site = Site::decided(By::Cloud, None);
    site.rolls_out(false);
    assert_eq!(site.serve(), [1; 3]);
    let handed = |site: &mut Site| {
        for owner in site.by.owners() {
            site.ask(&node(owner), Ask::HandsDown(3));
        }
    };
    handed(&mut site);
    // The edge decides for its site: nothing changes by that, though newer versions are there.
    let as_steward = |site: &mut Site| {
        let edge = node("edge");
        let disk = site.place(&edge).disk.clone();
        let (rollouts, slots) = Place::built(By::Edge, &edge, &disk);
        (site.place(&edge).rollouts, site.place(&edge).slots) = (rollouts, slots);
        let (now, place) = (site.now(), site.place(&edge));
        let effects = place.rollouts.behind(now, &mut place.slots, true, Vec::new());
        site.carry_out(&edge, effects);
        site.post();
    };
    let plan_of_its_own = |site: &mut Site| {
        let edge = node("edge");
        let mut own = plan(3);
        own.stages.drain(..2);
        site.ask(&edge, Ask::HandsDown(3)); // as its relay does when it starts
        for order in [RolloutOrder::Plan(own), RolloutOrder::Start] {
            site.ask(&edge, Ask::Decides(order));
        }
        site.post();
        assert_eq!(site.serve()[..2], [3, 3]);
    };
    let mut last = site.retained[&node("edge")].serial;
    for _ in 0..2 {
        as_steward(&mut site);
        assert_eq!(site.serve(), [1; 3]);
        assert_eq!(site.retained[&node("edge")].stable, 1);
        assert!(site.retained[&node("edge")].serial > last, "and devices have heard it");
        for device in ["d1", "d2"] {
            let heard = site.place(&node(device)).disk[Follower::KEY].clone();
            let told = crate::wire::encode(&site.retained[&node("edge")]).unwrap();
            assert!(heard.windows(told.len()).any(|part| part == told), "{device}");
        }
        // It begins something of its own, which ends when somebody else decides.
        site.place(&node("edge")).events.clear();
        plan_of_its_own(&mut site);
        // And the cloud again, which has nothing new to say: nobody is told anything before it speaks.
        last = site.retained[&node("edge")].serial;
        site.starts(&node("edge"));
        site.post();
        assert!(site.retained[&node("edge")].serial > last);
        assert_eq!(site.serve(), [1; 3]);
        last = site.retained[&node("edge")].serial;
    }
}

#[test]
fn chunks_are_those_of_whoever_assigns_and_what_is_too_large_or_senseless_is_not_taken() {
    let edge = node("edge");
    let told = Assignment {
        model: Name::new("m").unwrap(),
        serial: 1,
        stable: 1,
        stable_adapter: Some(Manifest::of(&adapter(1), 2 * CHUNK_BYTES)),
        candidate: None,
    };
    let now = Now { mono: Mono(0), micros: 0, wall: Wall(0) };
    let hear = |place: &mut Place, told: &Assignment| {
        let letter = verified(&node("cloud"), 0, 0, Body::Assignment(told.clone()));
        place.rollouts.takes(now, &mut place.slots, Input::Message(letter)).unwrap()
    };
    let mut place = Place::new(By::Cloud, edge.as_str());
    place.rollouts.behind(now, &mut place.slots, false, vec![handed_down(1)]);
    hear(&mut place, &told);
    let wanted = Wanted::Chunks { sha256: Digest::of(&adapter(1)), indices: vec![0] };
    let get = verified(&node("d1"), 0, 0, Body::Get(Get { wanted }));
    let given = place.rollouts.takes(now, &mut place.slots, Input::Message(get)).unwrap();
    let [Effect::SendChunks { chunk_bytes, .. }] = given[..] else { panic!("{given:?}") };
    assert_eq!(chunk_bytes, 2 * CHUNK_BYTES);
    let foreign = Some(Manifest::of(&adapter(5), CHUNK_BYTES));
    let untrained = Assignment { serial: 2, stable: 0, stable_adapter: foreign, ..told.clone() };
    assert_eq!(hear(&mut place, &untrained), [Effect::Count("foreign_adapter")]);
    let older = Candidate {
        version: 1,
        adapter: Manifest::of(&adapter(5), CHUNK_BYTES),
        serve: [node("d1")].into(),
        shadow: BTreeSet::new(),
        slow_ms: 0,
    };
    let senseless = Assignment { serial: 2, candidate: Some(older.clone()), ..told.clone() };
    assert_eq!(hear(&mut place, &senseless), [Effect::Count("senseless_assignment")]);
    // A site with very many devices.
    let members: BTreeSet<NodeId> = (0..4_000).map(|at| node(&format!("device-{at}"))).collect();
    let config = DeputyConfig {
        steward: node("cloud"),
        model: told.model.clone(),
        members: members.clone(),
        untrained: Manifest::of(&adapter(0), CHUNK_BYTES),
        chunk_bytes: CHUNK_BYTES,
    };
    let mut deputy = Deputy::new(config, &[]).unwrap();
    let all = Candidate { version: 2, serve: members, ..older };
    let large = Assignment { candidate: Some(all), ..told.clone() };
    let large =
        Assignment { stable_adapter: Some(Manifest::of(&vec![7; 4_096 * 1_000], 4_096)), ..large };
    assert_eq!(deputy.assigned(now, &large), [Effect::Count("assignment_too_large")]);
    assert!(deputy.assigned(now, &told).len() > 1);
}

#[test]
fn what_others_say_to_a_deputy_or_for_other_sites_counts_nowhere() {
    let mut site = Site::decided(By::Cloud, None);
    site.ask(&node("cloud"), Ask::HandsDown(1));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Plan(plan(1))));
    site.ask(&node("cloud"), Ask::Decides(RolloutOrder::Start));
    site.post();
    let serial = site.view().rollout.serial;
    let tally = Tally { answers: 4_000, ..Tally::default() };
    let evidence = |tally, nodes| {
        let gave_up = nodes == 2;
        SiteEvidence { serial, version: 1, tally, nodes, gave_up }
    };
    let mut says = |from: &str, to: &str, body: Body| {
        let letter = Input::Message(verified(&node(from), 0, 0, body));
        let now = site.now();
        let place = site.place(&node(to));
        place.rollouts.takes(now, &mut place.slots, letter).unwrap()
    };
    // The shadow is d3 alone, so its edge is the only one with something to say, and for one device.
    let other = says("edge", "cloud", Body::SiteEvidence(evidence(tally, 2)));
    assert_eq!(other, [Effect::Count("no_evidence")]);
    let senseless = Tally { errors: 4_001, ..tally };
    let told = says("edge2", "cloud", Body::SiteEvidence(evidence(senseless, 1)));
    assert_eq!(told, [Effect::Count("no_evidence")]);
    // A device isn't heard over its edge's head, nor at the wrong edge, nor a stranger's word.
    let mine = Evidence { serial, version: 1, life: 1, tally, gave_up: true };
    for (from, to) in [("d3", "cloud"), ("d3", "edge"), ("d1", "edge2")] {
        let told = says(from, to, Body::Evidence(mine.clone()));
        assert!(matches!(told[..], [Effect::Count(_)]), "{from} to {to}: {told:?}");
    }
    let told = says("edge2", "edge", Body::SiteEvidence(evidence(tally, 1)));
    assert_eq!(told, [Effect::Count("no_steward")]);
    let assignment = site.retained[&node("cloud")].clone();
    let (now, edge) = (site.now(), site.place(&node("edge")));
    let stranger = verified(&node("edge2"), 0, 0, Body::Assignment(assignment));
    let told = edge.rollouts.takes(now, &mut edge.slots, Input::Message(stranger)).unwrap();
    assert_eq!(told, [Effect::Count("assignment_not_followed")]);
    assert_eq!(site.view().rollout.version, Some(1));
    assert_eq!(site.view().rollout.seen, Tally::default());
}

#[test]
fn a_version_knows_the_highest_risk_that_was_measured_and_none_where_somebody_did_not() {
    let risk_of = |risks: [Option<f32>; 2]| {
        let mut place = Place::new(By::Cloud, "cloud");
        let inputs = risks.into_iter().zip(["edge", "edge2"]).map(|(risk, sender)| CombineInput {
            sender: node(sender),
            update: UpdateId([9; 16]),
            num_examples: 100,
            num_devices: 2,
            steps: 4,
            version: 0,
            staleness: 0,
            failed: 0,
            loss_first: 1.0,
            loss_last: 0.5,
            risk,
            delta: None,
            back: None,
            stacked: true,
            whole: false,
            base: Digest([7; 32]),
            class_logits: None,
            knowledge: None,
        });
        let job = CombineJob {
            offer: Digest([6; 32]),
            global: Digest([7; 32]),
            plan: round_plan(Coding::F32),
            class_targets: None,
            inputs: inputs.collect(),
            relay: false,
            norms: Vec::new(),
            offered: None,
            bounds: ShareBounds::default(),
        };
        let now = Now { mono: Mono(0), micros: 0, wall: Wall(0) };
        let effects = vec![Effect::Job(Job::Combine(Box::new(job))), handed_down(1)];
        place.rollouts.behind(now, &mut place.slots, false, effects);
        place.rollouts.view().unwrap().versions[0].clone()
    };
    let known = risk_of([Some(0.75), Some(0.5)]);
    assert_eq!((known.risk, known.parent, known.num_examples), (Some(0.75), 0, 200));
    assert_eq!(known.contributors, [node("edge"), node("edge2")]);
    assert_eq!(risk_of([Some(0.75), None]).risk, None);
}
