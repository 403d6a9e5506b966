//! What is planned: which version goes where in which order, under which gates. Fixed before it starts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::gate::{Gate, Rule};
use super::registry::VersionRecord;
use crate::ids::{Digest, Name, NodeId, Version};
use crate::time::Wall;
use crate::wire::encode;

/// How far a version is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It answers beside the version before, and nobody sees it.
    Shadow,
    /// One line.
    Canary,
    /// Some lines.
    Area,
    /// A site.
    Site,
    /// Everywhere.
    Federation,
}

impl Stage {
    /// The stage of this word.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [Self::Shadow, Self::Canary, Self::Area, Self::Site, Self::Federation];
        all.into_iter().find(|stage| stage.as_str() == word)
    }

    /// A short word for the ledger and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::Area => "area",
            Self::Site => "site",
            Self::Federation => "federation",
        }
    }
}

/// One stage of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// Which.
    pub stage: Stage,
    /// The nodes that serve the new version in it, or answer unseen.
    pub nodes: BTreeSet<NodeId>,
    /// People who have to approve before it begins.
    #[serde(default)]
    pub approvals: u32,
    /// What has to be seen before the next one begins.
    pub gate: Gate,
}

/// A rollout of one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model.
    pub model: Name,
    /// The version.
    pub version: Version,
    /// The stages in their order.
    pub stages: Vec<StagePlan>,
    /// A stage that is passed leads to the next by itself; without it somebody has to promote it.
    pub automatic: bool,
}

/// A time in which nothing goes forward. Halts do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze {
    /// From here on.
    pub from: Wall,
    /// Up to here.
    pub until: Wall,
}

impl Freeze {
    pub(super) fn holds(&self, now: Wall) -> bool {
        self.from <= now && now < self.until
    }
}

/// What a rollout's owner knows before any plan.
#[derive(Debug, Clone)]
pub struct RolloutConfig {
    /// The model.
    pub model: Name,
    /// Its base.
    pub base: Digest,
    /// What is served when rollouts begin, where nothing is on disk yet.
    pub served: Version,
    /// How far its owner's word goes: the last stage of each plan.
    pub widest: Stage,
    /// Nodes that serve it.
    pub members: BTreeSet<NodeId>,
    /// Edges that speak for their devices; the others speak for themselves.
    pub sites: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// People who may approve.
    pub approvers: BTreeSet<NodeId>,
    /// Who proposed a plan can't approve it.
    pub four_eyes: bool,
    /// When nothing goes forward.
    pub freezes: Vec<Freeze>,
}

impl RolloutConfig {
    /// How many say what these nodes see.
    pub(super) fn speakers(&self, nodes: &BTreeSet<NodeId>) -> u32 {
        let edges = self.sites.values().filter(|devices| !devices.is_disjoint(nodes)).count();
        let in_sites = |node: &&NodeId| self.sites.values().any(|devices| devices.contains(*node));
        let others = nodes.iter().filter(|node| !in_sites(node)).count();
        u32::try_from(edges + others).unwrap_or(u32::MAX)
    }

    /// The nodes that one speaks for when it says what was seen: none of those whose edge speaks for them.
    pub(super) fn speaks_for(&self, node: &NodeId) -> BTreeSet<NodeId> {
        match self.sites.get(node) {
            Some(devices) => devices.clone(),
            None if self.sites.values().any(|devices| devices.contains(node)) => BTreeSet::new(),
            None => [node.clone()].into(),
        }
    }
}

/// Why a plan isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It can't be read.
    #[error("stages: {0}")]
    Malformed(String),
    /// Its adapter isn't here any more.
    #[error("the adapter of version {0} isn't kept any more: plan one of the newest versions")]
    NotKept(Version),
    /// Who serves what wouldn't fit into a message.
    #[error("its assignments take up to {actual} bytes, a message has {cap}: name fewer nodes")]
    TooLarge {
        /// Most bytes.
        cap: usize,
        /// What it would take.
        actual: usize,
    },
    /// Nobody knows it here.
    #[error("version {0} isn't known here")]
    Unknown(Version),
    /// No signature stands behind it.
    #[error("version {0} isn't signed by its owner")]
    Unsigned(Version),
    /// It was taken back.
    #[error("version {0} mustn't be served any more: {1}")]
    Barred(Version, String),
    /// It is of another model or base.
    #[error("version {0} is of another model or base")]
    Foreign(Version),
    /// It is served already, or older than what is.
    #[error("version {version} isn't newer than {stable}, which is served: rollback goes back")]
    NotNewer {
        /// The version.
        version: Version,
        /// What is served.
        stable: Version,
    },
    /// Another rollout isn't over.
    #[error("the rollout of version {0} isn't over: halt it first")]
    Overlaps(Version),
    /// The stages don't make a way.
    #[error("stages: {0}")]
    Stages(&'static str),
    /// The last stage leaves somebody out.
    #[error(
        "stages: the last one, {stage}, has all nodes that serve the model; {missing} is missing"
    )]
    NotAll {
        /// The last stage.
        stage: &'static str,
        /// One that isn't in it.
        missing: NodeId,
    },
    /// A gate that is none.
    #[error("the gate of {stage}: {problem}")]
    Gate {
        /// The stage.
        stage: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// A rule that can't be passed.
    #[error(
        "the gate of {stage} can't be passed: with what is expected there, {rule} stays open even if nothing goes \
         wrong"
    )]
    CannotBeMet {
        /// The stage.
        stage: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// Too few people could approve.
    #[error("{stage} wants {wanted} approvals, and {can} people could give one")]
    Approvals {
        /// The stage.
        stage: &'static str,
        /// How many it wants.
        wanted: u32,
        /// How many could.
        can: usize,
    },
}

impl PlanError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed_plan",
            Self::NotKept(_) => "version_not_kept",
            Self::TooLarge { .. } => "plan_too_large",
            Self::Unknown(_) => "version_unknown",
            Self::Unsigned(_) => "version_unsigned",
            Self::Barred(..) => "version_barred",
            Self::Foreign(_) => "version_foreign",
            Self::NotNewer { .. } => "version_not_newer",
            Self::Overlaps(_) => "rollout_overlaps",
            Self::Stages(_) | Self::NotAll { .. } => "stages_make_no_way",
            Self::Gate { .. } => "gate_is_none",
            Self::CannotBeMet { .. } => "gate_cannot_be_met",
            Self::Approvals { .. } => "too_few_approvers",
        }
    }
}

impl Plan {
    /// Reads the stages of a plan that came as JSON: a list of objects with the fields of [`StagePlan`].
    ///
    /// # Errors
    /// [`PlanError::Malformed`] with the field.
    pub fn read(
        model: Name,
        version: Version,
        automatic: bool,
        stages: &serde_json::Value,
    ) -> Result<Self, PlanError> {
        let count = stages.as_array().map_or(0, Vec::len);
        if !(1..=5).contains(&count) {
            return Err(PlanError::Malformed("1 to 5 of them, as a list".to_owned()));
        }
        let stages = Vec::<StagePlan>::deserialize(stages)
            .map_err(|error| PlanError::Malformed(error.to_string()))?;
        Ok(Self { model, version, stages, automatic })
    }

    /// Digest of its encoding: what approvals name. A plan that is checked always encodes.
    pub fn digest(&self) -> Digest {
        Digest::of(&encode(self).unwrap_or_default())
    }

    pub(super) fn stage(&self, at: usize) -> Option<&StagePlan> {
        self.stages.get(at)
    }

    /// Everything that can be known before it starts.
    pub(super) fn check(
        &self,
        by: &NodeId,
        config: &RolloutConfig,
        record: Option<&VersionRecord>,
        stable: Version,
    ) -> Result<(), PlanError> {
        let record = record.ok_or(PlanError::Unknown(self.version))?;
        let foreign = record.model != config.model || record.base != config.base;
        if foreign || self.model != config.model {
            return Err(PlanError::Foreign(self.version));
        }
        if !record.signed {
            return Err(PlanError::Unsigned(self.version));
        }
        if let Some(reason) = &record.barred {
            return Err(PlanError::Barred(self.version, reason.as_str().to_owned()));
        }
        if self.version <= stable {
            return Err(PlanError::NotNewer { version: self.version, stable });
        }
        self.check_way(config)?;
        for stage in &self.stages {
            stage.check(by, config)?;
            stage.check_record(record)?;
        }
        encode(self).map(drop).map_err(|error| PlanError::Malformed(error.to_string()))
    }

    /// What can be known without the version: the way, the gates, the people.
    ///
    /// # Errors
    /// [`PlanError`], the first one.
    pub fn check_beforehand(&self, by: &NodeId, config: &RolloutConfig) -> Result<(), PlanError> {
        if self.model != config.model {
            return Err(PlanError::Foreign(self.version));
        }
        self.check_way(config)?;
        self.stages.iter().try_for_each(|stage| stage.check(by, config))
    }

    fn check_way(&self, config: &RolloutConfig) -> Result<(), PlanError> {
        let fail = |problem| Err(PlanError::Stages(problem));
        for pair in self.stages.windows(2) {
            let [first, second] = pair else { continue };
            if second.stage <= first.stage {
                return fail(
                    "each goes further than the one before: shadow, canary, area, site, federation",
                );
            }
            if first.stage != Stage::Shadow && !second.nodes.is_superset(&first.nodes) {
                return fail("who serves it in one stage serves it in the next");
            }
        }
        if self.stages.iter().any(|stage| stage.nodes.is_empty()) {
            return fail("each has a node");
        }
        if self.stages.iter().any(|stage| !stage.nodes.is_subset(&config.members)) {
            return fail("their nodes are ones that serve this model");
        }
        if let Some(last) = self.stages.last().filter(|last| last.stage == config.widest)
            && let Some(missing) = config.members.difference(&last.nodes).next()
        {
            let (stage, missing) = (last.stage.as_str(), missing.clone());
            return Err(PlanError::NotAll { stage, missing });
        }
        match self.stages.last() {
            Some(last) if last.stage == config.widest && last.nodes == config.members => {
                let wide = |stage: &&StagePlan| {
                    stage.stage != Stage::Shadow && stage.nodes == config.members
                };
                let mut wide = self.stages.iter().filter(wide);
                if config.four_eyes && wide.any(|stage| stage.approvals == 0) {
                    return fail(
                        "where four eyes are asked for, each one in which all nodes serve it wants an approval",
                    );
                }
                Ok(())
            }
            _ => fail(match config.widest {
                Stage::Federation => "the last one is the federation, with all nodes",
                _ => "the last one is the site, with all nodes that serve the model there",
            }),
        }
    }
}

impl StagePlan {
    fn check(&self, by: &NodeId, config: &RolloutConfig) -> Result<(), PlanError> {
        let stage = self.stage.as_str();
        self.gate.check().map_err(|problem| PlanError::Gate { stage, problem })?;
        let unmet = |rule: Rule| PlanError::CannotBeMet { stage, rule: rule.as_str() };
        if self.gate.max_disagreement.is_some() && self.stage != Stage::Shadow {
            let problem = "only in the shadow both versions answer the same input";
            return Err(PlanError::Gate { stage, problem });
        }
        if self.gate.max_slow.is_some() && self.stage == Stage::Shadow {
            let problem =
                "nobody waits for an answer in the shadow: how slow it is shows at the canary";
            return Err(PlanError::Gate { stage, problem });
        }
        if self.gate.least_nodes > u64::try_from(self.nodes.len()).unwrap_or(u64::MAX) {
            return Err(unmet(Rule::Nodes));
        }
        if let Some(rule) = self.gate.cannot_be_met() {
            return Err(unmet(rule));
        }
        let others = config.approvers.iter().filter(|one| !config.four_eyes || *one != by);
        let (wanted, can) = (self.approvals, others.count());
        if usize::try_from(wanted).unwrap_or(usize::MAX) > can {
            return Err(PlanError::Approvals { stage, wanted, can });
        }
        Ok(())
    }

    fn check_record(&self, record: &VersionRecord) -> Result<(), PlanError> {
        let known = |most: f64| record.risk.is_some_and(|risk| risk <= most);
        if self.gate.max_risk.is_none_or(known) {
            return Ok(());
        }
        let (stage, rule) = (self.stage.as_str(), Rule::Risk.as_str());
        Err(PlanError::CannotBeMet { stage, rule })
    }
}
