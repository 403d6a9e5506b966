//! Topics: who writes what where, as plain values and text.
//!
//! `{prefix}/v1/{site}/{line}/{node}/{leaf}`: a node writes only under its own [`Branch`]; requests
//! and commands to it aside. [`Leaf`] is what may stand at the end, [`spec`] says for each leaf how
//! it travels, and [`filter`] decides whether a subscription covers a topic.
//!
//! Topics come from outside too, so nothing here panics on any text.

mod branch;
pub mod filter;
mod leaf;
pub mod spec;

pub use branch::{Branch, Parsed, Prefix, PrefixError, parse};
pub use leaf::{CommandName, CommandNameError, Leaf};
