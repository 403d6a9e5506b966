//! Deaths in the middle of a step, and the guards of the simulator itself.

/// One death: of `node`, in its `step`-th step (from 0). Tests plan them.
#[cfg(test)]
#[derive(Debug, Clone)]
pub(crate) struct Crash {
    /// Who.
    pub(crate) node: String,
    /// When, in steps of this node that change its store.
    pub(crate) step: usize,
    /// Where in the step.
    pub(crate) at: Moment,
}

/// Where in a step a node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the transaction: nothing of the step happened.
    BeforeCommit,
    /// After the transaction and so many of the effects behind it.
    AfterEffects(usize),
}

/// What stands between the network and a machine here. A test takes one away, to show what it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guards {
    /// Messages are opened, and what isn't sound is refused.
    pub(crate) gate: bool,
    /// The runner's order: nothing leaves before its transaction.
    pub(crate) commit_first: bool,
    /// What waits for a receipt is sent again.
    pub(crate) resend: bool,
}

impl Guards {
    /// As in a node.
    pub(crate) const ALL: Self = Self { gate: true, commit_first: true, resend: true };
}
