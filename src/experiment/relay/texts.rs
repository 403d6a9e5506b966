//! Work orders instead of recordings: which system of the machine is an order about?
//!
//! ```text
//!   cloud   softmax on the vectors of SmolLM2 (135 M values)     no data
//!   edges   softmax on the vectors of MiniLM (22 M values)       no data
//!   devices softmax on hashed runs of characters                 a machine's orders each
//! ```
//! All share reference texts that SmolLM2 wrote (`models/reference`), and nothing else. Edges and cloud start
//! knowing nothing of the task, so that what they come to they have from the reference texts' labels and from what devices
//! say of those. Machine A has too few orders for its work to leave (66 of 100).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{RelayOptions, RelayReport, Strategy, Subject, run_all};
use crate::data::excavators::MACHINES;
use crate::data::systems::{Labelled, Systems};
use crate::data::texts::read_capped;
use crate::experiment::ExperimentError;
use crate::ids::Digest;
use crate::learn::{
    FeatureMap, HashedRuns, LearnError, Learner, Predictor, ReferenceSet, ReferenceTexts,
    SoftmaxLearner, SoftmaxPredictor, TensorSet, TextFeatures, Windows,
};
use crate::node::{SettingsProblem, distils_of};
use crate::protocol::Distils;
use crate::scada::telegram::ModelMeta;
use crate::settings::Settings;
use crate::torch::{TextVectors, load_adopted, shipped};
use crate::trust::keyring::Role;

/// Settings of the experiment.
pub const SETTINGS: &str = include_str!("../../../config/experiment-relay-texts.toml");

/// The reference texts, beside the cards of the bases.
const REFERENCE: &str = "reference/excavator-orders-1.txt";

/// Machines that take part, and their sites.
const PARTIES: [(&str, &str); 4] = [("B", "north"), ("C", "north"), ("D", "south"), ("E", "south")];

/// What a tier's models see.
struct Tier {
    reference: Arc<ReferenceSet>,
    test: Windows,
    digest: Digest,
    width: usize,
}

/// The orders as each tier sees them, one seed.
struct Orders<'a> {
    settings: &'a Settings,
    tiers: &'a BTreeMap<Role, Tier>,
    own: &'a [Windows],
    names: &'a [String],
    seed: u64,
}

/// Runs all arms with all seeds. Blocks until all is done.
///
/// The cards of the two bases lie in `cards`, and the reference texts; their weights in `models`. With `rehearse` every fifth training order is
/// judged, else the test orders.
///
/// # Errors
/// [`ExperimentError`].
pub fn run(
    options: &RelayOptions,
    settings: &Settings,
    set: &Systems,
    (cards, models): (&Path, &Path),
    rehearse: bool,
    news: &mut dyn FnMut(&str),
) -> Result<RelayReport, ExperimentError> {
    let bytes = read_capped(&cards.join(REFERENCE)).map_err(SettingsProblem::from)?;
    let (digest, pinned) = (Digest::of(&bytes), settings.knowledge.reference_digest.as_deref());
    if pinned.is_some_and(|pinned| pinned != digest.to_string()) {
        return Err(ExperimentError::Learn(LearnError::OutOfRange {
            what: "digest of the reference texts",
            expected: pinned.unwrap_or_default().to_owned(),
            actual: digest.to_string(),
        }));
    }
    let reference = ReferenceTexts::parse(&bytes)?;
    if reference.classes != set.names {
        return Err(ExperimentError::Learn(LearnError::OutOfRange {
            what: "classes of the reference texts",
            expected: set.names.join(", "),
            actual: reference.classes.join(", "),
        }));
    }
    let kept = |at: usize| rehearse && at % 5 == 4;
    let train = set.train.iter().enumerate();
    let (back, learned): (Vec<_>, Vec<_>) = train.partition(|(at, _)| kept(*at));
    let test: Vec<&Labelled> = if rehearse {
        back.into_iter().map(|(_, order)| order).collect()
    } else {
        set.test.iter().collect()
    };
    let mut tiers = BTreeMap::new();
    for (role, card) in [
        (Role::Device, None),
        (Role::Edge, Some("minilm-l6.toml")),
        (Role::Cloud, Some("smollm2-135m.toml")),
    ] {
        let (digest, mut reader): (Digest, Box<dyn TextFeatures>) = match card {
            None => (Digest::of(b"hashed runs"), Box::new(HashedRuns)),
            Some(card) => {
                news(&format!("{card} reads the texts"));
                let (card, base) = load_adopted(&cards.join(card), &shipped::trust()?, models)?;
                (card.digest(), Box::new(TextVectors::new(base, options.threads)?))
            }
        };
        let tier = Tier {
            reference: Arc::new(ReferenceSet::of_texts(&reference, reader.as_mut())?),
            test: windows(&test, reader.as_mut(), set.names.len())?,
            digest,
            width: reader.width(),
        };
        tiers.insert(role, tier);
    }
    let machine = |name: &str| MACHINES.iter().position(|machine| *machine == name);
    let mut own = Vec::new();
    for (party, _) in PARTIES {
        let mine = learned.iter().map(|(_, order)| *order);
        let mine: Vec<&Labelled> =
            mine.filter(|order| Some(order.machine) == machine(party)).collect();
        own.push(windows(&mine, &mut HashedRuns, set.names.len())?);
    }
    let subject = |seed| {
        let (tiers, own, names) = (&tiers, own.as_slice(), set.names.as_slice());
        Ok::<_, ExperimentError>(Orders { settings, tiers, own, names, seed })
    };
    let words = [
        (Role::Cloud, "softmax on vectors of SmolLM2"),
        (Role::Edge, "softmax on vectors of MiniLM"),
        (Role::Device, "softmax on runs of characters"),
    ];
    run_all(options, settings, &subject, words, news)
}

fn windows(
    orders: &[&Labelled],
    reader: &mut dyn TextFeatures,
    classes: usize,
) -> Result<Windows, LearnError> {
    let texts: Vec<&str> = orders.iter().map(|order| order.text.as_str()).collect();
    Ok(Windows {
        x: reader.features(&texts)?,
        len: reader.width(),
        labels: orders.iter().map(|order| order.system).collect(),
        classes,
    })
}

impl Orders<'_> {
    /// Where weights travel, all have the devices' model.
    fn tier(&self, role: Role, strategy: Strategy) -> Result<&Tier, ExperimentError> {
        let role = if strategy == Strategy::Weights { Role::Device } else { role };
        self.tiers.get(&role).ok_or_else(|| ExperimentError::Name(format!("{role:?}")))
    }
}

impl Subject for Orders<'_> {
    fn settings(&self) -> &Settings {
        self.settings
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn parties(&self) -> Vec<(&'static str, &'static str)> {
        PARTIES.to_vec()
    }

    fn own(&self, party: usize) -> Option<&Windows> {
        self.own.get(party)
    }

    fn reference(&self, role: Role) -> Result<&Arc<ReferenceSet>, ExperimentError> {
        Ok(&self.tier(role, Strategy::ReferenceLogits)?.reference)
    }

    fn model(&self) -> ModelMeta {
        ModelMeta {
            name: self.settings.model.name.clone(),
            version: 0,
            window: 0,
            rate_hz: 0.0,
            labels: self.names.to_vec(),
            context: None,
            adapters: vec![],
        }
    }

    fn learner(
        &self,
        role: Role,
        strategy: Strategy,
    ) -> Result<(Digest, Box<dyn Learner>), ExperimentError> {
        let tier = self.tier(role, strategy)?;
        let map = FeatureMap::given(tier.width)?;
        Ok((tier.digest, Box::new(SoftmaxLearner::on(map, self.names.len())?)))
    }

    fn how(&self, _: Role) -> Distils {
        distils_of(&self.settings.knowledge)
    }

    fn rate_of_weights(&self) -> f64 {
        self.settings.strategy.learning_rate
    }

    fn test(&self, role: Role, strategy: Strategy) -> Result<&Windows, ExperimentError> {
        Ok(&self.tier(role, strategy)?.test)
    }

    fn predictor(
        &self,
        role: Role,
        strategy: Strategy,
        adapter: &TensorSet,
    ) -> Result<Box<dyn Predictor>, ExperimentError> {
        let map = FeatureMap::given(self.tier(role, strategy)?.width)?;
        let mut predictor = SoftmaxPredictor::on(map, self.names.len())?;
        predictor.load(adapter)?;
        Ok(Box::new(predictor))
    }
}
