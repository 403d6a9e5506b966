//! The plant's side as pure code: telegrams that SCADA reads, commands, tags, windows, requests.
//!
//! No IO and no clock here: callers bring the payload, the time and what they know of the broker's
//! flags. What comes from outside has a cap before it is parsed, and every refusal says what was
//! wrong and what would be right.
//!
//! ```text
//! plant topic -> tags -> window -> (model) -> telegram::Inference -> inference/{model}
//! infer/{model} -> infer -> (model) -> infer::InferReply          -> reply/infer
//!                           escalation: to the tier above, and its replies
//!                           at_cut: what a front made of a window, to the back at the edge
//! infer/{model} -> text -> (model) -> text::TextPiece, TextAnswer -> stream/{id}, reply/infer
//! feedback/{model} -> feedback -> answer_book     -> telegram::Reply    -> reply/feedback
//! cmd/{name} -> command -> (node)   -> telegram::Reply            -> reply/{name}
//! ```

pub mod answer_book;
pub mod at_cut;
pub mod calendar;
pub mod command;
pub mod escalation;
pub mod feed;
pub mod feedback;
pub mod infer;
mod object;
#[cfg(test)]
mod page_tests;
pub mod replay;
mod request_id;
pub mod tags;
pub mod telegram;
pub mod text;
pub mod window;

pub use object::FieldError;
pub use request_id::{RequestId, RequestIdError};
