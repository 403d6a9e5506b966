//! The benchmarks, used by `benches/gaisnet.rs` and, in their quick form, by `tests/benchmarks.rs`.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "measures; fails loudly when a part of it doesn't work"
)]

pub mod aggregation;
pub mod bare;
pub mod chunks;
pub mod envelope;
#[cfg(feature = "torch")]
pub mod federation;
pub mod latency;
pub mod messages;
pub mod output;
pub mod plant;
pub mod station;
pub mod stats;
#[path = "../../tests/support/mod.rs"]
pub mod support;

pub use stats::{Effort, Row};

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Aggregation,
    Envelope,
    Messages,
    Chunks,
    Latency,
    Federation,
}

impl Part {
    /// Aggregation first: its peak of memory would hide under that of the others.
    pub const ALL: [Self; 6] = [
        Self::Aggregation,
        Self::Envelope,
        Self::Messages,
        Self::Chunks,
        Self::Latency,
        Self::Federation,
    ];

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.as_str() == word)
    }

    pub fn words() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    /// Measures; each figure is reported as it comes.
    pub fn run(self, effort: Effort, report: &mut dyn FnMut(Row)) {
        match self {
            Self::Aggregation => aggregation::run(effort, report),
            Self::Envelope => envelope::run(effort, report),
            Self::Messages => messages::run(effort, report),
            Self::Chunks => chunks::run(effort, report),
            Self::Latency => latency::run(effort, report),
            #[cfg(feature = "torch")]
            Self::Federation => federation::run(effort, report),
            #[cfg(not(feature = "torch"))]
            Self::Federation => support::skip("the part federation needs a build with libtorch"),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Aggregation => "aggregation",
            Self::Envelope => "envelope",
            Self::Messages => "messages",
            Self::Chunks => "chunks",
            Self::Latency => "latency",
            Self::Federation => "federation",
        }
    }
}
