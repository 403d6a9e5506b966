//! The course of the rounds in the log: one line an event, each in the span of its round; and rollbacks.
//!
//! What is told here is recorded in the ledger too; the log is for whoever watches now.

use crate::ids::RoundNo;
use crate::ledger::Event;

/// Writes a ledger event into the log if it belongs to a round, or takes a version back.
pub(super) fn tell(event: &Event) {
    if let Event::Rollback { from, reason, to } = event {
        let reason = reason.as_str();
        tracing::warn!(from, to, reason, "an earlier version is served again; newer ones wait");
    }
    let Some(round) = round_of(event) else { return };
    let _span = tracing::info_span!("round", round).entered();
    match event {
        Event::RoundOpen { epoch, .. } => tracing::info!(epoch, "the round is open"),
        Event::RoundClose { contributions, .. } => {
            tracing::info!(contributions, "the contributors are fixed");
        }
        Event::RoundCommit { version, .. } => tracing::info!(version, "the result is fixed"),
        Event::RoundAbandon { reason, .. } => {
            tracing::warn!(reason = reason.as_str(), "the round is given up");
        }
        Event::Accept { sender, .. } => tracing::info!(%sender, "a contribution counts"),
        Event::Late { sender, .. } => tracing::info!(%sender, "a contribution came late"),
        Event::Equivocation { sender, .. } => {
            tracing::warn!(%sender, "two contributions of one member: the second is refused");
        }
        Event::Decline { sender, reason, .. } => {
            tracing::info!(%sender, reason = reason.as_str(), "declined");
        }
        Event::Contribute { bytes, .. } => tracing::info!(bytes, "a contribution leaves"),
        Event::Move { from, to } => tracing::warn!(%from, %to, "with another edge from now on"),
        Event::ReceiptGot { from, verdict, .. } => {
            tracing::info!(%from, verdict = verdict.as_str(), "a receipt came");
        }
        Event::PrivacyRefusal { reason, .. } => {
            tracing::warn!(reason = reason.as_str(), "the privacy gate kept work back");
        }
        Event::ResultApplied { version, .. } => tracing::info!(version, "a result is in use"),
        other => tracing::info!(event = other.name(), "recorded"),
    }
}

fn round_of(event: &Event) -> Option<RoundNo> {
    match event {
        Event::RoundOpen { round, .. }
        | Event::RoundClose { round, .. }
        | Event::RoundCommit { round, .. }
        | Event::RoundAbandon { round, .. }
        | Event::Accept { round, .. }
        | Event::Late { round, .. }
        | Event::Equivocation { round, .. }
        | Event::Decline { round, .. }
        | Event::Contribute { round, .. }
        | Event::ReceiptGot { round, .. }
        | Event::ResultApplied { round, .. } => Some(*round),
        Event::PrivacyRefusal { round, .. } => *round,
        _ => None,
    }
}
