//! What must hold in each step, one file each. They see what happens and remember as much of it as the machines do.

pub(crate) mod accepted_is_recorded;
pub(crate) mod bounded;
pub(crate) mod converges;
pub(crate) mod counted_once;
pub(crate) mod epochs_fence;
mod lately;
pub(crate) mod one_edge;
pub(crate) mod one_line;
pub(crate) mod order_free;
pub(crate) mod receipt_is_kept;
pub(crate) mod verified_only;
pub(crate) mod versions_rise;

use self::accepted_is_recorded::AcceptedIsRecorded;
use self::counted_once::CountedOnce;
use self::epochs_fence::EpochsFence;
use self::one_edge::OneEdge;
use self::one_line::OneLine;
use self::order_free::OrderFree;
use self::receipt_is_kept::ReceiptIsKept;
use self::versions_rise::VersionsRise;
use super::broken::Broken;
use super::nodes::{Nodes, Place};
use super::world::World;
use crate::ids::{RoundNo, UpdateId};
use crate::protocol::{CombineJob, Effect, Job};
use crate::wire::{Body, Receipt};

/// Their names, in the order in which they are looked at, and what each says.
pub const NAMES: [(&str, &str); 11] = [
    (verified_only::NAME, "only messages that passed every check change a node"),
    (epochs_fence::NAME, "who speaks with a lower epoch than the highest heard changes nothing"),
    (accepted_is_recorded::NAME, "a receipt says what the ledger says, and leaves after it"),
    (receipt_is_kept::NAME, "what has a receipt stays until it is combined"),
    (counted_once::NAME, "an update is recorded once, and a member counts once for an offer"),
    (one_edge::NAME, "from one version a device counts at one edge"),
    (order_free::NAME, "one set of contributions has one outcome"),
    (one_line::NAME, "a cloud and its standby are one to all others"),
    (versions_rise::NAME, "the version that a node serves never goes back"),
    (bounded::NAME, "no queue grows beyond its bound"),
    (converges::NAME, "without faults all come to the same version, and nothing waits"),
];

/// All of them, with what they remember.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    pub(crate) accepted_is_recorded: AcceptedIsRecorded,
    pub(crate) epochs_fence: EpochsFence,
    pub(crate) receipt_is_kept: ReceiptIsKept,
    pub(crate) counted_once: CountedOnce,
    pub(crate) one_edge: OneEdge,
    pub(crate) order_free: OrderFree,
    pub(crate) one_line: OneLine,
    pub(crate) versions_rise: VersionsRise,
}

impl Invariants {
    /// A step of a node was committed.
    ///
    /// # Errors
    /// The first that is broken.
    pub(crate) fn committed(
        &mut self,
        nodes: &Nodes,
        at: Place,
        effects: &[Effect],
    ) -> Result<(), Broken> {
        let node = nodes.at(at);
        let fatal = effects.iter().find_map(|effect| match effect {
            Effect::Fatal(what) => Some(what),
            _ => None,
        });
        if let Some(what) = fatal {
            return Err(Broken::new("no_node_gives_up", format!("{}: {what}", node.id)));
        }
        let job = effects.iter().find_map(|effect| match effect {
            Effect::Job(Job::Combine(job)) => Some(&**job),
            _ => None,
        });
        self.versions_rise.committed(node, at, effects)?;
        bounded::check(node)?;
        if node.is_paired() {
            // What it does before the other one has it counts for nothing, also in its ledger.
            self.one_line.committed(job);
            return Ok(());
        }
        self.epochs_fence.committed(at, effects);
        self.accepted_is_recorded.committed(at, effects);
        self.receipt_is_kept.committed(node, at, effects, job)?;
        self.counted_once.committed(nodes, at, effects, job)?;
        self.one_edge.committed(nodes, at, job)?;
        self.order_free.committed(node, at, effects, job)
    }

    /// A message leaves a node, in its round `number`.
    ///
    /// # Errors
    /// The first that is broken.
    pub(crate) fn said(
        &mut self,
        nodes: &Nodes,
        at: Place,
        number: RoundNo,
        body: &Body,
    ) -> Result<(), Broken> {
        let node = nodes.at(at);
        match body {
            Body::Receipt(receipt) if node.is_paired() => self.one_line.receipt(number, receipt),
            Body::Result(result) if node.is_paired() => {
                self.one_line.result(number, result, nodes, &self.counted_once)
            }
            Body::Receipt(Receipt { update, verdict }) => {
                self.accepted_is_recorded.receipt(node, at, number, *update, verdict)?;
                self.receipt_is_kept.receipt(node, at, *update, verdict)
            }
            _ => Ok(()),
        }
    }
}

/// A run has come to rest.
///
/// # Errors
/// The first that is broken.
pub(crate) fn at_rest(world: &World) -> Result<(), Broken> {
    match converges::owner(world).filter(|at| world.nodes.at(*at).is_paired()) {
        Some(owner) => one_line::check(world, owner),
        None => Ok(()),
    }
}

/// The set that a combination is of.
fn set_of(job: &CombineJob) -> Vec<UpdateId> {
    job.inputs.iter().map(|input| input.update).collect()
}
