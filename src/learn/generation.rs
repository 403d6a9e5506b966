//! What a [`Scheduler`](super::Scheduler) is asked and what it tells: plain values.

use super::{AdapterId, LearnError, Sampling};
use crate::time::Mono;

/// Bounds of a [`Scheduler`](super::Scheduler).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sequences that run together, > 0.
    pub running: usize,
    /// Requests that wait; one more is refused as busy.
    pub waiting: usize,
    /// Prompt tokens after which no further request joins in the same step, so that a step stays short.
    pub prompt_tokens: usize,
    /// Most bytes of an answer's text as JSON writes it; a longer one ends there.
    pub answer_bytes: usize,
    /// Adapters that are loaded with a name.
    pub named: usize,
}

/// A request for text.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// What to continue.
    pub prompt: String,
    /// Most tokens of the answer, > 0; the context's end may come before.
    pub max_tokens: u32,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// For the draws.
    pub seed: u64,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// Whether to tell each piece of text as it comes.
    pub stream: bool,
    /// With which adapter; none for the latest version.
    pub adapter: Option<AdapterId>,
    /// When nobody waits any more.
    pub deadline: Mono,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string came.
    Stop,
    /// It has as many tokens as were asked for, or as there is room for.
    Length,
    /// The asker didn't want it any more.
    Cancelled,
    /// Its time was up.
    Deadline,
}

impl Finish {
    /// The word for it in telegrams.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Its text, without the prompt.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// The adapter that made all of it; none when it ended before it began.
    pub adapter: Option<AdapterId>,
    /// Tokens of the answer.
    pub tokens: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

/// News about the request of a ticket.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The next piece of a streamed answer, never empty, and the adapter that makes it.
    Piece(String, AdapterId),
    /// Its end; nothing follows.
    End(Result<Generated, GenerateError>),
}

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// As many requests as may wait are waiting.
    #[error("busy: {waiting} requests are waiting already")]
    Busy {
        /// Their number.
        waiting: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, but prompt and answer together have room for {context}"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that the model can look at.
        context: usize,
    },
    /// The adapter isn't here, or not any more.
    #[error("there is no adapter {wanted:?} here, only {held}")]
    UnknownAdapter {
        /// What was asked for.
        wanted: String,
        /// What there is.
        held: String,
    },
    /// The model failed.
    #[error(transparent)]
    Learn(#[from] LearnError),
}

impl GenerateError {
    /// A short word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::EmptyPrompt => "empty_prompt",
            Self::PromptTooLong { .. } => "prompt_too_long",
            Self::UnknownAdapter { .. } => "unknown_adapter",
            Self::Learn(error) => error.kind(),
        }
    }

    /// The way out, for the person who asked.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "try again in a moment",
            Self::EmptyPrompt => "send at least one word",
            Self::PromptTooLong { .. } => "send a shorter prompt, or a part of it",
            Self::UnknownAdapter { .. } => {
                "name one of those, or leave `adapter` out for the version that is served"
            }
            Self::Learn(_) => "the node's log tells more",
        }
    }
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { running: 8, waiting: 64, prompt_tokens: 256, answer_bytes: 48 << 10, named: 8 }
    }
}
