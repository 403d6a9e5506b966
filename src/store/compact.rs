//! State by key in two pieces of memory.
//!
//! The simulator has ten thousand stores, and comes to each of them a few times a round. In a tree each key and each value
//! lies in a place of its own, and the processor waits for every one of them; here a key is looked for by its hash in one
//! table, and found beside its value in the other. The table is read from its start: a device has eight keys, an owner one
//! more for each child and each round that it remembers.
//!
//! A value that is set again stays where it is as long as it fits; what was given up is cleared away once it is more than
//! half of all. Used by [`super::memory`] only.

/// Keys and their values. See the module.
#[derive(Debug, Default)]
pub(super) struct Compact {
    /// In no order.
    places: Vec<Place>,
    /// Each value behind its key.
    bytes: Vec<u8>,
    /// Bytes of it that belong to no key. Room that a shorter value leaves does.
    idle: usize,
}

#[derive(Debug)]
struct Place {
    hash: u64,
    /// Where its key begins.
    at: usize,
    key: usize,
    value: usize,
    /// Bytes behind the key that a value may take.
    room: usize,
}

impl Compact {
    /// Sets a value.
    pub(super) fn put(&mut self, key: &str, value: &[u8]) {
        let found = self.find(key);
        if let Some(place) = found.and_then(|index| self.places.get_mut(index))
            && value.len() <= place.room
        {
            place.value = value.len();
            let from = place.at + place.key;
            self.write(from, value);
            return;
        }
        if let Some(index) = found {
            self.give_up(index);
        }
        let (at, room) = (self.bytes.len(), value.len());
        let more = key.len() + room;
        if self.bytes.capacity() - at < more {
            // Doubled, half of it would be empty in each of ten thousand stores.
            self.bytes.reserve_exact(more.max(at / 8));
        }
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.extend_from_slice(value);
        self.places.push(Place { hash: hash(key), at, key: key.len(), value: room, room });
    }

    /// Removes a key, if it is there.
    pub(super) fn remove(&mut self, key: &str) {
        if let Some(index) = self.find(key) {
            self.give_up(index);
        }
    }

    /// Keys that start with `prefix`, sorted, and their values.
    pub(super) fn with_prefix(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let parts = self.places.iter().map(|place| (self.key(place), self.value(place)));
        let matching = parts.filter(|(key, _)| key.starts_with(prefix.as_bytes()));
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let mut matching: Vec<_> =
            matching.map(|(key, value)| (text(key), value.to_vec())).collect();
        matching.sort();
        matching
    }

    fn find(&self, key: &str) -> Option<usize> {
        let hash = hash(key);
        let is_it = |place: &Place| place.hash == hash && self.key(place) == key.as_bytes();
        self.places.iter().position(is_it)
    }

    fn give_up(&mut self, index: usize) {
        let place = self.places.swap_remove(index);
        self.idle += place.key + place.room;
        if self.idle > self.bytes.len() / 2 {
            self.clear_away();
        }
    }

    fn clear_away(&mut self) {
        // Down, each over what was given up before it. The memory is kept: it will be wanted again.
        self.places.sort_unstable_by_key(|place| place.at);
        let mut end = 0;
        for place in &mut self.places {
            let taken = place.key + place.value;
            self.bytes.copy_within(place.at..place.at + taken, end);
            (place.at, place.room) = (end, place.value);
            end += taken;
        }
        self.bytes.truncate(end);
        self.idle = 0;
    }

    fn key(&self, place: &Place) -> &[u8] {
        self.read(place.at, place.key)
    }

    fn value(&self, place: &Place) -> &[u8] {
        self.read(place.at + place.key, place.value)
    }

    #[expect(clippy::indexing_slicing, reason = "this table has written it there")]
    fn read(&self, from: usize, count: usize) -> &[u8] {
        &self.bytes[from..from + count]
    }

    #[expect(clippy::indexing_slicing, reason = "this table keeps room there")]
    fn write(&mut self, from: usize, value: &[u8]) {
        self.bytes[from..from + value.len()].copy_from_slice(value);
    }
}

/// FNV-1a: keys are our own, nobody chooses them to collide.
fn hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_tree_holds(
            changes in proptest::collection::vec(
                ("[ab]{0,3}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))),
                0..60,
            ),
            prefix in "[ab]{0,2}",
        ) {
            let (mut compact, mut tree) = (Compact::default(), BTreeMap::new());
            for (key, value) in changes {
                if let Some(value) = value {
                    compact.put(&key, &value);
                    tree.insert(key, value);
                } else {
                    compact.remove(&key);
                    tree.remove(&key);
                }
                let taken: usize = compact.places.iter().map(|place| place.key + place.room).sum();
                prop_assert_eq!(taken + compact.idle, compact.bytes.len());
                prop_assert!(compact.idle <= compact.bytes.len() / 2);
            }
            tree.retain(|key, _| key.starts_with(&prefix));
            prop_assert_eq!(compact.with_prefix(&prefix), tree.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_value_that_fits_where_it_was_moves_nothing() {
        let mut compact = Compact::default();
        compact.put("member/active", &[1; 459]);
        for round in 0..100 {
            compact.put("member/active", &[round; 1]);
            compact.put("member/active", &[round; 459]);
        }
        assert_eq!(compact.bytes.len(), "member/active".len() + 459);
    }
}
