//! What a device and its edge say to each other while a split model trains, cut into frames.
//!
//! A [`SplitMessage`] is packed (msgpack, then zstd) and cut into parts that fit a packet each. The parts
//! travel once, signed like everything else, and are never kept: what is lost costs a step, see
//! `protocol/session.rs`. Only a device and its own edge may exchange them (`trust/open.rs`).

use serde::{Deserialize, Serialize};

use super::codec::{CodecError, decode, encode};
use super::compression::{compress, decompress};
use crate::ids::Digest;

/// Most bytes of a whole message, packed and unpacked.
pub const MAX_SPLIT_BYTES: usize = 4 << 20;

/// One part of a [`SplitMessage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// The device's run: each begin of a run has a higher number.
    pub run: u64,
    /// Number of the exchange in its run: a repeat of a question has a higher one.
    pub step: u32,
    /// Turn of the exchange, 0 or 1: where the head is on the device, a step takes two.
    pub turn: u8,
    /// Which part.
    pub part: u16,
    /// How many parts.
    pub parts: u16,
    /// Its bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl Frame {
    /// Most parts of a message.
    pub const MAX_PARTS: u16 = 1024;
    /// Most bytes of a part.
    pub const MAX_PART_BYTES: usize = 64 * 1024;
}

/// What is said; an answer has the run, step and turn of its question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SplitMessage {
    /// Device: a run for this offer begins.
    Open {
        /// Digest of the offer.
        offer: Digest,
        /// Blocks on the device.
        cut: u32,
        /// The head and the labels stay on the device.
        head_in_front: bool,
        /// How activations and gradients travel, both ways.
        coding: SplitCoding,
        /// `[C]`, the device's examples a class; empty where labels stay there.
        class_counts: Vec<u64>,
    },
    /// Edge: it has a back for the run.
    Opened,
    /// Device: a batch up to the cut.
    Forward {
        /// The last step in which the device has changed its half.
        settled: Option<Settled>,
        /// At the cut.
        activations: Cells,
        /// `[n]`, class of each example; empty where labels stay on the device.
        labels: Vec<u32>,
    },
    /// Edge: what the head on the device needs.
    Output {
        /// In front of the head.
        output: Cells,
    },
    /// Device: the loss's gradient at that output.
    OutputGradient {
        /// In the output's shape.
        gradient: Cells,
    },
    /// Edge: the loss's gradient at the cut.
    Backward {
        /// Mean loss of the batch in nats; 0 where the device computed it.
        loss: f32,
        /// Squared length of the gradient of the back's adapter.
        squared: f64,
        /// In the shape of the activations.
        gradient: Cells,
    },
    /// Device: the run is over.
    Finish {
        /// The last step in which the device has changed its half.
        settled: Option<Settled>,
    },
    /// Edge: what the back has learned is on disk.
    Finished,
    /// Edge: no; a short word says why.
    Refused {
        /// See [`SplitMessage::UNKNOWN_RUN`].
        reason: String,
    },
}

/// A step that the device has taken its part in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settled {
    /// Which.
    pub step: u32,
    /// Squared length of the gradient of the front's adapter.
    pub squared: f64,
}

/// Activations or a gradient as they travel, see `learn::Activations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cells {
    /// Sizes, outermost first; the last is the width of a token.
    pub shape: Vec<u32>,
    /// How `data` is written.
    pub coding: SplitCoding,
    /// The values.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// How activations travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitCoding {
    /// As they are.
    F32,
    /// Eight bits a value, a scale a token.
    Int8,
}

impl SplitMessage {
    /// The reason of [`SplitMessage::Refused`] after which a device begins its run again.
    pub const UNKNOWN_RUN: &'static str = "unknown_run";
    /// zstd's level: codes are nearly random.
    const LEVEL: i32 = 1;
    /// Largest window of a zstd frame, as a power of two: that of [`MAX_SPLIT_BYTES`].
    const MAX_WINDOW_LOG: u32 = 22;

    /// Encodes and compresses.
    ///
    /// # Errors
    /// [`CodecError`] when it is over [`MAX_SPLIT_BYTES`] or a number isn't finite.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let plain = encode(self)?;
        if plain.len() > MAX_SPLIT_BYTES {
            return Err(CodecError::TooLarge { cap: MAX_SPLIT_BYTES, actual: plain.len() });
        }
        compress(&plain, Self::LEVEL)
    }

    /// Decompresses and decodes; the bytes may come from an enemy.
    ///
    /// # Errors
    /// [`CodecError`] tells what is wrong first.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(&decompress(bytes, MAX_SPLIT_BYTES, Self::MAX_WINDOW_LOG)?, MAX_SPLIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_bombs_do_not_go_off() {
        let cells = Cells { shape: vec![2, 3], coding: SplitCoding::Int8, data: vec![7; 10] };
        let said = SplitMessage::Backward { loss: 0.5, squared: 1e-9, gradient: cells };
        let bytes = said.to_bytes().unwrap();
        assert_eq!(SplitMessage::from_bytes(&bytes).unwrap(), said);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert_eq!(SplitMessage::from_bytes(&bomb).unwrap_err().kind(), "decompression_bomb");
        let half = &bytes[..bytes.len() / 2];
        assert_eq!(SplitMessage::from_bytes(half).unwrap_err().kind(), "bad_compression");
        let data = vec![0; MAX_SPLIT_BYTES];
        let output = Cells { shape: vec![1, 1], coding: SplitCoding::F32, data };
        let error = SplitMessage::Output { output }.to_bytes().unwrap_err();
        assert_eq!(error.kind(), "too_large");
        let nan = SplitMessage::Finish { settled: Some(Settled { step: 1, squared: f64::NAN }) };
        assert_eq!(nan.to_bytes().unwrap_err().kind(), "not_finite");
    }
}
