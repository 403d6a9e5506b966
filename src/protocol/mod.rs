//! The state machines: `(now, input) -> Vec<Effect>`, without IO, clock, thread or randomness.
//!
//! Two of them make all tiers:
//! - [`Round`] offers work to its members, collects contributions until quorum and deadline,
//!   has them combined, publishes the result;
//! - [`Member`] takes an offer, contributes once, and applies the result.
//!
//! A device is a `Member`, a cloud is a `Round`, and [`Relay`] is a `Round` for its devices whose
//! outcome is its contribution as a `Member` of the cloud's round. [`Fetches`] gets big blobs in
//! chunks for any of them, and [`update`] and [`knowledge`] are the arithmetic between wire and `learn`.
//!
//! Called by the role actors; their effects are carried out by `actors/runner.rs`, which commits
//! before it publishes. A machine is rebuilt from what its `Put` effects left in the store.

mod effect;
mod fetch;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod guard;
pub mod knowledge;
mod member;
mod relay;
mod round;
mod sense;
pub mod update;

pub use effect::{
    CombineInput, CombineJob, Delivery, DistilTask, Distils, Effect, Input, Job, Said, Timer, To,
    TrainTask, Weighed, Work,
};
pub use fetch::{Ask, Fetches, Taken};
pub use member::{Knows, Member, MemberConfig};
pub use relay::{Relay, RelayConfig};
pub use round::{Owner, Round, RoundConfig, RoundView};
