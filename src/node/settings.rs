//! From settings to the parts of a node: brokers, files, learner, data.

use std::collections::BTreeMap;
#[cfg(any(test, feature = "torch"))]
use std::num::NonZeroU16;
use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::mpsc;

#[cfg(feature = "torch")]
use super::base::HeldFiles;
use super::base::WantedBase;
use super::hours;
#[cfg(feature = "torch")]
use super::language_brain;
use super::texts::{TextReader, text_brain};
use super::{
    AnswerLane, Answering, Cascading, Identity, Learning, NodeError, NodeParts, RolloutTerms,
    SystemClock, split,
};
#[cfg(any(test, feature = "torch"))]
use crate::actors::lanes::CoreShare;
use crate::actors::lanes::{back_serve_lane, serve_lane, train_lane};
use crate::actors::split_lane::{BackCopies, back_lane};
use crate::actors::text_lane::{TextLane, Writer};
use crate::actors::{
    Adopt, Bounds, Busy, Figures, Half, HeldBase, LaneBench, Measure, Operator, Pace, RiskMeter,
};
use crate::bus::mqtt::{MqttBus, MqttError, MqttSettings, TlsSettings};
use crate::bus::{Bus, BusEvent};
use crate::data::bearings::{self, Bearings};
use crate::data::excavators::{self, Excavators};
use crate::data::texts::read_texts;
use crate::data::{Cache, DataError};
use crate::ids::{BootId, Digest, Name, Side};
use crate::learn::{
    BackPredictor, BatchLimits, DriftConfig, Examples, LearnError, Learner, MachineSpeeds,
    Predictor, ReferenceSet, SoftmaxLearner, SoftmaxPredictor, SplitBack, Texts, Windows, hold_out,
    labels_digest, reference_classes,
};
use crate::ledger::Event;
use crate::privacy::{Gate, Profile};
use crate::protocol::cascade::{CascadeConfig, OnNoReply, Uncalibrated};
use crate::protocol::rollout::Freeze;
use crate::protocol::{Distils, IslandTerms, ShareBounds, Triggers, update};
use crate::scada::answer_book::BookLimits;
use crate::scada::command::CommandPolicy;
use crate::scada::tags::{Binds, Format, Tag};
use crate::scada::telegram::ModelMeta;
#[cfg(any(test, feature = "torch"))]
use crate::settings::LimitSettings;
use crate::settings::{
    Compression, Contribute, DriftSettings, FeedbackSettings, FreezeSettings, KnowledgeSettings,
    LearnerName, LinkSettings, MergingName, NodeRole, PrivacyProfile, RolloutSettings, Settings,
    StrategyName, TagBinds, TagFormat, TriggerName, WhileUncalibrated, WithoutReply,
};
use crate::store::keyfile::{KeyFileError, new_boot_id};
use crate::store::{BlobCaps, SqliteStore, StoreError};
use crate::time::{Clock, Wall};
use crate::topic::Prefix;
use crate::trust::keyring::Keyring;
use crate::trust::keyring_document::open_document;
use crate::trust::keys::SigningKey;
#[cfg(feature = "torch")]
use crate::trust::{keys::VerifyingKey, release::ReleaseTrust};
use crate::wire::{Coding, KnowledgePlan, Merging, Plan, Reference, SpectraPlan, TopLogitsPlan};

/// Why settings don't make a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsProblem {
    /// A key has a value that nothing here can use.
    #[error("{key}: {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The data set.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The link.
    #[error(transparent)]
    Mqtt(#[from] MqttError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key, or a random number.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// A thread couldn't be started.
    #[error("no thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A model with what trains and what serves it.
pub struct Brain {
    /// Its description.
    pub model: ModelMeta,
    /// Digest of its base.
    pub base: Digest,
    /// Its untrained adapter, packed.
    pub adapter: Vec<u8>,
    /// Trains.
    pub learner: Box<dyn Learner>,
    /// Serves.
    pub server: Server,
    /// Trains what is behind the cut, on an edge whose devices have the front alone.
    pub back: Option<Box<dyn SplitBack>>,
    /// Reads texts, where the model classifies them.
    pub reader: Option<TextReader>,
    /// The reference texts in the model's tokens, where it writes.
    pub reference: Option<ReferenceSet>,
}

/// What serves, by what the model takes.
pub enum Server {
    /// Answers windows.
    Windows(Box<dyn Predictor>),
    /// The same, and goes on from where the front of a device stopped.
    Split(Box<dyn BackPredictor>),
    /// Continues prompts.
    Text(Writer),
    /// It answers nothing.
    Nothing,
}

impl Brain {
    /// What answers windows.
    ///
    /// # Errors
    /// [`SettingsProblem`] when the model writes text.
    pub fn predictor(&mut self) -> Result<&mut dyn Predictor, SettingsProblem> {
        match &mut self.server {
            Server::Windows(predictor) => Ok(predictor.as_mut()),
            Server::Split(predictor) => Ok(predictor.as_mut()),
            Server::Text(_) | Server::Nothing => Err(SettingsProblem::Key {
                key: "model.learner",
                problem: "this needs a model that takes windows, and the one set takes text".into(),
            }),
        }
    }
}

/// Digest of the base, what trains, what serves.
type Engine = (Digest, Box<dyn Learner>, Server);

/// The identity that the settings speak of, at a new start.
///
/// # Errors
/// [`SettingsProblem`] when the prefix can't be one or the system gives no random bytes.
pub fn identity_of(
    settings: &Settings,
    key: SigningKey,
    keyring: Arc<Keyring>,
) -> Result<Identity, SettingsProblem> {
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    let prefix = Prefix::new(settings.node.prefix.clone());
    let text = serde_json::to_vec(settings).map_err(|e| bad("settings", e.to_string()))?;
    Ok(Identity {
        prefix: prefix.map_err(|error| bad("node.prefix", error.to_string()))?,
        me: settings.node.name.clone(),
        key,
        keyring,
        boot: new_boot_id()?,
        config: Digest::of(&text),
    })
}

/// Makes the model that the settings name; a base must be one that settings or keyring let in.
///
/// # Errors
/// [`SettingsProblem`].
pub fn brain(settings: &Settings, keyring: &Keyring) -> Result<Brain, SettingsProblem> {
    let (classes, len) = (bearings::CLASSES.len(), bearings::WINDOW_LEN);
    let model = model_of(settings);
    let (base, learner, server): Engine = match settings.model.learner {
        LearnerName::Softmax => {
            let speeds = MachineSpeeds::default();
            (
                // Nothing is pre-trained: the features are the base.
                Digest::of(b"gaisnet softmax over spectral features, version 1"),
                Box::new(SoftmaxLearner::new(speeds, len, classes)?),
                Server::Windows(Box::new(SoftmaxPredictor::new(speeds, len, classes)?)),
            )
        }
        LearnerName::SignalTransformer => signal_transformer(settings, keyring)?,
        LearnerName::Language => return language_brain(settings, keyring),
        LearnerName::TextSoftmax | LearnerName::TextEncoder => {
            return text_brain(settings, keyring);
        }
    };
    let adapter = pack(&learner.initial_adapter())?;
    let back = split::back_of(settings, keyring)?;
    Ok(Brain { model, base, adapter, learner, server, back, reader: None, reference: None })
}

/// The model of windows that the settings name.
pub(super) fn model_of(settings: &Settings) -> ModelMeta {
    ModelMeta {
        name: settings.model.name.clone(),
        version: 0,
        window: u32::try_from(bearings::WINDOW_LEN).unwrap_or(u32::MAX),
        rate_hz: f64::from(bearings::RATE_HZ),
        labels: bearings::CLASSES.iter().map(|class| (*class).to_owned()).collect(),
        context: None,
        adapters: vec![],
    }
}

#[cfg(not(feature = "torch"))]
fn language_brain(_: &Settings, _: &Keyring) -> Result<Brain, SettingsProblem> {
    Err(SettingsProblem::Key {
        key: "model.learner",
        problem: "a language model needs a build with the feature torch".into(),
    })
}

/// The pre-trained base with LoRA on it.
#[cfg(feature = "torch")]
fn signal_transformer(settings: &Settings, keyring: &Keyring) -> Result<Engine, SettingsProblem> {
    use crate::torch::{SignalLearner, SignalPredictor, SplitPredictor, load_base};

    let path = base_path(settings);
    let trust = release_trust(settings, keyring)?;
    let (card, base) = load_base(&path, &trust).map_err(|error| SettingsProblem::Key {
        key: "model.base",
        problem: format!("{}: {error}", path.display()),
    })?;
    let config = trainer_of(settings, card.architecture);
    let share = core_share(&settings.limits, std::thread::available_parallelism().ok());
    let (model, peft, threads) = (card.architecture, &config.peft, share.serve);
    let split = split::split_of(settings).filter(super::Split::answers);
    let server = match split.filter(|_| settings.node.has(NodeRole::Relay)) {
        Some(split) => {
            let cut = split.terms.cut;
            cut.check(model.layers).map_err(|error| split::bad_cut(&error))?;
            Server::Split(Box::new(SplitPredictor::new(&base, model, peft, cut, threads)?))
        }
        None => Server::Windows(Box::new(SignalPredictor::new(&base, model, peft, threads)?)),
    };
    let learner = SignalLearner::new(&base, config, ADAPTER_SEED)?;
    Ok((card.sha256, Box::new(learner), server))
}

/// The card of the signal transformer's base.
#[cfg(feature = "torch")]
pub(super) fn base_path(settings: &Settings) -> std::path::PathBuf {
    let default = || std::path::PathBuf::from("models/signal-bearing.toml");
    settings.model.base.clone().unwrap_or_else(default)
}

/// How the signal transformer trains.
#[cfg(feature = "torch")]
pub(super) fn trainer_of(
    settings: &Settings,
    model: crate::torch::SignalTransformerConfig,
) -> crate::torch::TrainerConfig {
    use crate::torch::{LoraConfig, PeftConfig, TrainerConfig};

    let lora = LoraConfig {
        rank: settings.strategy.rank,
        alpha: narrow(settings.strategy.alpha),
        ..LoraConfig::default()
    };
    let share = core_share(&settings.limits, std::thread::available_parallelism().ok());
    TrainerConfig {
        model,
        peft: PeftConfig { lora: Some(lora), ..PeftConfig::default() },
        threads: share.train,
        ..TrainerConfig::default()
    }
}

/// The base that the settings name, if its weights aren't here and the parent may be asked for them.
#[cfg(feature = "torch")]
pub fn missing_base(settings: &Settings, keyring: &Keyring) -> Option<WantedBase> {
    let has_parent = keyring.node(&settings.node.name).is_some_and(|me| me.parent.is_some());
    if !settings.model.from_parent || !has_parent {
        return None;
    }
    let named = NamedBase::of(settings, keyring)?;
    let missing = named.card.place(&named.path, &named.cache.models()).is_err();
    missing.then(|| WantedBase {
        name: named.card.name.clone(),
        folder: named.card.folder_name(),
        files: named.card.files.clone(),
        papers: named.papers,
        cache: named.cache,
    })
}

/// Without libtorch no base is needed.
#[cfg(not(feature = "torch"))]
pub fn missing_base(_: &Settings, _: &Keyring) -> Option<WantedBase> {
    None
}

/// What opens a cloud's rounds.
fn triggers_of(settings: &Settings) -> Option<Triggers> {
    let round = &settings.round;
    let on = |name, value| if round.triggers.contains(&name) { value } else { 0 };
    (!round.triggers.is_empty()).then(|| Triggers {
        every_ms: on(TriggerName::OnSchedule, round.every_s * 1_000),
        drifts: on(TriggerName::OnDrift, round.drifts),
        labels: on(TriggerName::OnNLabels, round.labels),
        apart_ms: round.apart_s * 1_000,
    })
}

/// How a node watches for drift, if it does.
fn drift_of(settings: &Settings) -> Option<DriftConfig> {
    let DriftSettings { watch, reference, recent, every, alpha } = settings.drift;
    watch.then_some(DriftConfig { reference, recent, every, alpha })
}

/// Which answers a node remembers for labels that come later.
fn book_of(settings: &Settings) -> BookLimits {
    let FeedbackSettings { keep_answers, keep_hours } = settings.feedback;
    BookLimits { answers: keep_answers, age_ms: u64::from(keep_hours) * 3_600_000 }
}

/// How a node takes part in rollouts.
fn rollout_of(settings: &Settings) -> RolloutTerms {
    let RolloutSettings { steward, follow, four_eyes, freezes } = &settings.rollout;
    let freeze = |(from, until)| Freeze { from, until };
    RolloutTerms {
        steward: *steward,
        follow: *follow,
        four_eyes: *four_eyes,
        freezes: freezes.iter().filter_map(FreezeSettings::times).map(freeze).collect(),
    }
}

/// The files of the base that the settings name, for children.
#[cfg(feature = "torch")]
fn held_base(settings: &Settings, keyring: &Keyring) -> Option<Arc<dyn HeldBase>> {
    let named = NamedBase::of(settings, keyring)?;
    let folder = named.card.place(&named.path, &named.cache.models()).ok()?;
    Some(Arc::new(HeldFiles::new(&folder, &named.card.files, settings.bus.site.chunk_bytes)))
}

#[cfg(not(feature = "torch"))]
fn held_base(_: &Settings, _: &Keyring) -> Option<Arc<dyn HeldBase>> {
    None
}

/// An adopted base that the settings name, with a card that a trusted key has signed.
#[cfg(feature = "torch")]
struct NamedBase {
    path: std::path::PathBuf,
    card: crate::torch::adopted::AdoptedCard,
    papers: Vec<(String, Vec<u8>)>,
    cache: Cache,
}

#[cfg(feature = "torch")]
impl NamedBase {
    /// None where there is no such base, or nobody to trust answers for it: whoever loads it tells why.
    fn of(settings: &Settings, keyring: &Keyring) -> Option<Self> {
        use crate::torch::{Card, card::read_files, shipped::instead_of};

        let path = settings.model.base.clone()?;
        if settings.model.learner != LearnerName::Language {
            return None;
        }
        let (bytes, seal) = if let Some(shipped) = instead_of(&path) {
            (shipped.card.to_vec(), shipped.seal.to_vec())
        } else {
            let (card, seal) = read_files(&path).ok()?;
            (card, seal?)
        };
        release_trust(settings, keyring).ok()?.check(&bytes, &seal).ok()?;
        let Card::Adopted(card) = Card::parse(&bytes).ok()? else { return None };
        let cache = cache_of(settings).ok()?;
        let papers =
            vec![(format!("{}.toml", card.name), bytes), (format!("{}.sig", card.name), seal)];
        Some(Self { path, card: *card, papers, cache })
    }
}

/// The cache that the settings name, else that of the user.
pub(super) fn cache_of(settings: &Settings) -> Result<Cache, DataError> {
    settings.data.cache.clone().map_or_else(Cache::from_env, |path| Ok(Cache::at(path)))
}

/// How many threads train and answer: what the settings say, else half of the cores each.
#[cfg(any(test, feature = "torch"))]
pub(super) fn core_share(limits: &LimitSettings, cores: Option<NonZeroUsize>) -> CoreShare {
    let half = cores.map_or(1, NonZeroUsize::get).div_euclid(2).max(1);
    let threads = |set: usize| {
        let wanted = if set == 0 { half } else { set };
        u16::try_from(wanted).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
    };
    CoreShare { serve: threads(limits.serve_threads), train: threads(limits.train_threads) }
}

/// Whose signature on a base's card is believed.
#[cfg(feature = "torch")]
pub(super) fn release_trust(
    settings: &Settings,
    keyring: &Keyring,
) -> Result<ReleaseTrust, SettingsProblem> {
    let bad = |problem| SettingsProblem::Key { key: "model.release_key", problem };
    let pinned = match &settings.model.release_key {
        None => crate::torch::shipped::trust().map_err(|error| bad(error.to_string()))?,
        Some(path) => {
            let pem = std::fs::read_to_string(path)
                .map_err(|error| bad(format!("{}: {error}", path.display())))?;
            let key = VerifyingKey::from_pem(&pem).map_err(|error| bad(error.to_string()))?;
            ReleaseTrust::pinned(key)
        }
    };
    Ok(pinned.and_keyring(keyring))
}

/// The factors of version 0 are the same on each node.
#[cfg(feature = "torch")]
pub(super) const ADAPTER_SEED: u64 = 1;

#[cfg(not(feature = "torch"))]
fn signal_transformer(_: &Settings, _: &Keyring) -> Result<Engine, SettingsProblem> {
    Err(SettingsProblem::Key {
        key: "model.learner",
        problem: "this gaisnet was built without libtorch: use softmax, or build it with the \
                  feature torch"
            .into(),
    })
}

/// What a round asks of its members.
pub fn plan_of(settings: &Settings) -> Plan {
    let strategy = &settings.strategy;
    let gate = gate_of(settings);
    Plan {
        adapter_delta: strategy.contribute.contains(&Contribute::AdapterDelta),
        class_logits: strategy.contribute.contains(&Contribute::ClassLogits),
        local_steps: strategy.local_steps,
        batch_size: strategy.batch_size,
        learning_rate: narrow(strategy.learning_rate),
        final_rate: None,
        prox_mu: match strategy.name {
            StrategyName::Fedavg => 0.0,
            StrategyName::Fedprox => narrow(strategy.prox_mu),
        },
        distill_lambda: narrow(strategy.distill_lambda),
        rank: strategy.rank,
        alpha: narrow(strategy.alpha),
        coding: match strategy.compression {
            Compression::None => Coding::F32,
            Compression::Int8 => Coding::Int8,
            Compression::Int4 => Coding::Int4,
        },
        block: u16::try_from(strategy.block).unwrap_or(u16::MAX),
        min_cell: u32::try_from(gate.min_cell).unwrap_or(u32::MAX),
        seed: strategy.seed,
        local_epochs: (strategy.local_epochs > 0).then_some(strategy.local_epochs),
        knowledge: None,
        cluster_rounds: (strategy.cluster_rounds > 1).then_some(strategy.cluster_rounds),
    }
}

/// What a round asks for where each node has a model of its own.
fn knowledge_plan_of(
    settings: &Settings,
    reference: Option<&ReferenceSet>,
    labels: &[String],
) -> Option<KnowledgePlan> {
    let (knowledge, strategy) = (&settings.knowledge, &settings.strategy);
    let sends = |kind| strategy.contribute.contains(&kind);
    let tokens = reference.and_then(|set| set.tokens.as_deref());
    let top_logits = tokens.map(|tokens| TopLogitsPlan {
        // Of a vocabulary as small as a test's, not all.
        top: u16::try_from(knowledge.top_logits.min(tokens.vocab.saturating_sub(2))).unwrap_or(1),
        vocab: tokens.vocab,
        tokenizer: tokens.tokenizer,
        tokens: tokens.digest(),
    });
    let reference = reference.and_then(|set| {
        Some(Reference {
            generator: Name::new(set.name.clone()).ok()?,
            seed: set.seed,
            count: set.count(),
            digest: set.digest,
            classes: match reference_classes(&set.name) {
                Some(_) => None,
                None => Some(u32::try_from(set.windows.classes).ok()?),
            },
            unlabelled: !set.labelled,
        })
    });
    knowledge.own_models.then(|| KnowledgePlan {
        prototypes: sends(Contribute::Prototypes),
        reference_logits: sends(Contribute::ReferenceLogits),
        reference,
        labels: labels_digest(labels),
        alpha: narrow(knowledge.label_share),
        reference_weight: narrow(knowledge.reference_weight),
        prototype_weight: narrow(knowledge.prototype_weight),
        merging: match knowledge.merging {
            MergingName::Mean => Merging::Mean,
            MergingName::Median => Merging::Median,
            MergingName::Trimmed => Merging::Trimmed,
        },
        generator_weight: sends(Contribute::Generator).then(|| narrow(knowledge.generator_weight)),
        top_logits,
        spectra: sends(Contribute::Spectra).then(|| SpectraPlan {
            bands: u16::try_from(knowledge.spectra_bands).unwrap_or(u16::MAX),
            grades: u16::try_from(knowledge.spectra_grades).unwrap_or(u16::MAX),
        }),
    })
}

/// Makes the reference inputs that the settings speak of, or those of a file's texts that the model reads.
///
/// # Errors
/// [`SettingsProblem`] for a generator that isn't known here, or texts that can't be read.
pub fn reference_of(
    settings: &Settings,
    brain: &mut Brain,
) -> Result<Option<Arc<ReferenceSet>>, SettingsProblem> {
    let knowledge = &settings.knowledge;
    let (seed, count) = (knowledge.reference_seed, knowledge.reference_count);
    let set = match (&mut brain.reader, brain.reference.take(), &knowledge.reference) {
        _ if !knowledge.own_models => None,
        (Some(reader), ..) => Some(reader.reference_set()?),
        (None, Some(written), _) => Some(written),
        (None, None, Some(generator)) => Some(ReferenceSet::make(generator, seed, count)?),
        (None, None, None) => None,
    };
    Ok(set.map(|set| Arc::new(if knowledge.reference_labels { set } else { set.without_labels() })))
}

/// Connects one link; with `will` the broker says for the node that it is away when it vanishes.
///
/// # Errors
/// [`SettingsProblem`] when a file can't be read; an unreachable broker is no error but an event.
pub fn bus_of(
    link: &LinkSettings,
    settings: &Settings,
    will: bool,
    seed: u64,
) -> Result<(MqttBus, mpsc::Receiver<BusEvent>), SettingsProblem> {
    let mut mqtt = MqttSettings::new(&link.host, link.port, &link.client_id_of(&settings.node));
    mqtt.username.clone_from(&link.username);
    if let Some(path) = &link.password_file {
        let text = std::fs::read_to_string(path).map_err(|error| SettingsProblem::Key {
            key: "bus.*.password_file",
            problem: format!("{}: {error}", path.display()),
        })?;
        mqtt.password = Some(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if let Some(ca) = &link.tls.ca {
        let client = link.tls.cert.clone().zip(link.tls.key.clone());
        mqtt.tls = Some(TlsSettings { ca_file: ca.clone(), client });
    }
    mqtt.keep_alive_s = link.keep_alive_s;
    mqtt.in_flight = link.in_flight;
    mqtt.retry_max_ms = link.reconnect_max_s.saturating_mul(1_000);
    mqtt.stall_s = u64::from(link.watchdog_s);
    mqtt.connection_timeout_s = u64::from(link.connect_timeout_s);
    mqtt.max_packet_bytes = usize::try_from(link.max_packet_bytes).unwrap_or(usize::MAX);
    // A huge message is to be refused by whoever it is for, not to cost the connection.
    mqtt.max_incoming_bytes = Some(link.receive_queue_bytes.min(MAX_INCOMING_BYTES));
    mqtt.outbox_bytes = link.send_queue_bytes;
    mqtt.inbox_bytes = link.receive_queue_bytes;
    let words = Operator::status(&[], false, 0, Wall::default(), Wall::default());
    mqtt.will =
        serde_json::to_vec(&words).ok().filter(|_| will).map(|payload| crate::bus::Publish {
            topic: format!("{}/status", settings.node.branch()),
            payload,
            at_least_once: true,
            retain: true,
            priority: crate::bus::Priority::Control,
        });
    Ok(MqttBus::connect(mqtt, seed)?)
}

/// A node's links by side, with their events.
pub type Links = BTreeMap<Side, (Arc<dyn Bus>, mpsc::Receiver<BusEvent>)>;

/// Connects all links of a node.
///
/// # Errors
/// [`SettingsProblem`].
pub fn links_of(settings: &Settings, boot: &BootId) -> Result<Links, SettingsProblem> {
    let seed = u64::from_le_bytes(super::first_eight(boot));
    let mut links = Links::new();
    let (bus, events) = bus_of(&settings.bus.site, settings, true, seed)?;
    let device = settings.node.has(NodeRole::Trainer);
    links.insert(if device { Side::Up } else { Side::Down }, (Arc::new(bus), events));
    if settings.node.has(NodeRole::Relay) {
        let parent = settings.bus.parent.as_ref().unwrap_or(&settings.bus.site);
        let mut parent = parent.clone();
        let one_broker = settings.bus.parent.is_none();
        if one_broker {
            // It takes two clients, and a client id only once; one of them stands for the node.
            let id = format!("{}-up", parent.client_id_of(&settings.node));
            parent.client_id = Name::new(id).ok();
        }
        let (bus, events) = bus_of(&parent, settings, !one_broker, seed)?;
        links.insert(Side::Up, (Arc::new(bus), events));
    }
    Ok(links)
}

/// Puts the parts of a node together; `brain` and `data` may be shared work of the caller.
///
/// # Errors
/// [`SettingsProblem`].
pub fn parts_of(
    settings: &Settings,
    identity: Identity,
    mut brain: Brain,
    data: Option<Examples>,
) -> Result<NodeParts, SettingsProblem> {
    let figures = Arc::new(Figures::default());
    let (data, cascade) = cascading_of(settings, data);
    let reference = reference_of(settings, &mut brain)?;
    // An owner's own model has no examples of its own: it learns from what its members say.
    let owns = !settings.node.has(NodeRole::Trainer);
    let taught = settings.knowledge.own_models && owns && settings.knowledge.distil_steps > 0;
    let data = data.or_else(|| {
        let none: Examples = match brain.server {
            Server::Text(_) => Texts::default().into(),
            _ => Windows::default().into(),
        };
        taught.then_some(none)
    });
    let (learner, data) = match data {
        Some(Examples::Windows(windows)) if settings.privacy.risk_meter && !owns => {
            let Server::Windows(predictor) = self::brain(settings, &identity.keyring)?.server
            else {
                return Err(SettingsProblem::Key {
                    key: "privacy.risk_meter",
                    problem: "only models that answer windows are measured".into(),
                });
            };
            let (gate, figures) = (gate_of(settings), Arc::clone(&figures));
            let (meter, learned) =
                RiskMeter::new(brain.learner, predictor, &windows, gate, figures);
            let learner: Box<dyn Learner> = Box::new(meter);
            (learner, Some(learned.into()))
        }
        data => (brain.learner, data),
    };
    let lane = match data {
        Some(data) => Some((train_lane(learner, QUEUE)?, Arc::new(data))),
        None => None,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let busy = Arc::new(Busy::with_hours(hours::of(settings, &clock)?));
    let lane_that_answers = match brain.server {
        Server::Windows(predictor) => Some(AnswerLane::Windows(serve_lane(predictor, QUEUE)?)),
        Server::Split(predictor) => {
            let split = split::split_of(settings);
            let front =
                split.and_then(|split| split.terms.front_of(0, &brain.base, &brain.adapter));
            Some(AnswerLane::Windows(back_serve_lane(predictor, front, QUEUE)?))
        }
        Server::Text(writer) => {
            let limits = BatchLimits::default();
            Some(AnswerLane::Text(TextLane::spawn(writer, limits, Arc::clone(&clock), QUEUE)?))
        }
        Server::Nothing => None,
    };
    let answering = lane_that_answers
        .map(|lane| answering_of(settings, lane, Arc::clone(&busy), cascade))
        .transpose()?;
    let pace = Arc::new(Pace::new(busy, Arc::clone(&clock), settings.schedule.cpu_percent));
    let mut bench = LaneBench::new(identity.me.clone(), lane, Arc::clone(&figures), pace)
        .with_reference(reference.clone());
    if let (Some(back), Some(split)) = (brain.back, split::split_of(settings)) {
        let copies = BackCopies::new(back, split.backs);
        let lane = back_lane(copies, Arc::clone(&figures), QUEUE)?;
        bench = bench.with_half(Half::Back(lane));
    }
    let learning = learning_of(settings, brain.model, brain.base, brain.adapter, reference);
    let work = Work { learning, bench, answering, clock, figures };
    with_work(settings, identity, work)
}

/// Answers from this lane, to what the settings bind and to requests.
pub(super) fn answering_of(
    settings: &Settings,
    lane: AnswerLane,
    busy: Arc<Busy>,
    cascade: Option<Cascading>,
) -> Result<Answering, SettingsProblem> {
    let (tags, max_gap_ms, stale_after_ms) = (tags_of(settings)?, 5_000, 10_000);
    Ok(Answering { lane, tags, busy, max_gap_ms, stale_after_ms, cascade })
}

/// What a node does beside talking.
pub(super) struct Work {
    pub(super) learning: Learning,
    pub(super) bench: LaneBench,
    pub(super) answering: Option<Answering>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) figures: Arc<Figures>,
}

/// Puts links, store and bounds around what a node does.
pub(super) fn with_work(
    settings: &Settings,
    identity: Identity,
    work: Work,
) -> Result<NodeParts, SettingsProblem> {
    let store = SqliteStore::open(&settings.paths.store, BlobCaps::default())?;
    let links = links_of(settings, &identity.boot)?;
    let unsigned = settings.commands.unsigned.iter().map(String::as_str);
    let policy = CommandPolicy::new(unsigned).map_err(|error| SettingsProblem::Key {
        key: "commands.unsigned",
        problem: error.to_string(),
    })?;
    Ok(NodeParts {
        bench: Box::new(work.bench),
        learning: work.learning,
        store: Box::new(store),
        links,
        clock: work.clock,
        answering: work.answering,
        policy,
        figures: work.figures,
        resources: Arc::new(|| {
            crate::telemetry::usage()
                .map_or((0.0, 0.0), |usage| (usage.cpu_seconds, usage.peak_rss_mib()))
        }),
        bounds: bounds_of(settings),
        bases: held_base(settings, &identity.keyring),
        rollout: rollout_of(settings),
        book: book_of(settings),
        drift: drift_of(settings),
        adopt: Some(adopt_of(settings, Arc::clone(&identity.keyring))),
        fatal: Arc::new(|_| std::process::exit(1)),
        identity,
    })
}

/// What is trained on, and how the node answers as one of several tiers.
///
/// A device keeps a part of its windows back to measure by. Whoever doesn't train measures by the part that
/// a device with the same data keeps back: the rest of it may be what its devices learned from.
fn cascading_of(
    settings: &Settings,
    data: Option<Examples>,
) -> (Option<Examples>, Option<Cascading>) {
    let cascade = &settings.cascade;
    if !cascade.enabled {
        return (data, None);
    }
    let trains = settings.node.has(NodeRole::Trainer);
    let (data, held_out) = match data {
        Some(Examples::Windows(windows)) => {
            let (learned, kept) = hold_out(&windows, cascade.holdout);
            (trains.then(|| learned.into()), Some(kept))
        }
        other => (other, None),
    };
    let config = CascadeConfig {
        above: trains || cascade.to_cloud,
        wait_ms: cascade.wait_ms,
        in_flight: cascade.in_flight,
        on_no_reply: match cascade.on_no_reply {
            WithoutReply::Local => OnNoReply::Own,
            WithoutReply::Abstain => OnNoReply::Abstain,
        },
        uncalibrated: match cascade.uncalibrated {
            WhileUncalibrated::Escalate => Uncalibrated::Escalate,
            WhileUncalibrated::Local => Uncalibrated::Own,
        },
    };
    let (alpha, delta) = (cascade.alpha, cascade.delta);
    let measure = held_out.map(|held_out| Measure { held_out: Arc::new(held_out), alpha, delta });
    let safe_default = cascade.safe_default.clone();
    (data, Some(Cascading { config, to_cloud: cascade.to_cloud, safe_default, measure }))
}

/// What is learned and how: what the settings say, for a model with this base and untrained adapter.
pub fn learning_of(
    settings: &Settings,
    model: ModelMeta,
    base: Digest,
    adapter: Vec<u8>,
    reference: Option<Arc<ReferenceSet>>,
) -> Learning {
    let (round, knowledge) = (&settings.round, &settings.knowledge);
    let mut plan = plan_of(settings);
    plan.knowledge = knowledge_plan_of(settings, reference.as_deref(), &model.labels);
    let owner = !settings.node.has(NodeRole::Trainer);
    Learning {
        model,
        base,
        adapter,
        plan,
        gate: gate_of(settings),
        quorum: round.quorum,
        deadline_ms: round.deadline_s * 1_000,
        relay_margin_ms: round.relay_margin_s * 1_000,
        republish_ms: round.republish_s * 1_000,
        pause_ms: round.pause_s * 1_000,
        versions: if round.auto_start { round.rounds } else { 0 },
        schedule: settings.strategy.schedule.into(),
        max_staleness: round.late_max_staleness,
        lease_ms: round.lease_s * 1_000,
        resync_ms: round.republish_s * 3_000,
        chunk_bytes: settings.bus.site.chunk_bytes,
        share_bounds: ShareBounds {
            max_share: settings.strategy.max_share,
            clip_norms: settings.strategy.clip_norms,
        },
        island: (round.island_after_s > 0).then(|| IslandTerms {
            after_ms: round.island_after_s * 1_000,
            pause_ms: (round.pause_s * 1_000).max(1_000),
        }),
        second_edge_after_ms: match round.second_edge_after_s {
            0 => round.republish_s * 7_000,
            after_s => after_s * 1_000,
        },
        triggers: triggers_of(settings),
        split: split::split_of(settings),
        reference,
        distils: (owner && knowledge.own_models && knowledge.distil_steps > 0)
            .then(|| distils_of(knowledge)),
    }
}

/// How an owner's own model learns, where it takes any steps.
pub fn distils_of(knowledge: &KnowledgeSettings) -> Distils {
    Distils {
        steps: knowledge.distil_steps,
        learning_rate: narrow(knowledge.distil_rate),
        final_rate: knowledge.distil_falls.then_some(0.0),
    }
}

/// Takes over the keyring that `gaisnet keyring accept` has put in place of the one in use.
fn adopt_of(settings: &Settings, current: Arc<Keyring>) -> Adopt {
    let path = settings.paths.keyring.clone();
    Arc::new(move |version, digest| {
        let at = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        let bytes = std::fs::read(&path).map_err(|error| at(&error))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(at(&format!("its SHA-256 is {found}, the command names {digest}")));
        }
        let next = open_document(&bytes, Some(&current)).map_err(|error| at(&error))?;
        if next.version() != version {
            let found = next.version();
            return Err(at(&format!("it is version {found}, the command names {version}")));
        }
        Ok(changes(&current, &next))
    })
}

/// What a newer keyring changes, for the ledger.
fn changes(old: &Keyring, new: &Keyring) -> Vec<Event> {
    let keyring = new.version();
    let mut events = Vec::new();
    for entry in new.nodes() {
        let (subject, key) = (entry.node.clone(), entry.key.key_id());
        match old.node(&entry.node).map(|before| before.key.key_id()) {
            None => events.push(Event::KeyAdd { key, keyring, subject }),
            Some(old) if old != key => {
                events.push(Event::KeyRotate { keyring, new: key, old, subject });
            }
            Some(_) => {}
        }
    }
    for entry in old.nodes().filter(|entry| new.node(&entry.node).is_none()) {
        let (subject, key) = (entry.node.clone(), entry.key.key_id());
        events.push(Event::KeyRevoke { key, keyring, subject });
    }
    events
}

fn bounds_of(settings: &Settings) -> Bounds {
    let (limits, store) = (&settings.limits, settings.paths.store.clone());
    Bounds {
        full_percent: u64::from(limits.disk_full_percent),
        outbox_bytes: limits.outbox_bytes,
        outbox_ms: u64::from(limits.outbox_hours) * 3_600_000,
        disk: Arc::new(move || {
            crate::telemetry::disk_space(&store).ok().map(|space| space.used_percent())
        }),
    }
}

/// A device's own windows or texts, in the form that its model takes.
///
/// # Errors
/// [`SettingsProblem`] when the set or client isn't known, the set wasn't fetched, or the model learns
/// from the other kind.
pub fn data_of(
    settings: &Settings,
    brain: &mut Brain,
) -> Result<Option<Examples>, SettingsProblem> {
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    if let Some(reader) = &mut brain.reader {
        return reader.data_of(settings);
    }
    if let Some(file) = &settings.data.file {
        let Server::Text(writer) = &brain.server else {
            let learner =
                "a file has texts, and only model.learner = \"language\" learns from those";
            return Err(bad("data.file", learner.into()));
        };
        return encoded(&read_texts(file, settings.data.column.as_deref())?, writer).map(Some);
    }
    let Some(set) = &settings.data.set else { return Ok(None) };
    match (set.as_str(), &brain.server) {
        ("bearings", Server::Windows(_) | Server::Split(_)) => {}
        ("excavators", Server::Text(writer)) => return orders_of(settings, writer).map(Some),
        ("bearings" | "excavators" | "excavator-systems", _) => {
            let learner = "bearings are windows, excavators are texts, excavator-systems texts with classes: \
                           model.learner is for another";
            return Err(bad("data.set", learner.into()));
        }
        _ => {
            let known = format!(
                "no data set {set:?}: this version has bearings, excavators and excavator-systems"
            );
            return Err(bad("data.set", known));
        }
    }
    windows_of(settings).map(Some)
}

/// A device's own windows of the bearings.
pub(super) fn windows_of(settings: &Settings) -> Result<Examples, SettingsProblem> {
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    let cache = cache_of(settings)?;
    let all = Bearings::cached(&cache).ok_or_else(|| {
        bad("data.set", "bearings is not in the cache: gaisnet data fetch bearings".into())
    })?;
    let client = settings.data.client.as_ref().map_or("", Name::as_str);
    let at = bearings::PLANTS.iter().position(|plant| plant.eq_ignore_ascii_case(client));
    let at = at.ok_or_else(|| {
        bad("data.client", format!("{client:?} is none of {:?}", bearings::PLANTS))
    })?;
    Ok(all.plant(at)?.into())
}

/// A machine's work orders as token ids.
fn orders_of(settings: &Settings, writer: &Writer) -> Result<Examples, SettingsProblem> {
    let bad = |key, problem: String| SettingsProblem::Key { key, problem };
    let cache = cache_of(settings)?;
    let all = Excavators::cached(&cache).ok_or_else(|| {
        bad("data.set", "excavators is not in the cache: gaisnet data fetch excavators".into())
    })?;
    let client = settings.data.client.as_ref().map_or("", Name::as_str);
    let all = all.load()?;
    let orders = all.machine(client).ok_or_else(|| {
        bad("data.client", format!("{client:?} is none of {:?}", excavators::MACHINES))
    })?;
    encoded(&orders.train, writer)
}

fn encoded(texts: &[String], writer: &Writer) -> Result<Examples, SettingsProblem> {
    let mut encode = |text: &str| writer.tokens.encode(text);
    Ok(Texts::encoded(texts, &mut encode)?.into())
}

fn tags_of(settings: &Settings) -> Result<Vec<Tag>, SettingsProblem> {
    let bad = |problem: String| SettingsProblem::Key { key: "tags", problem };
    let mut tags = Vec::new();
    for tag in &settings.tags {
        let format = match tag.format {
            None | Some(TagFormat::Json) => Format::Json,
            Some(TagFormat::Csv) => Format::Csv,
            Some(TagFormat::F32le) => Format::F32Le,
        };
        let binds = match tag.binds {
            TagBinds::Feature => {
                let model = tag.model.clone().unwrap_or_else(|| settings.model.name.clone());
                Binds::Feature { model }
            }
            TagBinds::Label => Binds::Label,
            TagBinds::Idle => Binds::Idle,
            TagBinds::Veto => Binds::Veto { above: tag.above, below: tag.below },
        };
        let pointer = tag.pointer.as_deref().unwrap_or("");
        let hop = tag.hop.and_then(|hop| NonZeroUsize::new(usize::try_from(hop).ok()?));
        let bound = Tag::new(&tag.topic, format, pointer, binds);
        tags.push(bound.map_err(|e| bad(e.to_string()))?.with_windows(hop, tag.max_gap_ms));
    }
    Ok(tags)
}

pub(super) fn gate_of(settings: &Settings) -> Gate {
    gate_for(settings.privacy.profile)
}

pub(super) fn gate_for(profile: PrivacyProfile) -> Gate {
    Gate::from(match profile {
        PrivacyProfile::Standard => Profile::Standard,
        PrivacyProfile::Strict => Profile::Strict,
        PrivacyProfile::Lab => Profile::Lab,
    })
}

pub(super) fn pack(adapter: &crate::learn::TensorSet) -> Result<Vec<u8>, SettingsProblem> {
    update::pack(adapter, Coding::F32, 0)
        .map_err(|error| SettingsProblem::Key { key: "model", problem: error.to_string() })
}

#[expect(clippy::cast_possible_truncation, reason = "settings in the range of f32")]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// Largest packet that is read at all.
const MAX_INCOMING_BYTES: usize = 16 << 20;
/// Requests that a lane's queue holds.
pub(super) const QUEUE: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_measures_by_is_not_what_it_trains_on() {
        use crate::learn::Windows;
        use crate::settings::{Layers, Tier};

        let settings = |tier, more: &[&str]| {
            let mut layers = Layers::new();
            layers.tier(tier).set("node.name=n").set("node.site=s").set("node.parent=p");
            for assignment in more {
                layers.set(assignment);
            }
            layers.load().into_settings().unwrap()
        };
        let data = || {
            let x = (0_u8..100).map(f32::from).collect();
            Some(Examples::from(Windows { x, len: 1, labels: vec![0; 100], classes: 2 }))
        };
        let (all, none) = cascading_of(&settings(Tier::Device, &[]), data());
        assert!(all == data() && none.is_none(), "off, nothing is kept back");
        let on = ["cascade.enabled=true", "cascade.holdout=0.3"];
        let (trained, cascade) = cascading_of(&settings(Tier::Device, &on), data());
        let held_out = cascade.unwrap().measure.unwrap().held_out;
        let trained = trained.unwrap();
        assert_eq!((trained.num_examples(), held_out.num_examples()), (70, 30));
        assert_eq!(held_out.x.first(), Some(&70.0), "the last of the recording");
        let (none, cascade) = cascading_of(&settings(Tier::Edge, &on), data());
        let cascade = cascade.unwrap();
        assert!(none.is_none() && !cascade.config.above, "to the cloud only where it is asked for");
        let held_out = cascade.measure.unwrap().held_out;
        assert_eq!(held_out.num_examples(), 30, "its devices may train on the rest of it");
    }

    #[test]
    fn threads_are_as_set_or_half_of_the_cores_and_never_none() {
        let share = |train_threads, serve_threads, cores| {
            let limits = LimitSettings {
                outbox_bytes: 0,
                outbox_hours: 0,
                disk_full_percent: 90,
                train_threads,
                serve_threads,
                max_memory_mib: 0,
                checkpoint_steps: 0,
                adapters: 0,
                adapters_mib: 1,
            };
            let share = core_share(&limits, NonZeroUsize::new(cores));
            (share.train.get(), share.serve.get())
        };
        assert_eq!(share(0, 0, 8), (4, 4));
        assert_eq!(share(0, 0, 1), (1, 1));
        assert_eq!(share(3, 1, 8), (3, 1));
        assert_eq!(share(0, 2, 0), (1, 2));
    }
}
