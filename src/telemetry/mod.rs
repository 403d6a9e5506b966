//! What a node tells about itself: counters, logs, and what it uses of its machine.
//!
//! Counters live in one [`Metrics`] that is passed in; nothing global. No payloads, keys or weights
//! in logs. Called by `actors/` and `node/` (counting), `web/` (showing) and `cli/`.

#[cfg(feature = "cli")]
pub mod logging;
mod metrics;
mod resources;

pub use metrics::{Direction, Metrics};
pub use resources::{
    DiskSpace, ResourceError, Usage, available_memory_bytes, disk_space, machine, mib,
    peak_rss_bytes_of, usage,
};
