//! From settings to a model that tells what texts are about: a softmax head on what reads them.
//!
//! The classes, in their order, are those of the federation's reference texts; a device's own texts get their
//! class from a known set or from a column of a table.

use super::settings::{Brain, Server, SettingsProblem, cache_of, pack};
use crate::data::excavators;
use crate::data::systems::Systems;
use crate::data::texts::read_labelled;
use crate::ids::{Digest, Name};
use crate::learn::{
    Examples, FeatureMap, HashedRuns, LearnError, Learner, ReferenceSet, ReferenceTexts,
    SoftmaxLearner, TextFeatures, Windows,
};
use crate::scada::telegram::ModelMeta;
use crate::settings::{LearnerName, Settings};
use crate::trust::keyring::Keyring;

/// What reads a node's texts, and the federation's reference texts.
pub struct TextReader {
    /// From texts to features.
    pub features: Box<dyn TextFeatures>,
    /// The set that `knowledge.reference_file` names.
    pub reference: ReferenceTexts,
}

/// Makes the model of texts that the settings name.
///
/// # Errors
/// [`SettingsProblem`] when the file of reference texts isn't the pinned one, or the base can't be used.
pub fn text_brain(settings: &Settings, keyring: &Keyring) -> Result<Brain, SettingsProblem> {
    let reference = reference_texts(settings)?;
    let (base, features): (Digest, Box<dyn TextFeatures>) = match settings.model.learner {
        LearnerName::TextEncoder => vectors(settings, keyring)?,
        _ => (
            Digest::of(b"gaisnet softmax over hashed runs of characters, version 1"),
            Box::new(HashedRuns),
        ),
    };
    let map = FeatureMap::given(features.width())?;
    let learner = SoftmaxLearner::on(map, reference.classes.len())?;
    let model = ModelMeta {
        name: settings.model.name.clone(),
        version: 0,
        window: 0,
        rate_hz: 0.0,
        labels: reference.classes.clone(),
        context: None,
        adapters: vec![],
    };
    Ok(Brain {
        model,
        base,
        adapter: pack(&learner.initial_adapter())?,
        learner: Box::new(learner),
        server: Server::Nothing,
        back: None,
        reader: Some(TextReader { features, reference }),
        reference: None,
    })
}

impl TextReader {
    /// The reference inputs as this node reads them.
    ///
    /// # Errors
    /// [`LearnError`] when a text can't be read.
    pub fn reference_set(&mut self) -> Result<ReferenceSet, LearnError> {
        ReferenceSet::of_texts(&self.reference, self.features.as_mut())
    }

    /// A device's own texts as features, with their classes.
    ///
    /// # Errors
    /// [`SettingsProblem`] when the set or client isn't known, the set wasn't fetched, or no text has a class that the
    /// federation knows.
    pub fn data_of(&mut self, settings: &Settings) -> Result<Option<Examples>, SettingsProblem> {
        let data = &settings.data;
        let (key, orders) = match (&data.file, &data.column, &data.labels, &data.set) {
            (Some(file), Some(text), Some(label), _) => {
                ("data.labels", read_labelled(file, text, label)?)
            }
            (_, _, _, Some(set)) if set == "excavator-systems" => ("data.set", orders(settings)?),
            (None, _, _, None) => return Ok(None),
            _ => {
                let problem = "a model that classifies texts learns from excavator-systems, or from data.file with \
                               data.column and data.labels";
                return Err(SettingsProblem::Key { key: "data.set", problem: problem.into() });
            }
        };
        let classes = &self.reference.classes;
        let (mut texts, mut labels) = (Vec::new(), Vec::new());
        for (text, class) in &orders {
            if let Some(label) = classes.iter().position(|name| name == class) {
                texts.push(text.as_str());
                labels.push(label);
            }
        }
        if texts.is_empty() {
            let problem = format!("no text has one of the classes {}", classes.join(", "));
            return Err(SettingsProblem::Key { key, problem });
        }
        if texts.len() < orders.len() {
            let left_out = orders.len() - texts.len();
            tracing::info!(left_out, "texts of classes that the reference texts don't have");
        }
        let (x, len) = (self.features.features(&texts)?, self.features.width());
        Ok(Some(Windows { x, len, labels, classes: classes.len() }.into()))
    }
}

/// Reads the reference texts that the settings pin.
pub(super) fn reference_texts(settings: &Settings) -> Result<ReferenceTexts, SettingsProblem> {
    let knowledge = &settings.knowledge;
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    let path = knowledge.reference_file.as_ref().ok_or_else(|| {
        bad("knowledge.reference_file", "missing: the names of the classes are in it".into())
    })?;
    let told =
        |problem: String| bad("knowledge.reference_file", format!("{}: {problem}", path.display()));
    let bytes = crate::data::texts::read_capped(path)?;
    let (found, wanted) = (Digest::of(&bytes), knowledge.reference_digest.as_deref());
    if wanted != Some(found.to_string().as_str()) {
        let wanted = wanted.unwrap_or("nothing");
        return Err(bad(
            "knowledge.reference_digest",
            format!("{}: its SHA-256 is {found}, expected {wanted}", path.display()),
        ));
    }
    ReferenceTexts::parse(&bytes).map_err(|error| told(error.to_string()))
}

/// A machine's work orders, each with its system.
fn orders(settings: &Settings) -> Result<Vec<(String, String)>, SettingsProblem> {
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    let all = Systems::cached(&cache_of(settings)?)?.ok_or_else(|| {
        let how = "excavator-systems is not in the cache: gaisnet data fetch excavator-systems";
        bad("data.set", how.into())
    })?;
    let client = settings.data.client.as_ref().map_or("", Name::as_str);
    let at = excavators::MACHINES.iter().position(|name| *name == client).ok_or_else(|| {
        bad("data.client", format!("{client:?} is none of {:?}", excavators::MACHINES))
    })?;
    let name = |system: usize| all.names.get(system).cloned().unwrap_or_default();
    let mine = all.train.iter().filter(|order| order.machine == at);
    Ok(mine.map(|order| (order.text.clone(), name(order.system))).collect())
}

/// An adopted base that turns texts into vectors.
#[cfg(feature = "torch")]
fn vectors(
    settings: &Settings,
    keyring: &Keyring,
) -> Result<(Digest, Box<dyn TextFeatures>), SettingsProblem> {
    use super::settings::{core_share, release_trust};
    use crate::torch::{TextVectors, load_adopted};

    let bad = |problem: String| SettingsProblem::Key { key: "model.base", problem };
    let path = settings.model.base.clone().ok_or_else(|| {
        bad("a text encoder needs a base: name the card of one (gaisnet model list)".into())
    })?;
    let trust = release_trust(settings, keyring)?;
    let (card, base) = load_adopted(&path, &trust, &cache_of(settings)?.models())
        .map_err(|error| bad(format!("{}: {error}", path.display())))?;
    let share = core_share(&settings.limits, std::thread::available_parallelism().ok());
    let vectors = TextVectors::new(base, share.train).map_err(|error| bad(error.to_string()))?;
    Ok((card.digest(), Box::new(vectors)))
}

#[cfg(not(feature = "torch"))]
fn vectors(_: &Settings, _: &Keyring) -> Result<(Digest, Box<dyn TextFeatures>), SettingsProblem> {
    Err(SettingsProblem::Key {
        key: "model.learner",
        problem: "this gaisnet was built without libtorch: use text-softmax, or build it with the feature torch"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::{Control, TrainJob};
    use crate::node::{brain, data_of, learning_of, reference_of};
    use crate::settings::{Layers, Tier};
    use crate::trust::zone_tests::site;

    const SET: &str = "gaisnet reference texts 1\nname orders-1\nseed 7\nwritten_by a test\n\
                       labels in_turn\nclass Bucket\nclass Engine\ntext tooth gone\ntext no start\n";

    struct Room(tempfile::TempDir);

    impl Room {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("set.txt"), SET).unwrap();
            let table = "part,text\nBucket,bucket tooth lost\nEngine,engine no power\nWheel,flat\n";
            std::fs::write(folder.path().join("orders.csv"), table).unwrap();
            Self(folder)
        }

        fn settings(&self, digest: Digest, more: &[&str]) -> Settings {
            let path = |name: &str| self.0.path().join(name).display().to_string();
            let mut layers = Layers::new();
            layers.tier(Tier::Device).set("node.name=n").set("node.site=s").set("node.parent=p");
            layers.set("model.learner=text-softmax").set("knowledge.own_models=true");
            layers.set("strategy.contribute=[reference_logits]");
            layers.set(&format!("knowledge.reference_file={}", path("set.txt")));
            layers.set(&format!("knowledge.reference_digest={digest}"));
            layers.set(&format!("data.file={}", path("orders.csv")));
            layers.set("data.column=text").set("data.labels=part");
            for set in more {
                layers.set(set);
            }
            layers.load().into_settings().unwrap()
        }
    }

    #[test]
    fn a_device_with_orders_of_its_own_and_a_written_set_has_what_a_round_asks_for() {
        let room = Room::new();
        let digest = Digest::of(SET.as_bytes());
        let settings = room.settings(digest, &["knowledge.reference_labels=false"]);
        let mut brain = brain(&settings, &site()).unwrap();
        assert_eq!(brain.model.labels, ["Bucket", "Engine"]);
        let data = data_of(&settings, &mut brain).unwrap().unwrap();
        let windows = data.windows().unwrap();
        assert_eq!(windows.labels, [0, 1], "no class is called Wheel");
        let set = reference_of(&settings, &mut brain).unwrap().unwrap();
        let learning = learning_of(&settings, brain.model, brain.base, brain.adapter, Some(set));
        let reference = learning.plan.knowledge.unwrap().reference.unwrap();
        assert_eq!((reference.generator.as_str(), reference.seed), ("orders-1", 7));
        assert_eq!((reference.digest, reference.count), (digest, 2));
        assert_eq!((reference.classes, reference.unlabelled), (Some(2), true));
        let job = TrainJob {
            class_logits: true,
            ..TrainJob::plain(brain.learner.initial_adapter(), 20, 2, 1.0, 1)
        };
        let trained = brain.learner.train(&data, &job, &mut |_| Control::Continue).unwrap();
        assert!(trained.loss_last < trained.loss_first);
        assert_eq!(trained.class_logits.counts, [1, 1]);
    }

    #[test]
    fn a_file_that_is_not_the_pinned_one_and_a_table_without_a_known_class_are_refused() {
        let room = Room::new();
        let other = brain(&room.settings(Digest([1; 32]), &[]), &site()).err().unwrap();
        assert!(other.to_string().contains("its SHA-256 is"), "{other}");
        let settings = room.settings(Digest::of(SET.as_bytes()), &[]);
        std::fs::write(room.0.path().join("orders.csv"), "part,text\nWheel,flat\n").unwrap();
        let mut brain = brain(&settings, &site()).unwrap();
        let error = data_of(&settings, &mut brain).unwrap_err().to_string();
        assert!(error.contains("Bucket, Engine"), "{error}");
    }
}
