//! Everything that reads bytes from outside, as functions of bytes: for the fuzz targets and for the
//! stable test that replays their corpus.
//!
//! Each must come back without a panic, and must not take more memory than its caps say. Where there
//! is a way back, what was read is written and read again.
#![allow(dead_code, reason = "each fuzz target uses one")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use gaisnet::ids::{BootId, Digest, Name};
use gaisnet::learn::{
    ActivationCoding, Activations, BEARING_PHYSICS, Cut, ReferenceTexts, ReferenceTokens, Texts,
};
use gaisnet::ledger::tiles::verify_export;
use gaisnet::ledger::{Entry, InclusionProof, Origin, SignedCheckpoint};
use gaisnet::protocol::rollout::{Plan, RolloutConfig, Stage};
use gaisnet::protocol::{SplitTerms, knowledge as said, update};
use gaisnet::rng::Stream;
use gaisnet::scada::tags::{Binds, Format, Tag};
use gaisnet::scada::{at_cut, command, escalation as cascade, feedback as label, infer, text};
use gaisnet::time::Wall;
use gaisnet::topic::filter::Filter;
use gaisnet::topic::{Leaf, Prefix};
use gaisnet::trust::keyring_document::{open_document, seal_document};
use gaisnet::wire::{
    Body, Cells, Chunk, CopyPart, Envelope, Head, Kind, KnowledgePlan, Merging, PackedSet,
    Reference, SpectraPlan, SplitCoding, SplitMessage, TopLogitsPlan, decode, encode, split_pair,
};

/// A parser that is fuzzed.
pub(crate) type Parser = fn(&[u8]);

/// The parsers of the pure half, by the name of their target and of their corpus.
pub(crate) const PURE: [(&str, Parser); 18] = [
    ("envelope", envelope),
    ("body", body),
    ("chunk", chunk),
    ("split_message", split_message),
    ("packed_set", packed_set),
    ("knowledge", knowledge),
    ("keyring", keyring),
    ("checkpoint", checkpoint),
    ("tiles", tiles),
    ("command", command),
    ("infer", infer),
    ("feedback", feedback),
    ("tags", tags),
    ("topic", topic),
    ("ledger_entry", ledger_entry),
    ("escalation", escalation),
    ("reference_texts", reference_texts),
    ("copy_part", copy_part),
];

/// Those of the program's own files.
#[cfg(feature = "cli")]
pub(crate) const CLI: [(&str, Parser); 3] =
    [("settings", settings), ("bearings", bearings), ("idx", idx)];

/// Those of the models.
#[cfg(feature = "torch")]
pub(crate) const TORCH: [(&str, Parser); 3] =
    [("gguf", gguf), ("model_card", model_card), ("safetensors", safetensors)];

/// Those of the embedded broker.
#[cfg(feature = "broker")]
pub(crate) const BROKER: [(&str, Parser); 1] = [("packets", packets)];

const CAP: usize = 1 << 20;

/// A sealed message: envelope, head, body of the kind that its type names.
pub(crate) fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::from_bytes(bytes, CAP) else { return };
    assert_eq!(envelope.to_bytes().as_deref(), Ok(bytes), "two encodings of one envelope");
    let Ok((head, body)) = split_pair(&envelope.payload, CAP) else { return };
    if let Ok(head) = decode::<Head>(head, CAP) {
        assert_eq!(decode(&encode(&head).unwrap(), CAP), Ok(head));
    }
    for kind in Kind::ALL {
        if envelope.payload_type == kind.payload_type() {
            read_body(kind, body);
        }
    }
}

/// The first byte names the kind.
pub(crate) fn body(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    read_body(Kind::ALL[usize::from(*first) % Kind::ALL.len()], body);
}

fn read_body(kind: Kind, bytes: &[u8]) {
    let Ok(body) = Body::from_bytes(kind, bytes) else { return };
    assert_eq!(body.kind(), kind);
    let again = body.to_bytes().and_then(|bytes| Body::from_bytes(kind, &bytes));
    assert_eq!(again, Ok(body));
}

/// What frames carry: as it travels, or unpacked already, since a fuzzer doesn't get through zstd.
pub(crate) fn split_message(bytes: &[u8]) {
    let said = SplitMessage::from_bytes(bytes).or_else(|_| decode(bytes, CAP));
    let Ok(said) = said else { return };
    let again = said.to_bytes().unwrap();
    assert_eq!(SplitMessage::from_bytes(&again).as_ref(), Ok(&said));
    let cells: Option<&Cells> = match &said {
        SplitMessage::Forward { activations, .. } => Some(activations),
        SplitMessage::Output { output } => Some(output),
        SplitMessage::OutputGradient { gradient } | SplitMessage::Backward { gradient, .. } => {
            Some(gradient)
        }
        _ => None,
    };
    let Some(cells) = cells else { return };
    let coding = match cells.coding {
        SplitCoding::F32 => ActivationCoding::F32,
        SplitCoding::Int8 => ActivationCoding::Int8,
    };
    let shape: Vec<usize> = cells.shape.iter().map(|d| *d as usize).collect();
    if let Ok(values) = Activations::decode(coding, &shape, &cells.data) {
        assert_eq!(values.data.len(), shape.iter().product::<usize>());
        assert!(values.data.iter().all(|x| x.is_finite()));
    }
}

pub(crate) fn chunk(bytes: &[u8]) {
    if let Ok(chunk) = decode::<Chunk>(bytes, CAP) {
        assert_eq!(decode(&encode(&chunk).unwrap(), CAP), Ok(chunk));
    }
}

/// What a copy of the rounds' state holds.
pub(crate) fn copy_part(bytes: &[u8]) {
    if let Ok(part) = decode::<CopyPart>(bytes, CAP) {
        assert_eq!(decode(&encode(&part).unwrap(), CAP), Ok(part));
    }
}

/// The container, and the numbers in it; also as if the bytes had come uncompressed.
pub(crate) fn packed_set(bytes: &[u8]) {
    if let Ok(set) = PackedSet::from_bytes(bytes, CAP) {
        assert_eq!(PackedSet::from_bytes(&set.to_bytes().unwrap(), CAP), Ok(set));
    }
    for bytes in [bytes.to_vec(), zstd::bulk::compress(bytes, 1).unwrap()] {
        if let Ok(set) = update::unpack(&bytes) {
            assert!(set.check_finite().is_ok());
            let _ = update::check(&bytes, &set.layout(), false);
            let _ = update::check(&bytes, &set.layout(), true);
        }
    }
}

/// What a model says about three reference inputs and three classes: three counts, then a packed set, also plain. The
/// same as a layer or a generator, as spectra, and between models that write.
pub(crate) fn knowledge(bytes: &[u8]) {
    let Some((counts, bytes)) = bytes.split_at_checked(3) else { return };
    let counts: Vec<u64> = counts.iter().map(|count| u64::from(*count)).collect();
    let plan = KnowledgePlan {
        prototypes: true,
        reference_logits: true,
        reference: Some(Reference {
            generator: Name::new(BEARING_PHYSICS).unwrap(),
            seed: 1,
            count: 3,
            digest: Digest([0; 32]),
            classes: None,
            unlabelled: false,
        }),
        labels: Digest([0; 32]),
        alpha: 0.5,
        reference_weight: 1.0,
        prototype_weight: 1.0,
        merging: Merging::Median,
        generator_weight: None,
        top_logits: None,
        spectra: None,
    };
    let mut layers = KnowledgePlan { generator_weight: Some(1.0), ..plan.clone() };
    (layers.prototypes, layers.reference_logits) = (false, false);
    let spectra = Some(SpectraPlan { bands: 4, grades: 1 });
    let sounds =
        KnowledgePlan { prototypes: false, reference_logits: false, spectra, ..plan.clone() };
    let texts = Texts { tokens: vec![1, 2, 3], lengths: vec![1; 3], chars: 1 };
    let tokens = ReferenceTokens { texts, vocab: 9, tokenizer: Digest([0; 32]) };
    let top = TopLogitsPlan {
        top: 2,
        vocab: tokens.vocab,
        tokenizer: tokens.tokenizer,
        tokens: tokens.digest(),
    };
    let writes = KnowledgePlan { prototypes: false, top_logits: Some(top), ..plan.clone() };
    for bytes in [bytes.to_vec(), zstd::bulk::compress(bytes, 1).unwrap()] {
        if let Ok(said) = said::unpack(&layers, &bytes, &counts) {
            assert!(said.head.is_some() != said.generator.is_some());
            if let Some(generator) = said.generator {
                let latents = generator.latents(3, &mut Stream::new(1, "latents"));
                assert!(latents.x.iter().all(|x| x.is_finite()));
            }
        }
        if let Ok(said) = said::unpack(&sounds, &bytes, &counts) {
            let spectra = said.spectra.unwrap();
            assert!(spectra.means.len() == 12 && spectra.means.iter().all(|log| log.abs() <= 6.0));
        }
        if let Ok(said) = said::unpack(&writes, &bytes, &[]) {
            let said = said.top_logits.unwrap();
            assert!(said.losses().len() == 3 && said.losses().iter().all(|nats| nats.is_finite()));
            let place = said.place(2).unwrap();
            let sum = place.shares.iter().sum::<f32>() + place.rest;
            assert!((sum - 1.0).abs() < 1e-3 && place.ids.iter().all(|id| *id < 9), "{place:?}");
        }
        if let Ok(said) = said::unpack(&plan, &bytes, &counts) {
            let (logits, prototypes) = (said.reference_logits.unwrap(), said.prototypes.unwrap());
            assert!(logits.len() == 9 && logits.iter().all(|z| z.is_finite()));
            assert!(prototypes.counts.len() == 3 && prototypes.means.iter().all(|x| x.is_finite()));
        }
    }
}

/// A file of reference texts: what is read has one form.
pub(crate) fn reference_texts(bytes: &[u8]) {
    if let Ok(set) = ReferenceTexts::parse(bytes) {
        assert_eq!(set.to_bytes().unwrap(), bytes);
    }
}

/// A keyring document, and the keyring in it without its signatures.
pub(crate) fn keyring(bytes: &[u8]) {
    let _ = open_document(bytes, None);
    if let Ok(keyring) = decode::<gaisnet::trust::keyring::Keyring>(bytes, CAP) {
        assert_eq!(decode(&encode(&keyring).unwrap(), CAP), Ok(keyring.clone()));
        let _ = seal_document(&keyring, &[]);
        for entry in keyring.nodes() {
            assert!(keyring.by_key(entry.key.key_id()).is_some());
        }
    }
}

/// A reply of the tier above.
pub(crate) fn escalation(bytes: &[u8]) {
    let edge = Name::new("edge").unwrap();
    let labels = ["healthy".to_owned(), "inner".to_owned()];
    for labels in [&labels[..], &[]] {
        if let Ok(Some((ticket, Ok(heard)))) =
            cascade::parse_reply(bytes, BootId([0xab; 16]), &edge, labels)
        {
            assert!(cascade::id_of(BootId([0xab; 16]), ticket).is_some());
            assert!(heard.value.is_finite() && (0.0..=1.0).contains(&heard.confidence));
        }
    }
}

/// A signed head and a proof.
pub(crate) fn checkpoint(bytes: &[u8]) {
    if let Ok(note) = SignedCheckpoint::parse(bytes) {
        assert_eq!(note.to_text().as_bytes(), bytes, "two texts of one checkpoint");
    }
    if let Ok(proof) = InclusionProof::parse(bytes) {
        assert_eq!(proof.to_text().as_bytes(), bytes, "two texts of one proof");
    }
}

/// An export: `name NUL length (2 bytes) content`, one behind the other.
pub(crate) fn tiles(bytes: &[u8]) {
    let mut files = BTreeMap::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let (name, behind) = rest.split_at(end);
        let [_, high, low, content @ ..] = behind else { break };
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(content.len());
        let (content, more) = content.split_at(length);
        files.insert(String::from_utf8_lossy(name).into_owned(), content.to_vec());
        rest = more;
    }
    let origin = Origin { federation: name("fed"), node: name("cloud") };
    let _ = verify_export(&files, &origin, &[]);
}

/// An operator's JSON, under each name.
pub(crate) fn command(bytes: &[u8]) {
    let policy = command::CommandPolicy::new(["status", "pause"]).unwrap();
    let _ = command::is_signed(bytes);
    for kind in command::CommandKind::ALL {
        for outcome in [
            command::parse(kind.as_str(), bytes, false, Wall(0), &policy),
            command::parse_signed(kind.as_str(), bytes, Wall(0)),
        ] {
            match outcome {
                Err(error) => {
                    assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 4_096);
                }
                Ok(command::Command { action: command::Action::Rollout { verb, .. }, .. }) => {
                    rollout(&name("toy"), &verb);
                }
                Ok(_) => {}
            }
        }
    }
}

/// A plan that came by a command.
fn rollout(model: &Name, verb: &command::RolloutVerb) {
    let command::RolloutVerb::Plan { version, automatic, stages } = verb else { return };
    let Ok(plan) = Plan::read(model.clone(), *version, *automatic, stages) else { return };
    let members = plan.stages.iter().flat_map(|stage| stage.nodes.clone()).collect();
    let config = RolloutConfig {
        model: model.clone(),
        base: Digest([0; 32]),
        served: 0,
        widest: Stage::Site,
        members,
        sites: BTreeMap::new(),
        approvers: BTreeSet::new(),
        four_eyes: false,
        freezes: Vec::new(),
    };
    // Whoever is asked whether it could be met has to come to an end.
    let _ = plan.check_beforehand(&name("anna"), &config);
}

/// A label from quality inspection.
pub(crate) fn feedback(bytes: &[u8]) {
    let (policy, now) = (command::CommandPolicy::new(["feedback"]).unwrap(), Wall(1 << 41));
    match label::parse(bytes, false, now, &policy) {
        Ok(label) => {
            if let label::About::Span { from, to, .. } = &label.about {
                assert!(from < to && *to <= now && to.0 - from.0 <= label::MAX_SPAN_MS);
            }
            let named = label.class(std::slice::from_ref(&label.label));
            assert_eq!(named, Ok(0));
        }
        Err(error) => assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 4_096),
    }
}

/// A request for an answer, of a model of windows and of one that writes.
pub(crate) fn infer(bytes: &[u8]) {
    let policy = command::CommandPolicy::new(["infer"]).unwrap();
    let length = NonZeroUsize::new(3).unwrap();
    match infer::parse(bytes, false, length, &policy) {
        Ok(request) => match request.input {
            infer::Input::Window(window) => assert_eq!(window.len(), 3),
            infer::Input::AtCut(question) => answerable(&question),
        },
        Err(error) => assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 4_096),
    }
    match text::parse(bytes, false, &policy) {
        Ok(text::TextRequest::Ask(ask)) => {
            assert!(!ask.prompt.is_empty() && ask.stop.len() <= 8 && ask.max_tokens > 0);
        }
        Ok(text::TextRequest::Cancel(_)) => {}
        Err(error) => assert!(serde_json::to_vec(&error.reply()).unwrap().len() < 4_096),
    }
}

/// What a front made of a window: what is taken of it is finite, and as long as it says.
fn answerable(question: &at_cut::AtCut) {
    for coding in [SplitCoding::F32, SplitCoding::Int8] {
        let cut = Cut { blocks: 1, head_in_front: false };
        let terms = SplitTerms { cut, coding, part_bytes: 1_024 };
        if let Ok(values) = terms.answerable(question) {
            assert!(values.data.iter().all(|value| value.is_finite()));
            assert_eq!(values.shape.iter().product::<usize>(), values.data.len());
            assert!(terms.question(question.front, &values).is_ok());
        }
    }
}

/// A sensor's telegram, in each format and for each use. The first byte chooses the pointer.
pub(crate) fn tags(bytes: &[u8]) {
    let Some((first, payload)) = bytes.split_first() else { return };
    let pointer = ["", "/value", "/a/0", "/~1/~0"][usize::from(*first) % 4];
    for format in [Format::Json, Format::Csv, Format::F32Le] {
        for binds in [Binds::Feature { model: name("m") }, Binds::Label, Binds::Idle] {
            let pointer = if format == Format::Json { pointer } else { "" };
            if let Ok(tag) = Tag::new("a/+/b", format, pointer, binds) {
                let _ = tag.read(payload);
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(payload) {
        let _ = Tag::new("a", Format::Json, text, Binds::Idle);
    }
}

/// A topic, a leaf, and a filter over them.
pub(crate) fn topic(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (filter, topic) = text.split_once('\n').unwrap_or((text, text));
    if let Ok(filter) = Filter::new(filter) {
        let _ = filter.covers(topic);
    }
    if let Ok(leaf) = topic.parse::<Leaf>() {
        assert_eq!(leaf.to_string(), topic);
    }
    let prefix = Prefix::new("gaisnet").unwrap();
    if let Some(parsed) = gaisnet::topic::parse(&prefix, topic) {
        assert_eq!(parsed.branch.topic(&parsed.leaf), topic);
    }
    let _ = (Prefix::new(topic), Name::new(topic), topic.parse::<Digest>());
}

pub(crate) fn ledger_entry(bytes: &[u8]) {
    if let Ok(entry) = Entry::parse(bytes) {
        assert_eq!(entry.to_bytes(), bytes, "two forms of one entry");
    }
}

/// A settings file over each tier's defaults.
#[cfg(feature = "cli")]
pub(crate) fn settings(bytes: &[u8]) {
    use gaisnet::settings::{Layers, Tier};
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for tier in [Tier::Device, Tier::Edge, Tier::Cloud] {
        let mut layers = Layers::new();
        layers.tier(tier).text("fuzz", text);
        let _ = layers.load().into_settings();
        let mut layers = Layers::new();
        layers.tier(tier).set(text);
        let _ = layers.load();
    }
}

/// A recording's CSV.
#[cfg(feature = "cli")]
pub(crate) fn bearings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = std::path::Path::new("fuzz.csv");
    if let Ok(samples) = gaisnet::data::bearings::parse_samples(path, text, 16) {
        assert_eq!(samples.len(), 16);
    }
}

/// A file of images; as many labels are made for it as it says, and it is read as its own labels.
#[cfg(feature = "cli")]
pub(crate) fn idx(bytes: &[u8]) {
    use gaisnet::data::idx;
    let _ = idx::images(bytes, bytes, 10);
    let Ok(found) = idx::parse(bytes) else { return };
    assert_eq!(found.shape.iter().product::<usize>(), found.data.len());
    let n = found.shape[0];
    if n <= CAP {
        let size = u32::try_from(n).unwrap().to_be_bytes();
        let labels = [vec![0, 0, 8, 1], size.to_vec(), vec![3; n]].concat();
        if let Ok(set) = idx::images(bytes, &labels, 10) {
            assert_eq!(set.pixels.len(), set.num_examples() * set.width * set.height);
            assert_eq!(set.choose(&[0, n]).num_examples(), n.min(1));
        }
    }
}

/// A language model in one file.
#[cfg(feature = "torch")]
pub(crate) fn gguf(bytes: &[u8]) {
    if let Ok(loaded) = gaisnet::torch::gguf::read_gguf(bytes) {
        assert!(loaded.config.check().is_ok());
        assert_eq!(loaded.weights.layout(), loaded.config.layout());
        let ids = loaded.tokenizer.encode("ab 12").unwrap();
        let _ = loaded.tokenizer.decode(&ids).unwrap();
    }
}

/// A base's card, of either kind.
#[cfg(feature = "torch")]
pub(crate) fn model_card(bytes: &[u8]) {
    use gaisnet::torch::Card;
    match Card::parse(bytes) {
        Ok(Card::Adopted(card)) => {
            let text = card.to_toml().unwrap();
            assert_eq!(Card::parse(text.as_bytes()).unwrap(), Card::Adopted(card));
        }
        Ok(Card::Signal(card)) => {
            let _ = (card.to_toml(), card.architecture.check());
        }
        Err(_) => {}
    }
}

/// What a client sends to the embedded broker, through the codec of its front.
#[cfg(feature = "broker")]
pub(crate) fn packets(bytes: &[u8]) {
    use rumqttd::protocol::Protocol;
    let mut stream = bytes::BytesMut::from(bytes);
    while rumqttd::protocol::v4::V4.read_mut(&mut stream, 4_096).is_ok() {}
}

/// Weights: what is taken is written again, and read again bit for bit.
#[cfg(feature = "torch")]
pub(crate) fn safetensors(bytes: &[u8]) {
    use gaisnet::torch::safetensors::{decode, encode};
    if let Ok(set) = decode(bytes) {
        assert!(set.check_finite().is_ok());
        let again = encode(&set).unwrap();
        assert_eq!(encode(&decode(&again).unwrap()).unwrap(), again);
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}
