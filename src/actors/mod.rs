//! The actors of a node: thin shells around the pure machines.
//!
//! ```text
//!             Delivery            Verified             Vec<Effect>
//!   bus ---> Gateway ---open()---> Role<M> ---step()---> Runner ---commit---> publish ---> ack
//!               |                    ^                     |  timers, chunks
//!               |                    '---- Stimulus -------'  jobs ---> Workbench (lanes)
//!               |---> Inferencer: tags, infer/{model}  <-- the version to serve --'
//!               |     or TextInferencer, where the model writes text
//!               |     reply/infer of the tier above, where a cascade answers (tiers.rs)
//!               |---> Operator:   cmd/{name}, status, meta, kpi
//!               '---> BaseDesk:   chunks of the base's files, for children
//! ```
//! A device has `Trainer = Role<Member>` (or `Role<SplitDevice>`, where it trains the front of a model), an edge `Relay`, a cloud `Aggregator = Role<Round>`, and
//! each has an inferencer. All actors of a node share one arbiter; training and inference have
//! threads of their own. A panic ends the process: starting again is the same code as recovering.

mod attending;
mod base_desk;
mod busy;
mod drift_watch;
mod figures;
mod gateway;
mod halves;
mod inferencer;
mod labels;
pub mod lanes;
mod machines;
mod measuring;
mod operator;
mod outbox;
mod pace;
mod quota;
mod risk_meter;
mod role;
mod room;
mod runner;
pub mod split_lane;
mod story;
mod text_inferencer;
pub mod text_lane;
mod tiers;
mod workbench;

pub use base_desk::{BaseDesk, HeldBase, NotGiven, WantsBase};
pub use busy::{AreHours, Busy, Hold};
pub use figures::{Figures, FiguresView};
pub use gateway::{AboveLink, Gateway, GatewayParts, Incoming, pump, subscribe, subscriptions};
pub use halves::{HalfOf, HalfParts};
pub use inferencer::{
    AboveSaid, Attend, Inferencer, InferencerParts, LateLabel, Leaves, Request, Serve, TagSample,
};
pub use measuring::Measure;
pub use operator::{Adopt, Leave, Operator, OperatorParts, Order};
pub use pace::Pace;
pub use risk_meter::RiskMeter;
pub use role::{
    Aggregator, Checked, Decide, Machine, MachineView, Observe, RelayActor, Role, Seen, Steer,
    Stimulus, Trainer,
};
pub use room::Bounds;
pub use runner::{Cease, Finish, Introduce, Link, Run, Runner, RunnerParts, Served};
pub use text_inferencer::{TextInferencer, TextParts};
pub use tiers::{Above, CascadeParts, Way};
pub use workbench::{Done, Half, InlineBench, LaneBench, Task, Workbench};

/// Messages that an actor's mailbox holds; whoever sends more waits.
const MAILBOX: usize = 1024;
