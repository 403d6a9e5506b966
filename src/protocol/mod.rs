//! The state machines: `(now, input) -> Vec<Effect>`, without IO, clock, thread or randomness.
//!
//! Two of them make all tiers:
//! - [`Round`] offers work to its members, collects contributions until quorum and deadline,
//!   has them combined, publishes the result;
//! - [`Member`] takes an offer, contributes once, and applies the result.
//!
//! A device is a `Member`, a cloud is a `Round`, and [`Relay`] is a `Round` for its devices whose
//! outcome is its contribution as a `Member` of the cloud's round. [`Fetches`] gets big blobs in
//! chunks for any of them, and [`update`] is the arithmetic between wire and `learn`.
//!
//! Beside them, [`cascade`] decides who answers a request, this node or the tier above.
//!
//! Called by the role actors; their effects are carried out by `actors/runner.rs`, which commits
//! before it publishes. A machine is rebuilt from what its `Put` effects left in the store.

pub mod cascade;
mod effect;
mod escalations;
mod fetch;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod guard;
mod member;
mod relay;
mod round;
mod sense;
pub mod update;

pub use effect::{
    CombineInput, CombineJob, Delivery, Effect, Input, Job, Timer, To, TrainTask, Weighed, Work,
};
pub use escalations::{Escalations, Left};
pub use fetch::{Ask, Fetches, Taken};
pub use member::{Member, MemberConfig};
pub use relay::{Relay, RelayConfig};
pub use round::{Owner, Round, RoundConfig, RoundView};
