//! A scenario: who is there, what they do, what goes wrong. Written in TOML, `config/scenarios/` has some.
//!
//! Every key has a default but `what` and the tiers, and an unknown key is refused. What a run does is a pure function of a
//! scenario and a seed.

use serde::Deserialize;

use crate::wire::Coding;

/// All that decides a run, but its seed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name: that of its file.
    #[serde(skip)]
    pub name: String,
    /// What it shows, in a line.
    pub what: String,
    /// How messages are checked.
    #[serde(default)]
    pub trust: TrustKind,
    /// Whether the nodes' ledgers are kept; else their entries are looked at and dropped, which saves memory.
    #[serde(default = "yes")]
    pub ledgers: bool,
    /// First and last seed of a run of many, both taken.
    #[serde(default = "one_seed")]
    pub seeds: [u64; 2],
    /// Who is there.
    pub tiers: Tiers,
    /// What they do.
    #[serde(default)]
    pub rounds: Rounds,
    /// What they learn.
    #[serde(default)]
    pub model: Model,
    /// How long things take when nothing goes wrong.
    #[serde(default)]
    pub pace: Pace,
    /// What goes wrong by chance.
    #[serde(default)]
    pub faults: Faults,
    /// Devices that come and go.
    #[serde(default)]
    pub churn: Churn,
    /// Sites that are cut off, one at a time.
    #[serde(default)]
    pub partitions: Partitions,
    /// Brokers that forget everything.
    #[serde(default)]
    pub amnesia: Amnesia,
    /// Nodes that are away for a while, by plan.
    #[serde(default)]
    pub outages: Vec<Outage>,
    /// The cloud has a standby, `cloud-2`, if this is there.
    #[serde(default)]
    pub standby: Option<Standby>,
    /// All edges are at one site, and an edge's devices go to the next one while theirs is away, if this is there.
    #[serde(default)]
    pub second_edges: Option<SecondEdges>,
    /// Nodes that are stopped for a while, by plan.
    #[serde(default)]
    pub pauses: Vec<Pause>,
}

/// How messages are checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustKind {
    /// Each is sealed with an Ed25519 key and opened as a node opens it.
    #[default]
    Signed,
    /// Who sent it is taken for granted, for thousands of nodes. Forgeries carry a mark, and the gate refuses it.
    Assumed,
}

/// Who is there: one cloud, and below it what is told here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiers {
    /// Edges, 1 to 1000.
    pub edges: u32,
    /// Devices of each edge, 1 to 1000.
    pub devices: u32,
}

/// What they do.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounds {
    /// Versions that the cloud makes.
    pub count: u64,
    /// Part of the members that is enough once the deadline has passed.
    pub quorum: f64,
    /// A round closes this long after it opened, if the quorum is there.
    pub deadline_ms: u64,
    /// An edge's own round ends so much earlier.
    pub relay_margin_ms: u64,
    /// An open round's offer is published again this often.
    pub republish_ms: u64,
    /// Between two rounds.
    pub pause_ms: u64,
    /// A member that heard nothing for so long asks.
    pub resync_ms: u64,
    /// Late work counts up to so many versions behind.
    pub late_max_staleness: u64,
}

/// What they learn: nothing is trained, a device moves each value a little, by its name and the offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Columns of the adapter's one pair of LoRA factors; 0: three values without factors.
    pub width: usize,
    /// How deltas travel.
    pub coding: Coding,
}

/// How long things take when nothing goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// Longest way of a message.
    pub delay_ms: u64,
    /// Longest work for a round.
    pub work_ms: u64,
    /// The virtual time at which a run that hasn't come to rest is a violation.
    pub end_ms: u64,
}

/// Chances of faults. They end when the last version is there, or at `until_ms`, so that the network can heal.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// A message is lost.
    pub loss: f64,
    /// A message comes twice.
    pub repeat: f64,
    /// Longest way of a message meanwhile; 0: as always.
    pub delay_ms: u64,
    /// Messages of one sender may overtake each other.
    pub reorder: bool,
    /// A node dies in a step that changes its store.
    pub crash: f64,
    /// Somebody without a key sends a changed copy of a message.
    pub forged: f64,
    /// End of all faults; 0: when the last version is there.
    pub until_ms: u64,
}

/// Devices that come and go.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Churn {
    /// A device may go once in so long; 0: none does.
    pub every_ms: u64,
    /// Chance that it goes then.
    pub share: f64,
    /// Shortest and longest time that it is away.
    pub away_ms: [u64; 2],
    /// Part of those that go which lose all that isn't in their store.
    pub crash: f64,
}

/// Sites that are cut off from the cloud, one at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Partitions {
    /// A site is cut off for so long, and then none is; 0: never.
    pub each_ms: u64,
}

/// Brokers that forget what they keep and what is on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Amnesia {
    /// One of the brokers does once in so long; 0: never.
    pub every_ms: u64,
}

/// A node that is away for a while, by plan.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// `cloud`, `edge-2` or `device-2-7`.
    pub node: String,
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// It also loses all that isn't in its store.
    #[serde(default)]
    pub crash: bool,
}

/// Where devices go while their edge is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecondEdges {
    /// An edge is away that was silent for so long. More than twice `rounds.resync_ms`.
    pub after_ms: u64,
}

/// A second cloud that takes over when the first is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Standby {
    /// One of the two counts as gone when nothing was heard of it for so long.
    pub lease_ms: u64,
    /// From when to when the two don't hear each other, while edges hear both.
    pub apart_ms: [u64; 2],
}

/// A node that is stopped for a while and goes on with all that came meanwhile, as by `SIGSTOP` and `SIGCONT`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// `cloud`, `cloud-2`, `edge-2` or `device-2-7`.
    pub node: String,
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
}

/// Why a scenario can't be run. Names the file, the key and what would fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScenarioError {
    /// No TOML, an unknown key, or a value of another kind.
    #[error("{file}: {what}")]
    Unreadable {
        /// The file.
        file: String,
        /// What is wrong, with its line.
        what: String,
    },
    /// A value that makes no sense.
    #[error("{file}: {key} is {actual}, it has to be {expected}")]
    OutOfRange {
        /// The file.
        file: String,
        /// The key, with its table.
        key: &'static str,
        /// What would fit.
        expected: String,
        /// What stands there.
        actual: String,
    },
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            count: 3,
            quorum: 0.6,
            deadline_ms: 20_000,
            relay_margin_ms: 5_000,
            republish_ms: 3_000,
            pause_ms: 500,
            resync_ms: 5_000,
            late_max_staleness: 10,
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self { width: 8, coding: Coding::Int8 }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { delay_ms: 20, work_ms: 450, end_ms: 900_000 }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            loss: 0.0,
            repeat: 0.0,
            delay_ms: 0,
            reorder: true,
            crash: 0.0,
            forged: 0.0,
            until_ms: 0,
        }
    }
}

impl Default for Churn {
    fn default() -> Self {
        Self { every_ms: 0, share: 0.0, away_ms: [1_000, 10_000], crash: 0.5 }
    }
}

impl Default for SecondEdges {
    fn default() -> Self {
        Self { after_ms: 15_000 }
    }
}

impl Default for Standby {
    fn default() -> Self {
        Self { lease_ms: 8_000, apart_ms: [0, 0] }
    }
}

impl Scenario {
    /// What the standby is called.
    pub(crate) const STANDBY: &'static str = "cloud-2";
    /// Most nodes whose messages are signed.
    pub const MAX_SIGNED: u32 = 500;
    const MAX_MS: u64 = 1_000_000_000;

    /// Reads a scenario; `name` is what the run is called, `file` what errors call it.
    ///
    /// # Errors
    /// [`ScenarioError`] for the first thing that is wrong.
    #[cfg(feature = "sim")]
    pub fn from_toml(name: &str, file: &str, text: &str) -> Result<Self, ScenarioError> {
        let mut scenario: Self = toml::from_str(text).map_err(|error| {
            let what = error.to_string().trim_end().to_owned();
            ScenarioError::Unreadable { file: file.to_owned(), what }
        })?;
        name.clone_into(&mut scenario.name);
        scenario.check(file)?;
        Ok(scenario)
    }

    /// Nodes of all tiers.
    pub fn num_nodes(&self) -> u32 {
        1 + u32::from(self.standby.is_some()) + self.tiers.edges + self.num_devices()
    }

    /// Devices of all edges.
    pub fn num_devices(&self) -> u32 {
        self.tiers.edges.saturating_mul(self.tiers.devices)
    }

    /// Checks what the types don't.
    ///
    /// # Errors
    /// [`ScenarioError::OutOfRange`] for the first value that makes no sense.
    pub fn check(&self, file: &str) -> Result<(), ScenarioError> {
        let wrong = |key, expected: &str, actual: String| {
            let (file, expected) = (file.to_owned(), expected.to_owned());
            Err(ScenarioError::OutOfRange { file, key, expected, actual })
        };
        let (tiers, rounds, faults, churn) = (self.tiers, self.rounds, self.faults, self.churn);
        for (key, value) in [("tiers.edges", tiers.edges), ("tiers.devices", tiers.devices)] {
            if !(1..=1_000).contains(&value) {
                return wrong(key, "1 to 1000", value.to_string());
            }
        }
        if self.num_nodes() > 100_000 {
            let actual = format!("{} x {}", tiers.edges, tiers.devices);
            return wrong("tiers", "at most 100000 nodes", actual);
        }
        if self.trust == TrustKind::Signed && self.num_nodes() > Self::MAX_SIGNED {
            let expected = format!("\"assumed\" for more than {} nodes", Self::MAX_SIGNED);
            return wrong("trust", &expected, "\"signed\"".to_owned());
        }
        if self.seeds[0] > self.seeds[1] {
            return wrong("seeds", "[first, last]", format!("{:?}", self.seeds));
        }
        if !(1..=100_000).contains(&rounds.count) {
            return wrong("rounds.count", "1 to 100000", rounds.count.to_string());
        }
        if !(rounds.quorum > 0.0 && rounds.quorum <= 1.0) {
            return wrong("rounds.quorum", "above 0, at most 1", rounds.quorum.to_string());
        }
        if rounds.late_max_staleness > 10 {
            let actual = rounds.late_max_staleness.to_string();
            return wrong("rounds.late_max_staleness", "0 to 10", actual);
        }
        if self.model.width > 100_000 {
            return wrong("model.width", "0 to 100000", self.model.width.to_string());
        }
        for (key, value) in [
            ("faults.loss", faults.loss),
            ("faults.repeat", faults.repeat),
            ("faults.crash", faults.crash),
            ("faults.forged", faults.forged),
        ] {
            if !(0.0..=0.9).contains(&value) {
                return wrong(key, "a chance from 0 to 0.9", value.to_string());
            }
        }
        for (key, value) in [("churn.share", churn.share), ("churn.crash", churn.crash)] {
            if !(0.0..=1.0).contains(&value) {
                return wrong(key, "a part from 0 to 1", value.to_string());
            }
        }
        if churn.away_ms[0] > churn.away_ms[1] {
            return wrong("churn.away_ms", "[shortest, longest]", format!("{:?}", churn.away_ms));
        }
        for (key, value, least) in self.times() {
            if !(least..=Self::MAX_MS).contains(&value) {
                let expected = format!("{least} to {} milliseconds", Self::MAX_MS);
                return wrong(key, &expected, value.to_string());
            }
        }
        let outages = self.outages.iter().map(|outage| {
            ("outages", "outages.node", &outage.node, outage.from_ms, outage.until_ms)
        });
        let pauses = self
            .pauses
            .iter()
            .map(|pause| ("pauses", "pauses.node", &pause.node, pause.from_ms, pause.until_ms));
        for (key, node_key, node, from_ms, until_ms) in outages.chain(pauses) {
            if from_ms >= until_ms || until_ms > Self::MAX_MS {
                return wrong(key, "from_ms before until_ms", format!("{from_ms} to {until_ms}"));
            }
            if !self.has_node(node) {
                let expected = "cloud, edge-E or device-E-D of the tiers, counted from 1, or cloud-2 with [standby]";
                return wrong(node_key, expected, format!("{node:?}"));
            }
        }
        if self.second_edges.is_some() && tiers.edges < 2 {
            return wrong("second_edges", "tiers.edges of at least 2", tiers.edges.to_string());
        }
        let apart = self.standby.unwrap_or_default().apart_ms;
        if apart[0] > apart[1] || apart[1] > Self::MAX_MS {
            return wrong("standby.apart_ms", "[from, until]", format!("{apart:?}"));
        }
        Ok(())
    }

    fn times(&self) -> [(&'static str, u64, u64); 16] {
        let (rounds, pace) = (self.rounds, self.pace);
        [
            ("rounds.deadline_ms", rounds.deadline_ms, 1),
            ("rounds.relay_margin_ms", rounds.relay_margin_ms, 0),
            ("rounds.republish_ms", rounds.republish_ms, 1),
            ("rounds.pause_ms", rounds.pause_ms, 0),
            ("rounds.resync_ms", rounds.resync_ms, 1),
            ("pace.delay_ms", pace.delay_ms, 1),
            ("pace.work_ms", pace.work_ms, 1),
            ("pace.end_ms", pace.end_ms, 1),
            ("faults.delay_ms", self.faults.delay_ms, 0),
            ("faults.until_ms", self.faults.until_ms, 0),
            ("churn.every_ms", self.churn.every_ms, 0),
            ("churn.away_ms", self.churn.away_ms[1], 1),
            ("partitions.each_ms", self.partitions.each_ms, 0),
            ("amnesia.every_ms", self.amnesia.every_ms, 0),
            ("standby.lease_ms", self.standby.unwrap_or_default().lease_ms, 4),
            ("second_edges.after_ms", self.second_edges.unwrap_or_default().after_ms, 1),
        ]
    }

    fn has_node(&self, name: &str) -> bool {
        let within = |text: &str, most: u32| {
            let number = text.parse::<u32>().ok().filter(|n| n.to_string() == text);
            number.is_some_and(|n| (1..=most).contains(&n))
        };
        let (edges, devices) = (self.tiers.edges, self.tiers.devices);
        if let Some(edge) = name.strip_prefix("edge-") {
            return within(edge, edges);
        }
        let device = name.strip_prefix("device-").and_then(|rest| rest.split_once('-'));
        let is_root = name == "cloud" || self.standby.is_some() && name == Self::STANDBY;
        device.map_or(is_root, |(e, d)| within(e, edges) && within(d, devices))
    }
}

fn yes() -> bool {
    true
}

fn one_seed() -> [u64; 2] {
    [1, 1]
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    const LEAST: &str = "what = \"w\"\n[tiers]\nedges = 2\ndevices = 3\n";

    fn read(text: &str) -> Result<Scenario, String> {
        Scenario::from_toml("s", "s.toml", text).map_err(|error| error.to_string())
    }

    #[test]
    fn little_has_to_be_said() {
        let scenario = read(LEAST).unwrap();
        assert_eq!((scenario.num_devices(), scenario.num_nodes()), (6, 9));
        assert_eq!((scenario.name.as_str(), scenario.trust), ("s", TrustKind::Signed));
    }

    #[test]
    fn a_standby_is_there_when_it_is_named() {
        let scenario = read(&format!(
            "{LEAST}[standby]\n[[pauses]]\nnode = \"cloud-2\"\nfrom_ms = 1\nuntil_ms = 2"
        ));
        let scenario = scenario.unwrap();
        assert_eq!((scenario.num_nodes(), scenario.standby), (10, Some(Standby::default())));
    }

    #[test]
    fn mistakes_name_the_file_the_key_and_what_would_fit() {
        for (text, words) in [
            ("[tiers]\nedges = 2", &["s.toml", "line"][..]),
            (&format!("{LEAST}flights = 1"), &["flights", "expected"]),
            (&format!("{LEAST}[faults]\nlos = 0.1"), &["los", "loss", "line 6"]),
            (&format!("{LEAST}[faults]\nloss = 1.5"), &["faults.loss is 1.5", "0 to 0.9"]),
            (&format!("{LEAST}[faults]\nloss = \"much\""), &["line 6"]),
            (&format!("trust = \"blind\"\n{LEAST}"), &["blind", "signed", "assumed"]),
            (&LEAST.replace('3', "900"), &["trust", "\"assumed\" for more than 500 nodes"]),
            (&LEAST.replace('2', "0"), &["tiers.edges is 0", "1 to 1000"]),
            (&format!("seeds = [3, 1]\n{LEAST}"), &["seeds is [3, 1]"]),
            (&format!("{LEAST}[rounds]\nquorum = nan"), &["rounds.quorum is NaN"]),
            (&format!("{LEAST}[pace]\ndelay_ms = 0"), &["pace.delay_ms is 0"]),
            (
                &format!("{LEAST}[[outages]]\nnode = \"edge-3\"\nfrom_ms = 1\nuntil_ms = 2"),
                &["outages.node is \"edge-3\"", "edge-E"],
            ),
            (
                &format!("{LEAST}[[pauses]]\nnode = \"cloud-2\"\nfrom_ms = 1\nuntil_ms = 2"),
                &["pauses.node is \"cloud-2\"", "with [standby]"],
            ),
            (&format!("{LEAST}[standby]\nlease_ms = 0"), &["standby.lease_ms is 0"]),
            (&format!("{LEAST}[standby]\napart_ms = [2, 1]"), &["standby.apart_ms is [2, 1]"]),
            (
                &format!("{LEAST}[[outages]]\nnode = \"cloud\"\nfrom_ms = 2\nuntil_ms = 2"),
                &["from_ms before until_ms"],
            ),
        ] {
            let error = read(text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word:?} isn't in {error:?}");
            }
        }
    }
}
