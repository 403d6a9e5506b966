//! From settings to the halves of a split model: a device's front, an edge's back.

use std::sync::Arc;

use super::hours;
use super::settings::{QUEUE, Work, answering_of, windows_of, with_work};
#[cfg(feature = "torch")]
use super::settings::{model_of, pack};
use super::{
    AnswerLane, Cascading, Identity, NodeParts, SettingsProblem, Split, SystemClock, learning_of,
};
use crate::actors::lanes::front_serve_lane;
use crate::actors::split_lane::{FrontRuns, front_lane};
use crate::actors::{Busy, Figures, Half, LaneBench, Pace};
use crate::ids::Digest;
use crate::learn::{Cut, FrontPredictor, SplitBack, SplitFront};
use crate::protocol::cascade::{CascadeConfig, OnNoReply, Uncalibrated};
use crate::protocol::{Backs, SplitTerms};
use crate::scada::at_cut::FrontMark;
use crate::scada::telegram::ModelMeta;
#[cfg(feature = "torch")]
use crate::settings::NodeRole;
use crate::settings::{Settings, SplitCodingName, SplitLabels, SplitVersion};
use crate::time::Clock;
use crate::trust::keyring::Keyring;
use crate::wire::{Frame, SplitCoding};

/// A device's half of a model.
pub struct FrontHalf {
    /// The model's description.
    pub model: ModelMeta,
    /// Digest of the whole base.
    pub base: Digest,
    /// The front's part of the untrained adapter, packed.
    pub adapter: Vec<u8>,
    /// Trains it.
    pub front: Box<dyn SplitFront>,
    /// Answers with it; none where the head is in the front.
    pub server: Option<Box<dyn FrontPredictor>>,
}

/// How the site's model is split, where the settings say so.
pub fn split_of(settings: &Settings) -> Option<Split> {
    let split = &settings.split;
    let cut = Cut { blocks: split.cut?, head_in_front: split.labels == SplitLabels::Device };
    let coding = match split.coding {
        SplitCodingName::Int8 => SplitCoding::Int8,
        SplitCodingName::F32 => SplitCoding::F32,
    };
    let most = u32::try_from(Frame::MAX_PART_BYTES).unwrap_or(u32::MAX);
    let part_bytes = settings.bus.site.chunk_bytes.min(most);
    Some(Split {
        terms: SplitTerms { cut, coding, part_bytes },
        backs: match split.version {
            SplitVersion::V1 => Backs::Each,
            SplitVersion::V2 => Backs::Shared,
        },
        step_timeout_ms: u64::from(split.step_timeout_s) * 1_000,
    })
}

/// The front of a device whose settings have a cut; nothing behind the cut is loaded.
///
/// # Errors
/// [`SettingsProblem`] when the base can't be used, the cut is beyond it, or the device hasn't the memory.
#[cfg(feature = "torch")]
pub fn front_half(
    settings: &Settings,
    keyring: &Keyring,
) -> Result<Option<FrontHalf>, SettingsProblem> {
    use std::num::NonZeroU32;

    use super::settings::{ADAPTER_SEED, base_path, core_share, release_trust, trainer_of};
    use crate::torch::{SignalFront, load_part};

    let Some(split) = split_of(settings).filter(|_| settings.node.has(NodeRole::Trainer)) else {
        return Ok(None);
    };
    let cut = split.terms.cut;
    let path = base_path(settings);
    let trust = release_trust(settings, keyring)?;
    let part = load_part(&path, &trust, |name| cut.is_front(name));
    let (card, base) = part.map_err(|error| SettingsProblem::Key {
        key: "model.base",
        problem: format!("{}: {error}", path.display()),
    })?;
    cut.check(card.architecture.layers).map_err(|error| bad_cut(&error))?;
    let config = trainer_of(settings, card.architecture);
    let front = SignalFront::new(&base, config, cut, ADAPTER_SEED);
    let front = front.map_err(|error| bad_cut(&error))?;
    let (holds, trains) = front.num_values();
    let batch = settings.strategy.batch_size;
    // What answers has merged weights of its own.
    let answering = if split.answers() { 4 * holds } else { 0 };
    let need = SignalFront::num_bytes(&card.architecture, cut, trains, batch) + answering;
    let need = need.div_ceil(1 << 20);
    let cap = NonZeroU32::new(settings.limits.max_memory_mib).map(NonZeroU32::get);
    if let Some(cap) = cap.filter(|cap| need > u64::from(*cap)) {
        return Err(SettingsProblem::Key {
            key: "limits.max_memory_mib",
            problem: format!(
                "the front needs about {need} MiB (cut {}, batches of {batch}), and {cap} are \
                 allowed: raise it, or cut earlier",
                cut.blocks
            ),
        });
    }
    // The plan's batches may be larger than those of the settings here.
    let front = front.within(cap);
    let adapter = pack(&front.initial_adapter())?;
    let model = model_of(settings);
    let share = core_share(&settings.limits, std::thread::available_parallelism().ok());
    let server: Option<Box<dyn FrontPredictor>> = if split.answers() {
        let server = front.predictor(share.serve).map_err(|error| bad_cut(&error))?;
        Some(Box::new(server))
    } else {
        None
    };
    Ok(Some(FrontHalf { model, base: card.sha256, adapter, front: Box::new(front), server }))
}

/// The back of an edge whose settings have a cut.
///
/// # Errors
/// [`SettingsProblem`] when the cut is beyond the model.
#[cfg(feature = "torch")]
pub(super) fn back_of(
    settings: &Settings,
    keyring: &Keyring,
) -> Result<Option<Box<dyn SplitBack>>, SettingsProblem> {
    use super::settings::{ADAPTER_SEED, base_path, release_trust, trainer_of};
    use crate::torch::{SignalBack, load_part};

    let Some(split) = split_of(settings).filter(|_| settings.node.has(NodeRole::Relay)) else {
        return Ok(None);
    };
    let cut = split.terms.cut;
    let path = base_path(settings);
    let trust = release_trust(settings, keyring)?;
    let part = load_part(&path, &trust, |name| !cut.is_front(name));
    let (card, base) = part.map_err(|error| SettingsProblem::Key {
        key: "model.base",
        problem: format!("{}: {error}", path.display()),
    })?;
    let config = trainer_of(settings, card.architecture);
    let back = SignalBack::new(&base, config, cut, ADAPTER_SEED);
    let back = back.map_err(|error| bad_cut(&error))?;
    Ok(Some(Box::new(back)))
}

#[cfg(feature = "torch")]
pub(super) fn bad_cut(error: &crate::learn::LearnError) -> SettingsProblem {
    SettingsProblem::Key { key: "split.cut", problem: error.to_string() }
}

#[cfg(not(feature = "torch"))]
fn no_torch<T>(settings: &Settings) -> Result<Option<T>, SettingsProblem> {
    match settings.split.cut {
        None => Ok(None),
        Some(_) => Err(SettingsProblem::Key {
            key: "split.cut",
            problem: "a split model needs a build with the feature torch".into(),
        }),
    }
}

/// Without libtorch no model is split.
///
/// # Errors
/// [`SettingsProblem`] when the settings want it.
#[cfg(not(feature = "torch"))]
pub fn front_half(settings: &Settings, _: &Keyring) -> Result<Option<FrontHalf>, SettingsProblem> {
    no_torch(settings)
}

#[cfg(not(feature = "torch"))]
pub(super) fn back_of(
    settings: &Settings,
    _: &Keyring,
) -> Result<Option<Box<dyn SplitBack>>, SettingsProblem> {
    no_torch(settings)
}

/// Puts a device with the front of a model together. It answers with its edge, or not at all where the head
/// is here: then half of an answer would come back, for which there is no message.
///
/// # Errors
/// [`SettingsProblem`] when it has no windows to learn from, or a part of the node can't be made.
pub fn front_parts_of(
    settings: &Settings,
    identity: Identity,
    half: FrontHalf,
) -> Result<NodeParts, SettingsProblem> {
    let figures = Arc::new(Figures::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let busy = Arc::new(Busy::with_hours(hours::of(settings, &clock)?));
    let percent = settings.schedule.cpu_percent;
    let pace = Arc::new(Pace::new(Arc::clone(&busy), Arc::clone(&clock), percent));
    if settings.data.set.as_deref() != Some("bearings") {
        let problem = "a split model learns from windows: set it to bearings".into();
        return Err(SettingsProblem::Key { key: "data.set", problem });
    }
    let data = Arc::new(windows_of(settings)?);
    let runs = FrontRuns::new(identity.me.clone(), half.front, data);
    let lane = front_lane(runs, Arc::clone(&figures), Arc::clone(&pace), QUEUE)?;
    let untrained = FrontMark::new(0, &half.base, &half.adapter);
    let answering = match half.server {
        Some(front) => Some(answering_of(
            settings,
            AnswerLane::Windows(front_serve_lane(front, untrained, QUEUE)?),
            busy,
            Some(asking_of(settings)),
        )?),
        None => None,
    };
    let bench = LaneBench::new(identity.me.clone(), None, Arc::clone(&figures), pace);
    let work = Work {
        learning: learning_of(settings, half.model, half.base, half.adapter, None),
        bench: bench.with_half(Half::Front(lane)),
        answering,
        clock,
        figures,
    };
    with_work(settings, identity, work)
}

/// How a device with a front asks its edge. It has no answer of its own that could be unsure.
fn asking_of(settings: &Settings) -> Cascading {
    let cascade = &settings.cascade;
    let config = CascadeConfig {
        above: true,
        wait_ms: cascade.wait_ms,
        in_flight: cascade.in_flight,
        on_no_reply: OnNoReply::Abstain,
        uncalibrated: Uncalibrated::Escalate,
    };
    Cascading { config, to_cloud: false, safe_default: cascade.safe_default.clone(), measure: None }
}

#[cfg(feature = "torch")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Layers, Tier};
    use crate::trust::zone_tests::site;

    fn settings(tier: Tier, more: &[&str]) -> Settings {
        let mut layers = Layers::new();
        layers.tier(tier).set("node.name=n").set("node.site=s").set("node.parent=p");
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/models/signal-bearing.toml");
        layers.set("model.learner=signal-transformer").set(&format!("model.base={base}"));
        for set in more {
            layers.set(set);
        }
        layers.load().into_settings().unwrap()
    }

    #[test]
    fn device_and_edge_have_their_halves_of_one_adapter() {
        let cut = ["split.cut=1"];
        let front = front_half(&settings(Tier::Device, &cut), &site()).unwrap().unwrap();
        let edge = settings(Tier::Edge, &cut);
        let whole = super::super::brain(&edge, &site()).unwrap();
        let is_front = |name: &str| split_of(&edge).unwrap().terms.cut.is_front(name);
        let part = crate::protocol::update::part(&whole.adapter, is_front).unwrap();
        assert_eq!(front.adapter, part, "version 0 is the same on both");
        assert_eq!(front.base, whole.base);
        let back = whole.back.unwrap().initial_adapter();
        assert_eq!(back, whole.learner.initial_adapter().filtered(|name| !is_front(name)));
        assert!(front_half(&edge, &site()).unwrap().is_none());
        assert!(front_half(&settings(Tier::Device, &[]), &site()).unwrap().is_none());
    }

    #[test]
    fn a_cut_beyond_the_model_and_a_device_without_the_memory_are_refused_with_their_numbers() {
        let error = |more: &[&str]| {
            let half = front_half(&settings(Tier::Device, more), &site());
            half.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(error(&["split.cut=1", "limits.max_memory_mib=64"]), Ok(()));
        let beyond = error(&["split.cut=4"]).unwrap_err();
        assert!(beyond.contains("split.cut") && beyond.contains("block 1 to 3"), "{beyond}");
        let memory = error(&["split.cut=2", "limits.max_memory_mib=1", "strategy.batch_size=64"])
            .unwrap_err();
        assert!(
            memory.contains("limits.max_memory_mib") && memory.contains("MiB (cut 2"),
            "{memory}"
        );
    }
}
