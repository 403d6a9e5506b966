//! The bytes of released messages. `tests/golden/wire/<name>.bin` (and as text in `<name>.hex`)
//! never changes: a message that encodes to other bytes is another message.

use std::path::PathBuf;

use super::{
    Answer, Assignment, BaseChunk, BaseFile, Blob, Body, Candidate, Cells, Checkpoint, Chunk,
    ClassSummary, Coding, Command, Contribution, CopyPart, Evidence, Frame, Get, Kind, Knowledge,
    KnowledgePlan, Lease, Manifest, Merging, Mirror, Offer, PackedSet, PackedTensor, Plan, Promise,
    Receipt, Reference, Result as RoundResult, Settled, SiteEvidence, SpectraPlan, SplitCoding,
    SplitMessage, StateCopy, Tally, TopLogitsPlan, Verdict, Wanted, Wishes, decode, encode,
};
use crate::ids::{BootId, Digest, Name, UpdateId};
use crate::time::Wall;
use crate::topic::{Branch, Prefix};
use crate::trust::keys::SigningKey;
use crate::trust::{Sealer, To};

fn plan() -> Plan {
    Plan {
        adapter_delta: true,
        class_logits: true,
        local_steps: 200,
        batch_size: 32,
        learning_rate: 0.01,
        prox_mu: 0.5,
        distill_lambda: 1.0,
        rank: 8,
        alpha: 16.0,
        coding: Coding::Int8,
        block: 128,
        min_cell: 20,
        seed: u64::MAX,
        final_rate: None,
        local_epochs: None,
        knowledge: None,
        cluster_rounds: None,
    }
}

fn summary() -> ClassSummary {
    let logits = [1.5_f32, -1.5, 0.0, 0.0];
    let mean_logits = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    ClassSummary { mean_logits, counts: vec![300, 0] }
}

fn offer() -> Offer {
    Offer {
        island: None,
        knowledge: None,
        round: 7,
        model: Name::new("bearing").unwrap(),
        base: Digest([0xba; 32]),
        version: 6,
        adapter: Blob::Inline(vec![1, 2, 3]),
        class_targets: None,
        plan: plan(),
        deadline_ms: 60_000,
        outer: Some(Digest([0x07; 32])),
    }
}

/// Asks for whole passes instead of steps.
fn offer_of_epochs() -> Offer {
    Offer { plan: Plan { local_epochs: Some(10), ..plan() }, ..offer() }
}

fn contribution() -> Contribution {
    Contribution {
        knowledge: None,
        offer: Digest([0x0f; 32]),
        version: 6,
        num_examples: 1_000,
        num_devices: 4,
        steps: 200,
        loss_first: 2.25,
        loss_last: 0.5,
        risk: None,
        stacked: true,
        delta: Some(Blob::Manifest(Manifest {
            sha256: Digest([0xde; 32]),
            bytes: 70_000,
            chunk_bytes: 65_536,
            chunks: vec![Digest([1; 32]), Digest([2; 32])],
        })),
        class_logits: Some(summary()),
    }
}

fn result() -> RoundResult {
    RoundResult {
        knowledge: None,
        offer: Digest([0x0f; 32]),
        version: 7,
        adapter: Blob::Inline(vec![4, 5, 6]),
        class_targets: Some(summary()),
        contributors: 3,
        contributor_set: Digest([0xc5; 32]),
    }
}

fn said() -> Knowledge {
    Knowledge { set: Blob::Inline(vec![7, 8, 9]), counts: vec![300, 0] }
}

/// An offer where each node has a model of its own.
fn offer_of_knowledge() -> Offer {
    let knowledge = KnowledgePlan {
        prototypes: true,
        reference_logits: true,
        reference: Some(Reference {
            generator: Name::new("bearing-physics-1").unwrap(),
            seed: 1,
            count: 600,
            digest: Digest([0x4e; 32]),
            classes: None,
            unlabelled: false,
        }),
        labels: Digest([0x1a; 32]),
        alpha: 0.5,
        reference_weight: 1.0,
        prototype_weight: 0.25,
        merging: Merging::Median,
        generator_weight: None,
        top_logits: None,
        spectra: None,
    };
    let plan = Plan { adapter_delta: false, knowledge: Some(knowledge), ..plan() };
    Offer { adapter: Blob::Inline(Vec::new()), plan, knowledge: Some(said()), ..offer() }
}

/// The same where layers are asked for, and a generator comes back.
fn offer_of_generator() -> Offer {
    let mut offer = offer_of_knowledge();
    if let Some(plan) = offer.plan.knowledge.as_mut() {
        plan.generator_weight = Some(0.5);
    }
    offer
}

/// The same where spectra are asked for.
fn offer_of_spectra() -> Offer {
    let mut offer = offer_of_knowledge();
    if let Some(plan) = offer.plan.knowledge.as_mut() {
        plan.reference_logits = false;
        plan.spectra = Some(SpectraPlan { bands: 256, grades: 2 });
    }
    offer
}

/// The same between models that write.
fn offer_of_top_logits() -> Offer {
    let mut offer = offer_of_reference_texts();
    if let Some(plan) = offer.plan.knowledge.as_mut() {
        let (tokenizer, tokens) = (Digest([0x70; 32]), Digest([0x71; 32]));
        plan.top_logits = Some(TopLogitsPlan { top: 128, vocab: 49_152, tokenizer, tokens });
        plan.prototypes = false;
        plan.reference.iter_mut().for_each(|reference| reference.unlabelled = false);
    }
    offer.knowledge.iter_mut().for_each(|said| said.counts.clear());
    offer
}

/// A relay's round of its own.
fn offer_of_island() -> Offer {
    Offer { outer: None, island: Some(41), ..offer() }
}

/// The same about texts that lie in a file, whose classes nobody knows.
fn offer_of_reference_texts() -> Offer {
    let mut offer = offer_of_knowledge();
    if let Some(reference) = offer.plan.knowledge.as_mut().and_then(|plan| plan.reference.as_mut())
    {
        reference.generator = Name::new("excavator-orders-1").unwrap();
        (reference.classes, reference.unlabelled) = (Some(11), true);
    }
    offer
}

/// A version that one device serves and another answers by unseen.
fn assignment() -> Assignment {
    let adapter = |byte: u8| Manifest {
        sha256: Digest([byte; 32]),
        bytes: 5_000,
        chunk_bytes: 4_096,
        chunks: vec![Digest([0xc0; 32]), Digest([0xc1; 32])],
    };
    Assignment {
        model: Name::new("bearing").unwrap(),
        serial: 9,
        stable: 11,
        stable_adapter: Some(adapter(0xa1)),
        candidate: Some(Candidate {
            version: 12,
            adapter: adapter(0xa2),
            serve: [Name::new("press-7").unwrap()].into(),
            shadow: [Name::new("press-8").unwrap()].into(),
            slow_ms: 200,
        }),
    }
}

fn evidence() -> Evidence {
    let tally = Tally {
        answers: 64,
        errors: 1,
        slow: 2,
        judged: 32,
        wrong: 3,
        base_judged: 31,
        base_wrong: 4,
        compared: 60,
        disagreed: 5,
        drift: 0.0,
    };
    Evidence { serial: 9, version: 12, life: 3, tally, gave_up: false }
}

fn site_evidence() -> SiteEvidence {
    let tally = evidence().tally;
    SiteEvidence { serial: 9, version: 12, tally, nodes: 2, gave_up: false }
}

/// One of each kind, and the other variants of those that have some.
fn bodies() -> Vec<(&'static str, Body)> {
    let receipt = |verdict| Body::Receipt(Receipt { update: UpdateId([0xab; 16]), verdict });
    let chunks = Wanted::Chunks { sha256: Digest([0xde; 32]), indices: vec![0, 1, 300] };
    let of_base = Wanted::Base { sha256: Digest([0xba; 32]), indices: vec![0, 1, 1_500] };
    let base = |chunk| Body::Base(BaseFile { sha256: Digest([0xba; 32]), chunk });
    let base_chunk = BaseChunk { index: 1_500, chunk_bytes: 65_536, data: vec![9; 5] };
    let offer_id = Digest([0x0f; 32]);
    vec![
        ("offer", Body::Offer(offer().into())),
        ("assignment", Body::Assignment(assignment())),
        (
            "assignment_of_nothing_new",
            Body::Assignment(Assignment { stable_adapter: None, candidate: None, ..assignment() }),
        ),
        ("evidence", Body::Evidence(evidence())),
        ("site_evidence", Body::SiteEvidence(site_evidence())),
        ("evidence_given_up", Body::Evidence(Evidence { gave_up: true, ..evidence() })),
        (
            "offer_falling_rate",
            Body::Offer(
                Offer { plan: Plan { final_rate: Some(0.005), ..plan() }, ..offer() }.into(),
            ),
        ),
        ("answer", Body::Answer(Answer { offer: offer_id, accepted: true, reason: String::new() })),
        ("offer_epochs", Body::Offer(offer_of_epochs().into())),
        (
            "answer_declined",
            Body::Answer(Answer { offer: offer_id, accepted: false, reason: "paused".into() }),
        ),
        ("offer_of_island", Body::Offer(offer_of_island().into())),
        (
            "offer_of_cluster",
            Body::Offer(
                Offer { plan: Plan { cluster_rounds: Some(4), ..plan() }, ..offer() }.into(),
            ),
        ),
        ("contribution", Body::Contribution(contribution().into())),
        (
            "contribution_logits_only",
            Body::Contribution(
                Contribution { delta: None, stacked: false, ..contribution() }.into(),
            ),
        ),
        ("offer_of_knowledge", Body::Offer(offer_of_knowledge().into())),
        ("offer_of_generator", Body::Offer(offer_of_generator().into())),
        ("offer_of_spectra", Body::Offer(offer_of_spectra().into())),
        ("offer_of_reference_texts", Body::Offer(offer_of_reference_texts().into())),
        ("offer_of_top_logits", Body::Offer(offer_of_top_logits().into())),
        (
            "contribution_of_knowledge",
            Body::Contribution(
                Contribution {
                    delta: None,
                    stacked: false,
                    knowledge: Some(said()),
                    ..contribution()
                }
                .into(),
            ),
        ),
        (
            "result_of_knowledge",
            Body::Result(
                RoundResult {
                    adapter: Blob::Inline(Vec::new()),
                    knowledge: Some(said()),
                    ..result()
                }
                .into(),
            ),
        ),
        ("receipt", receipt(Verdict::Accepted)),
        ("receipt_late", receipt(Verdict::Late)),
        ("receipt_refused", receipt(Verdict::Refused("too_stale".into()))),
        ("result", Body::Result(result().into())),
        ("get", Body::Get(Get { wanted: Wanted::Latest })),
        ("get_chunks", Body::Get(Get { wanted: chunks })),
        ("get_base", Body::Get(Get { wanted: of_base })),
        ("get_round", Body::Get(Get { wanted: Wanted::Round(Wishes { drifts: 2, labels: 300 }) })),
        ("base", base(Some(base_chunk))),
        ("base_absent", base(None)),
        ("keyring", Body::Keyring(Checkpoint { document: b"a keyring".to_vec() })),
        ("checkpoint", Body::Checkpoint(Checkpoint { document: b"a checkpoint".to_vec() })),
        (
            "command",
            Body::Command(Command { name: "round.start".into(), json: b"{\"id\":1}".to_vec() }),
        ),
        ("frame", Body::Frame(frame())),
        ("lease", Body::Lease(Lease { ms: 15_000, asks: true, alone: false, told: 41 })),
        ("promise", Body::Promise(Promise { before: 6 })),
        ("mirror", Body::Mirror(Mirror::Copy(state_copy()))),
        ("mirror_have", Body::Mirror(Mirror::Have { seq: 9, wants: true })),
    ]
}

fn state_copy() -> StateCopy {
    StateCopy { seq: 9, since: 8, basis: Some(6), told: 40, part: Blob::Inline(vec![1, 2, 3]) }
}

fn copy_part() -> CopyPart {
    CopyPart {
        puts: vec![("round/number".into(), vec![7].into())],
        deletes: vec!["round/accepted/edge-n".into()],
        blobs: vec![Manifest {
            sha256: Digest([0xde; 32]),
            bytes: 70_000,
            chunk_bytes: 65_536,
            chunks: vec![Digest([1; 32]), Digest([2; 32])],
        }],
    }
}

fn frame() -> Frame {
    Frame { run: 3, step: 17, turn: 1, part: 1, parts: 2, data: vec![8; 4] }
}

/// One of each variant of what frames carry, before it is compressed.
fn split_messages() -> Vec<(&'static str, SplitMessage)> {
    let cells = || Cells { shape: vec![1, 2, 3], coding: SplitCoding::Int8, data: vec![1; 10] };
    let settled = Some(Settled { step: 16, squared: 0.25 });
    vec![
        (
            "split.open",
            SplitMessage::Open {
                offer: Digest([0x0f; 32]),
                cut: 1,
                head_in_front: false,
                coding: SplitCoding::F32,
                class_counts: vec![300, 0, 7],
            },
        ),
        ("split.opened", SplitMessage::Opened),
        ("split.forward", SplitMessage::Forward { settled, activations: cells(), labels: vec![2] }),
        ("split.output", SplitMessage::Output { output: cells() }),
        ("split.output_gradient", SplitMessage::OutputGradient { gradient: cells() }),
        ("split.backward", SplitMessage::Backward { loss: 0.5, squared: 1.5, gradient: cells() }),
        ("split.finish", SplitMessage::Finish { settled: None }),
        ("split.finished", SplitMessage::Finished),
        ("split.refused", SplitMessage::Refused { reason: "unknown_run".into() }),
    ]
}

fn chunk() -> Chunk {
    Chunk { sha256: Digest([0xde; 32]), index: 300, data: vec![9; 5] }
}

fn packed_set() -> PackedSet {
    let tensor =
        |name: &str, shape: &[u32]| PackedTensor { name: name.into(), shape: shape.into() };
    PackedSet {
        tensors: vec![tensor("q.lora_a", &[1, 2]), tensor("q.lora_b", &[1, 1])],
        coding: Coding::F32,
        block: 0,
        data: [0.5_f32, -0.25, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The body as it is sealed with a fixed key: Ed25519 signs the same bytes with the same bytes.
fn sealed(body: &Body) -> Vec<u8> {
    let branch = Branch {
        prefix: Prefix::new("gaisnet").unwrap(),
        site: Name::new("north").unwrap(),
        line: Name::new("_").unwrap(),
        node: Name::new("edge-n").unwrap(),
    };
    let key = SigningKey::generate(&[0x5e; 32]);
    let federation = Name::new("pilot").unwrap();
    let mut sealer = Sealer::new(key, federation, branch, BootId([0xb0; 16]));
    sealer.seal(&To::Anyone, body, 7, 2, Wall(1_700_000_000_000)).unwrap().1
}

fn path(name: &str, extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/wire/{name}.{extension}"))
}

/// Every golden file and the bytes that today's code makes.
fn all() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (name, body) in bodies() {
        all.push((name.to_owned(), body.to_bytes().unwrap()));
        all.push((format!("{name}.sealed"), sealed(&body)));
    }
    all.push(("chunk".into(), encode(&chunk()).unwrap()));
    all.push(("copy_part".into(), encode(&copy_part()).unwrap()));
    all.push(("packed_set.plain".into(), encode(&packed_set()).unwrap()));
    for (name, message) in split_messages() {
        all.push((name.to_owned(), encode(&message).unwrap()));
    }
    all
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name, "bin")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn today_encodes_to_the_released_bytes() {
    for (name, bytes) in all() {
        assert_eq!(hex::encode(bytes), hex::encode(golden(&name)), "{name}");
    }
}

#[test]
fn the_released_bytes_decode_to_what_was_said() {
    for (name, body) in bodies() {
        assert_eq!(Body::from_bytes(body.kind(), &golden(name)).unwrap(), body, "{name}");
    }
    for (name, message) in split_messages() {
        assert_eq!(decode::<SplitMessage>(&golden(name), 1 << 20).unwrap(), message, "{name}");
    }
    assert_eq!(decode::<Chunk>(&golden("chunk"), 1 << 20).unwrap(), chunk());
    assert_eq!(decode::<CopyPart>(&golden("copy_part"), 1 << 20).unwrap(), copy_part());
    assert_eq!(decode::<PackedSet>(&golden("packed_set.plain"), 1 << 20).unwrap(), packed_set());
    // Another zstd may compress to other bytes, so these are only read.
    assert_eq!(PackedSet::from_bytes(&golden("packed_set"), 1 << 20).unwrap(), packed_set());
}

#[test]
fn each_kind_has_a_golden_file_and_its_text_says_the_same() {
    let bodies = bodies();
    for kind in Kind::ALL {
        assert!(bodies.iter().any(|(name, _)| *name == kind.as_str()), "{}", kind.as_str());
    }
    for (name, _) in all() {
        let text = std::fs::read_to_string(path(&name, "hex")).unwrap();
        let joined: String = text.split_whitespace().collect();
        assert_eq!(joined, hex::encode(golden(&name)), "{name}");
    }
}

#[test]
#[ignore = "writes the files of messages that are new, never over one that is there"]
fn write_the_golden_files_of_new_messages() {
    let mut files = all();
    files.push(("packed_set".into(), packed_set().to_bytes().unwrap()));
    for (name, bytes) in files {
        if path(&name, "bin").exists() {
            continue;
        }
        let lines: Vec<String> = bytes.chunks(32).map(hex::encode).collect();
        std::fs::write(path(&name, "bin"), &bytes).unwrap();
        std::fs::write(path(&name, "hex"), lines.join("\n") + "\n").unwrap();
    }
}
