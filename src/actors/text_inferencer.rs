//! Answers of a model that writes text: requests in, answers and streamed pieces out.
//!
//! ```text
//!   infer/{model} --> scada::text --> text lane --> stream/{id}, reply/infer
//!   runner: Serve{version} ------------'    (swaps the adapter between two steps)
//! ```
//! Everything here is volatile and stays in the site's zone. Each request that is taken gets one answer,
//! made by one version from start to end, which it names. Repeats of a request that is being answered
//! (the broker may deliver twice) are answered once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::MAILBOX;
use super::busy::{Busy, Hold};
use super::figures::Figures;
use super::inferencer::{Loaded, Request, Serve, TagSample};
use super::machines::Machines;
use super::role::Checked;
use super::text_lane::{Letter, TextLane, TextRequest};
use crate::bus::{Bus, Priority, Publish};
use crate::ids::{Digest, Name, Version};
use crate::learn::{AdapterId, Ask, Finish, GenerateError, Generated, LearnError, Sampling, Told};
use crate::protocol::Check;
use crate::rng::Stream;
use crate::scada::RequestId;
use crate::scada::command::CommandPolicy;
use crate::scada::infer::{InferError, InferFault};
use crate::scada::tags::{Reading, TagMap};
use crate::scada::telegram::{AdapterMeta, Quality, ReplyStatus, Tier};
use crate::scada::text::{self, TextAnswer, TextAsk, TextPiece, WantedAdapter};
use crate::time::{Clock, Now};
use crate::topic::{Branch, CommandName};

/// What a [`TextInferencer`] works with.
pub struct TextParts {
    /// The part of the topic tree that it writes to.
    pub branch: Branch,
    /// Its model.
    pub model: Name,
    /// Adapters of the lane's that have names.
    pub adapters: Vec<AdapterMeta>,
    /// Where it stands.
    pub tier: Tier,
    /// Which requests are taken unsigned.
    pub policy: CommandPolicy,
    /// Plant topics: those that bind `idle` count here.
    pub tags: TagMap,
    /// The thread that writes.
    pub lane: TextLane,
    /// Whether the machine works.
    pub busy: Arc<Busy>,
    /// The link on the plant's side.
    pub bus: Arc<dyn Bus>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub figures: Arc<Figures>,
    /// Of the draws of requests that bring no seed.
    pub seed: u64,
    /// Hears whether the base takes the served version's adapter.
    pub checked: Recipient<Checked>,
}

/// See the module.
pub struct TextInferencer {
    parts: TextParts,
    machines: Machines,
    seeds: Stream,
    /// By ticket.
    asked: BTreeMap<u64, Asked>,
    tickets: u64,
    /// The version that answers, as far as the lane has told.
    version: Version,
    /// The last turn that was to be served.
    turn: u64,
    told: (Sender<Letter>, Option<Receiver<Letter>>),
}

/// Who waits for an answer.
#[derive(Debug)]
struct Asked {
    id: Option<RequestId>,
    payload: Digest,
    stream: Option<Name>,
    pieces: u64,
    at: Now,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Heard(Letter);

impl TextInferencer {
    /// Requests that are answered or wait; more get a busy reply.
    pub const MAX_ASKED: usize = 64;
    /// News that wait for this actor.
    const NEWS: usize = 64;
    const AGAIN: Duration = Duration::from_millis(50);

    /// An inferencer that answers with the bare base until it is told another version.
    pub fn new(parts: TextParts) -> Self {
        let (sender, receiver) = channel(Self::NEWS);
        Self {
            machines: Machines::new(Arc::clone(&parts.busy)),
            seeds: Stream::new(parts.seed, "requests without a seed"),
            parts,
            asked: BTreeMap::new(),
            tickets: 0,
            version: 0,
            turn: 0,
            told: (sender, Some(receiver)),
        }
    }

    fn request(&mut self, request: &Request) -> Result<(), InferError> {
        let Request { model, payload, retained } = request;
        let parsed = text::parse(payload, *retained, &self.parts.policy)?;
        match parsed {
            text::TextRequest::Ask(ask) if *model != self.parts.model => {
                Err(InferError::unknown_model(ask.id, model))
            }
            text::TextRequest::Cancel(id) if *model != self.parts.model => {
                Err(InferError::unknown_model(Some(id), model))
            }
            text::TextRequest::Ask(ask) => self.ask(ask, Digest::of(payload)),
            text::TextRequest::Cancel(id) => self.cancel(id),
        }
    }

    fn ask(&mut self, ask: TextAsk, payload: Digest) -> Result<(), InferError> {
        if let Some(id) = &ask.id
            && let Some(other) = self.asked.values().find(|asked| asked.id.as_ref() == Some(id))
        {
            if other.payload == payload {
                self.parts.figures.count("repeated_request");
                return Ok(());
            }
            return Err(InferError { id: ask.id, fault: InferFault::IdInUse });
        }
        if self.asked.len() >= Self::MAX_ASKED {
            return Err(InferError::busy(ask.id, self.asked.len()));
        }
        let at = self.parts.clock.now();
        let sampling = Sampling::new(ask.temperature, ask.top_p)
            .map_err(|error| refusal(ask.id.clone(), &error.into()))?;
        let wanted = ask.adapter.map(|adapter| match adapter {
            WantedAdapter::Version(version) => AdapterId::Version(version),
            WantedAdapter::Name(name) => AdapterId::Name(name),
        });
        let request = TextRequest::Ask {
            ticket: self.tickets,
            ask: Ask {
                prompt: ask.prompt,
                max_tokens: ask.max_tokens,
                sampling,
                seed: ask.seed.unwrap_or_else(|| self.seeds.next_u64()),
                stop: ask.stop,
                stream: ask.stream.is_some(),
                adapter: wanted,
                deadline: crate::time::Mono(at.mono.0.saturating_add(ask.deadline_ms)),
            },
            told: self.told.0.clone(),
        };
        if self.parts.lane.submit(request).is_err() {
            return Err(InferError::busy(ask.id, self.asked.len()));
        }
        let asked = Asked { id: ask.id, payload, stream: ask.stream, pieces: 0, at };
        self.asked.insert(self.tickets, asked);
        self.tickets += 1;
        Ok(())
    }

    /// The answer comes from the lane, with what there is of it.
    fn cancel(&mut self, id: RequestId) -> Result<(), InferError> {
        let found = self.asked.iter().find(|(_, asked)| asked.id.as_ref() == Some(&id));
        let Some((ticket, _)) = found else {
            return Err(InferError { id: Some(id), fault: InferFault::UnknownId });
        };
        let cancel = TextRequest::Cancel { ticket: *ticket };
        self.parts.lane.submit(cancel).map_err(|_| InferError::busy(Some(id), self.asked.len()))
    }

    fn piece(&mut self, ticket: u64, text: String, adapter: AdapterId) {
        let now = self.parts.clock.now();
        let Some(asked) = self.asked.get_mut(&ticket) else { return };
        let Some(id) = asked.stream.clone() else { return };
        let n = asked.pieces;
        asked.pieces += 1;
        let (model_version, adapter) = named(Some(adapter));
        let (finish, ts) = (None, now.wall);
        self.stream(&TextPiece { id, n, text, finish, model_version, adapter, ts });
    }

    fn end(&mut self, ticket: u64, end: Result<Generated, GenerateError>) {
        let now = self.parts.clock.now();
        let Some(asked) = self.asked.remove(&ticket) else { return };
        let (finish, adapter) = match &end {
            Ok(generated) => (generated.finish.as_str(), generated.adapter.clone()),
            Err(error) => (error.kind(), None),
        };
        if let Some(id) = asked.stream {
            let (model_version, adapter) = named(adapter);
            let (n, text, finish) = (asked.pieces, String::new(), Some(finish.to_owned()));
            self.stream(&TextPiece { id, n, text, finish, model_version, adapter, ts: now.wall });
        }
        match end {
            Ok(generated) => self.answer(asked.id, generated, asked.at, now),
            Err(error) => self.refuse(&refusal(asked.id, &error)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds are small")]
    fn answer(&mut self, id: Option<RequestId>, generated: Generated, asked: Now, now: Now) {
        let whole = matches!(generated.finish, Finish::Stop | Finish::Length);
        let latency_ms = now.micros.saturating_sub(asked.micros) as f64 / 1_000.0;
        if whole {
            self.parts.figures.answered(latency_ms);
        } else {
            self.parts.figures.count(generated.finish.as_str());
        }
        let served = AdapterId::Version(self.version);
        let (model_version, adapter) = named(Some(generated.adapter.unwrap_or(served)));
        let mut known = self.parts.adapters.iter();
        let adapter_digest =
            known.find(|known| Some(&known.name) == adapter.as_ref()).map(|known| known.digest);
        self.reply(&TextAnswer {
            id,
            status: ReplyStatus::Ok,
            text: generated.text,
            finish: generated.finish.as_str().to_owned(),
            quality: if whole { Quality::Good } else { Quality::Bad },
            tokens: generated.tokens,
            prompt_tokens: generated.prompt_tokens,
            model_version,
            adapter,
            adapter_digest,
            latency_ms,
            tier: self.parts.tier,
            ts: now.wall,
        });
    }

    fn refuse(&self, refused: &InferError) {
        self.parts.figures.count(refused.kind());
        self.reply(&refused.reply());
    }

    fn reply<T: serde::Serialize>(&self, reply: &T) {
        if let Ok(name) = CommandName::new("infer") {
            self.publish(self.parts.branch.reply(&name), reply, true);
        }
    }

    fn stream(&self, piece: &TextPiece) {
        self.publish(self.parts.branch.stream(&piece.id), piece, false);
    }

    fn publish<T: serde::Serialize>(&self, topic: String, telegram: &T, at_least_once: bool) {
        let Ok(payload) = serde_json::to_vec(telegram) else { return };
        let (retain, priority) = (false, Priority::Control);
        let message = Publish { topic, payload, at_least_once, retain, priority };
        if let Err(error) = self.parts.bus.publish(message) {
            self.parts.figures.count(error.kind());
        }
    }
}

/// Version and name of an adapter, as telegrams have them.
fn named(adapter: Option<AdapterId>) -> (Option<Version>, Option<Name>) {
    match adapter {
        None => (None, None),
        Some(AdapterId::Version(version)) => (Some(version), None),
        Some(AdapterId::Name(name)) => (None, Some(name)),
    }
}

fn refusal(id: Option<RequestId>, error: &GenerateError) -> InferError {
    let fault = match error {
        GenerateError::Busy { waiting } => InferFault::Busy { waiting: *waiting },
        other => InferFault::NoAnswer {
            kind: other.kind(),
            message: other.to_string(),
            hint: other.hint(),
        },
    };
    InferError { id, fault }
}

impl Actor for TextInferencer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let Some(mut letters) = self.told.1.take() else { return };
        let me = ctx.address();
        // Whoever sends here waits: the lane, when this actor is behind.
        actix::spawn(async move {
            while let Some(letter) = letters.recv().await {
                if me.send(Heard(letter)).await.is_err() {
                    return;
                }
            }
        });
    }
}

impl Handler<Request> for TextInferencer {
    type Result = ();

    fn handle(&mut self, request: Request, _: &mut Self::Context) {
        if let Err(refused) = self.request(&request) {
            self.refuse(&refused);
        }
    }
}

impl Handler<Heard> for TextInferencer {
    type Result = ();

    fn handle(&mut self, Heard((ticket, told)): Heard, _: &mut Self::Context) {
        match told {
            Told::Piece(text, adapter) => self.piece(ticket, text, adapter),
            Told::End(end) => self.end(ticket, end),
        }
    }
}

impl Handler<Serve> for TextInferencer {
    type Result = ();

    fn handle(&mut self, serve: Serve, ctx: &mut Self::Context) {
        let Some(adapter) = serve.opened(&mut self.turn, &self.parts.figures) else { return };
        let (version, digest) = (serve.version, Digest::of(&serve.adapter));
        let me = ctx.address();
        // Without a bound: there are a few of them at most, and without one the version in use is mistaken.
        let done = Box::new(move |result| me.do_send(Loaded { version, adapter: digest, result }));
        let id = AdapterId::Version(version);
        if self.parts.lane.submit(TextRequest::Load { id, adapter, done }).is_err() {
            // The queue of requests is full: try again behind it.
            self.parts.figures.count("busy");
            ctx.notify_later(serve, Self::AGAIN);
        }
    }
}

impl Handler<Loaded> for TextInferencer {
    type Result = ();

    fn handle(&mut self, loaded: Loaded, ctx: &mut Self::Context) {
        let (version, adapter) = (loaded.version, loaded.adapter);
        // An adapter that the base takes is believed: no text is written to look at.
        let check = match &loaded.result {
            Ok(()) => Check::Passed,
            // No slot was free for it, perhaps: that says nothing of the adapter.
            Err(LearnError::OutOfRange { .. }) => Check::Failed,
            Err(_) => Check::Unfit,
        };
        loaded.settle(&mut self.version, &self.parts.figures);
        let checked = self.parts.checked.clone();
        let told =
            async move { checked.send(Checked { version, adapter, check }).await.unwrap_or(()) };
        ctx.spawn(told.into_actor(self));
    }
}

impl Handler<TagSample> for TextInferencer {
    type Result = ();

    fn handle(&mut self, TagSample { topic, payload }: TagSample, _: &mut Self::Context) {
        for (_, tag) in self.parts.tags.of(&topic) {
            match tag.read(&payload) {
                Ok(Reading::Idle(idle)) => self.machines.said(&topic, Hold::Machine, !idle),
                Ok(Reading::Veto(forbids)) => self.machines.said(&topic, Hold::Veto, forbids),
                Ok(Reading::Samples(_) | Reading::Label(_)) => {
                    self.parts.figures.count("unused_tag");
                }
                Err(error) => self.parts.figures.count(error.kind()),
            }
        }
    }
}
