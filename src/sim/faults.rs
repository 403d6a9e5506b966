//! What may go wrong in a run, drawn from its seed.

/// Chances of faults. They stop at `until_ms`, so that the network can heal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// A message is lost.
    pub(crate) loss: f64,
    /// A message comes twice.
    pub(crate) duplicate: f64,
    /// Longest delay of a message in milliseconds; unequal delays reorder.
    pub(crate) delay_ms: u64,
    /// A node dies in a step.
    pub(crate) crash: f64,
    /// A site is cut off for a while, and then back for as long.
    pub(crate) partition_ms: u64,
    /// End of all faults.
    pub(crate) until_ms: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub(crate) const NONE: Self =
        Self { loss: 0.0, duplicate: 0.0, delay_ms: 20, crash: 0.0, partition_ms: 0, until_ms: 0 };
    /// Everything goes wrong, often.
    pub(crate) const STORM: Self = Self {
        loss: 0.2,
        duplicate: 0.2,
        delay_ms: 3_000,
        crash: 0.03,
        partition_ms: 7_000,
        until_ms: 60_000,
    };
}

/// One death: of `node`, in its `step`-th step (from 0).
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

/// A node is stopped and goes on later with all that came meanwhile, as by `SIGSTOP` and `SIGCONT`.
#[derive(Debug, Clone)]
pub(crate) struct Pause {
    /// Who.
    pub(crate) node: String,
    /// From when to when, in milliseconds.
    pub(crate) span: std::ops::Range<u64>,
}
