//! Guards that a test can take away, to show that they are what prevents the harm.
//!
//! Outside of tests, and of builds with the feature `failpoints`, each of them is a constant.

/// A guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// A known contribution changes nothing.
    Repeats,
    /// Who speaks with a lower epoch isn't listened to.
    Epochs,
    /// No older version is taken.
    Versions,
    /// Closed rounds are forgotten after a while.
    Memory,
    /// No contribution counts as longer than the usual one.
    Norms,
    /// After a rollback nothing newer is served until it is released.
    Hold,
    /// Nobody takes over who lacks what was said since.
    Promises,
    /// Nothing leaves an owner that its standby hasn't on disk.
    Copies,
    /// A copy of what was put back from a backup takes nobody's place.
    Told,
    /// A node that follows serves only what is assigned.
    Assigned,
    /// From a version that something was given from nothing is given to another edge.
    Given,
}

#[cfg(not(any(test, feature = "failpoints")))]
pub(super) const fn stands(_: Guard) -> bool {
    true
}

/// Real processes of a test have one taken away by its name (docs/chaos.md).
#[cfg(all(not(test), feature = "failpoints"))]
pub(super) fn stands(guard: Guard) -> bool {
    let name = match guard {
        Guard::Repeats => "repeats",
        Guard::Epochs => "epochs",
        Guard::Versions => "versions",
        Guard::Promises => "promises",
        Guard::Copies => "copies",
        Guard::Told => "told",
        Guard::Memory | Guard::Norms | Guard::Hold | Guard::Assigned | Guard::Given => {
            return true;
        }
    };
    !crate::fail::is_without(name)
}

#[cfg(test)]
pub(super) fn stands(guard: Guard) -> bool {
    tests::TAKEN.get() != Some(guard)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::Guard;

    thread_local! {
        pub(super) static TAKEN: Cell<Option<Guard>> = const { Cell::new(None) };
    }

    /// Runs `test` on this thread without the guard.
    pub(crate) fn without<T>(guard: Guard, test: impl FnOnce() -> T) -> T {
        TAKEN.set(Some(guard));
        let outcome = test();
        TAKEN.set(None);
        outcome
    }
}
