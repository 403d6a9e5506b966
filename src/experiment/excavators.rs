//! The excavators' work orders as the machines of an experiment.

use super::Machine;
use crate::data::excavators::{Dataset, MACHINES, Orders};
use crate::learn::{LearnError, Texts};

/// Settings of this experiment: the template that a plant with such texts would start from.
pub const TEMPLATE: &str = include_str!("../../config/templates/maintenance-text.toml");

/// Makes a machine of each excavator: A to C on one site, D and E on the other.
///
/// With `rehearse`, the last fifth of the training orders takes the test part's place, which isn't looked
/// at; `encode` turns a text into token ids.
///
/// # Errors
/// What `encode` says.
pub fn machines(
    set: &Dataset,
    rehearse: bool,
    encode: &mut dyn FnMut(&str) -> Result<Vec<u32>, LearnError>,
) -> Result<Vec<Machine>, LearnError> {
    let mut machines = Vec::new();
    for (name, orders) in MACHINES.iter().zip(&set.machines) {
        let rehearsal = rehearse.then(|| orders.rehearsal());
        let Orders { train, test } = rehearsal.as_ref().unwrap_or(orders);
        machines.push(Machine {
            name: (*name).to_owned(),
            site: if matches!(*name, "A" | "B" | "C") { "north" } else { "south" }.to_owned(),
            train: Texts::encoded(train, encode)?,
            test: Texts::encoded(test, encode)?,
        });
    }
    Ok(machines)
}

/// What is learned from and judged on, in a few words.
pub fn described(machines: &[Machine]) -> String {
    let sum = |part: fn(&Machine) -> usize| machines.iter().map(part).sum::<usize>();
    format!(
        "excavators: work orders of 5 machines on 2 sites, {} to learn from, {} to judge by",
        sum(|machine| machine.train.lengths.len()),
        sum(|machine| machine.test.lengths.len()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Dataset {
        let orders = |n: usize| Orders {
            train: (0..n).map(|i| format!("order {i}")).collect(),
            test: vec!["the future".into()],
        };
        Dataset { machines: (0..5).map(|m| orders(10 + m)).collect(), ..Dataset::default() }
    }

    #[test]
    fn texts_become_ids_and_characters_are_counted() {
        let mut bytes = |text: &str| Ok(text.bytes().map(u32::from).collect());
        let machines = machines(&set(), false, &mut bytes).unwrap();
        let sites: Vec<&str> = machines.iter().map(|machine| machine.site.as_str()).collect();
        assert_eq!(sites, ["north", "north", "north", "south", "south"]);
        let first = &machines[0];
        assert_eq!((first.train.lengths.len(), first.train.chars), (10, 70));
        assert_eq!((first.test.lengths.as_slice(), first.test.chars), (&[10][..], 10));
        assert_eq!(first.test.rows().next().unwrap().len(), 10);
        assert!(described(&machines).ends_with("60 to learn from, 5 to judge by"));
    }

    #[test]
    fn a_rehearsal_never_looks_at_the_test_part() {
        let mut seen = Vec::new();
        let mut encode = |text: &str| {
            seen.push(text.to_owned());
            Ok(vec![1])
        };
        let machines = machines(&set(), true, &mut encode).unwrap();
        assert_eq!((machines[0].train.lengths.len(), machines[0].test.lengths.len()), (8, 2));
        assert!(!seen.iter().any(|text| text == "the future"));
    }
}
