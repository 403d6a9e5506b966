//! Actors and the threads that work for them.

pub mod lanes;
