//! What must hold after each step, one file each.

use super::history::History;
use super::node::Node;

pub(crate) mod accepted_is_recorded;
pub(crate) mod converges;
pub(crate) mod counted_once;
pub(crate) mod epochs_fence;
pub(crate) mod one_line;
pub(crate) mod order_free;
pub(crate) mod receipt_is_kept;
pub(crate) mod versions_rise;

/// All of them, as far as they speak of one node.
///
/// # Errors
/// The first that is broken.
pub(crate) fn check(history: &History, node: &Node) -> Result<(), String> {
    accepted_is_recorded::check(history, node)?;
    counted_once::check(history, node)?;
    receipt_is_kept::check(history, node)?;
    versions_rise::check(history, node)?;
    order_free::check(history)
}
