//! One offer and one set have one outcome, whatever the order in which they came (G3, G5); and one
//! update has one receipt (G2).

use super::super::history::History;

pub(crate) fn check(history: &History) -> Result<(), String> {
    history.wrong.first().map_or(Ok(()), |what| Err(format!("order_free: {what}")))
}
