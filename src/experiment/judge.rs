//! Bits per character of adapters on the machines' test texts: of each machine, and together.

use super::Machine;
use crate::learn::{Bits, Judge, LearnError, TensorSet};

/// One adapter for all machines.
pub(super) fn of_one(
    judge: &mut dyn Judge,
    adapter: &TensorSet,
    machines: &[Machine],
) -> Result<(Vec<f64>, f64), LearnError> {
    judged(judge, std::iter::repeat(adapter), machines)
}

/// Each machine with its own adapter, on its own texts.
pub(super) fn of_each(
    judge: &mut dyn Judge,
    adapters: &[TensorSet],
    machines: &[Machine],
) -> Result<(Vec<f64>, f64), LearnError> {
    judged(judge, adapters, machines)
}

/// A machine without test texts gets NaN: there is nothing to tell.
fn judged<'a>(
    judge: &mut dyn Judge,
    adapters: impl IntoIterator<Item = &'a TensorSet>,
    machines: &[Machine],
) -> Result<(Vec<f64>, f64), LearnError> {
    let mut each = Vec::with_capacity(machines.len());
    let mut all = Bits::new();
    for (machine, adapter) in machines.iter().zip(adapters) {
        let mut bits = Bits::new();
        bits.add(judge.nats(adapter, &machine.test)?, machine.test.chars)?;
        each.push(bits.per_char().unwrap_or(f64::NAN));
        all.merge(&bits);
    }
    Ok((each, all.per_char().unwrap_or(f64::NAN)))
}
