//! Places where a test lets this process die, and guards that it takes away. All of it is there only in a build with
//! the feature `failpoints`, which nobody ships: without it a place is an empty function, and no variable is read.
//!
//! - `GAISNET_FAILPOINT=place:n` ends the process when it comes to the place for the n-th time, without a
//!   destructor, as kill -9 does.
//! - `GAISNET_WITHOUT=guard,guard` takes guards away. What breaks then is told in docs/chaos.md.
//!
//! Called from every layer; docs/chaos.md lists the places.

#[cfg(feature = "failpoints")]
pub(crate) use on::{here, is_without};

/// Ends the process if this is where it is to end.
#[cfg(all(not(feature = "failpoints"), any(feature = "runtime", feature = "store")))]
pub(crate) const fn here(_place: &str, _what: &str) {}

#[cfg(feature = "failpoints")]
mod on {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where to end, and how often it may still be passed.
    static END: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let told = std::env::var("GAISNET_FAILPOINT").ok()?;
        let (place, n) = told.rsplit_once(':')?;
        Some((place.to_owned(), AtomicU64::new(n.parse().ok()?)))
    });

    static WITHOUT: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("GAISNET_WITHOUT").ok());

    /// Ends the process if this is where it is to end: `place`, or `place-what` where there are several.
    pub(crate) fn here(place: &str, what: &str) {
        let Some((end, left)) = &*END else { return };
        let is_here = match end.strip_prefix(place) {
            Some("") => what.is_empty(),
            Some(rest) => rest.strip_prefix('-') == Some(what),
            None => false,
        };
        if is_here && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            std::process::abort();
        }
    }

    /// Whether a guard is taken away.
    pub(crate) fn is_without(guard: &str) -> bool {
        WITHOUT.as_deref().is_some_and(|all| all.split(',').any(|one| one == guard))
    }
}
