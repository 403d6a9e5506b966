//! Only messages that passed every check change a node. The type `Verified` keeps it in the code; here forged
//! messages come, and whoever took one in changes.

use super::super::broken::Broken;
use super::super::node::Node;
use crate::wire::Kind;

pub(crate) const NAME: &str = "verified_only";

/// A forged message of this kind came, and the node has changed or not.
///
/// # Errors
/// [`Broken`] when it has.
pub(crate) fn check(node: &Node, kind: Kind, changed: bool) -> Result<(), Broken> {
    if changed {
        let what = format!("{} changed by a forged {}", node.id, kind.as_str());
        return Err(Broken::new(NAME, what));
    }
    Ok(())
}
