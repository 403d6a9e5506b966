//! The state machines: `(now, input) -> Vec<Effect>`, without IO, clock, thread or randomness.
//!
//! Two of them make all tiers:
//! - [`Round`] offers work to its members, collects contributions until quorum and deadline,
//!   has them combined, publishes the result;
//! - [`Member`] takes an offer, contributes once, and applies the result.
//!
//! A device is a `Member`, a cloud is a `Round`, and [`Relay`] is a `Round` for its devices whose
//! outcome is its contribution as a `Member` of the cloud's round. Where a model is split, a device is a
//! [`SplitDevice`] and the relay trains what is behind the cut: sessions between the two take the place
//! of the device's own training. [`Fetches`] gets big blobs in
//! chunks for any of them, [`BaseFetch`] the file of a base before they begin, and [`update`] and [`knowledge`] are
//! the arithmetic between wire and `learn`.
//!
//! Beside them, [`cascade`] decides who answers a request, this node or the tier above; of a split model always
//! the edge, which goes on from the front's values (`halves`). [`Slots`] decides which version a node serves of those
//! that its machine has; where versions are rolled out in stages, by the word of its edge ([`Rollouts`]: the edge's
//! [`Steward`] with [`rollout`], each node's [`Follower`]).
//!
//! Called by the role actors; their effects are carried out by `actors/runner.rs`, which commits
//! before it publishes. A machine is rebuilt from what its `Put` effects left in the store.

mod base;
pub mod cascade;
mod deputy;
mod effect;
mod escalations;
mod failover;
mod fetch;
#[cfg(test)]
pub(crate) mod fixture;
mod follower;
pub(crate) mod guard;
mod halves;
pub mod heads;
mod kept;
pub mod knowledge;
mod member;
mod relay;
pub mod rollout;
mod rollouts;
mod round;
mod sense;
mod session;
mod slots;
pub mod spectra;
mod split_device;
mod steward;
pub mod update;

pub use base::{BaseFetch, Giving, Step};
pub use deputy::{Deputy, DeputyConfig};
pub use effect::{
    CombineInput, CombineJob, Delivery, DistilTask, Distils, Effect, Input, Job, LocalWork, Said,
    ShareBounds, Timer, To, TrainTask, Watch, Weighed, Work,
};
pub use escalations::{Escalations, Left};
pub use failover::{Failover, FailoverConfig, FailoverView};
pub use fetch::{Ask, Fetches, Taken};
pub use follower::{Follower, FollowerConfig};
pub use halves::Asked;
pub use member::{Knows, Member, MemberConfig, SecondEdge};
pub use relay::{IslandTerms, Relay, RelayConfig};
pub use rollouts::{Leads, Rollouts};
#[cfg(any(test, feature = "sim"))]
pub(crate) use round::Held;
pub use round::{Backs, Owner, Round, RoundConfig, RoundView, Triggers};
pub use session::{BackEnd, BackTask, FrontConfig, FrontEnd, FrontTask, SplitTerms};
pub use slots::{Check, RollbackBy, SlotOrder, SlotRefusal, Slots, SlotsConfig, SlotsView};
pub use split_device::SplitDevice;
pub use steward::{KnownVersion, RolloutOrder, Steward, StewardConfig, StewardView};
