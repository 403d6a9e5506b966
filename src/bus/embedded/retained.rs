//! The last retained value of each topic.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::bus::filter;

/// One topic's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) payload: Bytes,
    pub(super) qos: u8,
}

/// All topics' values, bounded in number and bytes.
#[derive(Debug)]
pub(super) struct Retained {
    values: BTreeMap<String, Value>,
    bytes: usize,
    limit: usize,
}

impl Retained {
    pub(super) fn new(limit: usize) -> Self {
        Self { values: BTreeMap::new(), bytes: 0, limit }
    }

    /// Keeps a value; an empty one removes the topic's. False if there is no room.
    pub(super) fn set(&mut self, topic: &str, payload: &[u8], qos: u8) -> bool {
        let old = self.values.get(topic).map(|value| value.payload.len());
        if payload.is_empty() {
            self.values.remove(topic);
            self.bytes -= old.map_or(0, |bytes| bytes + topic.len());
            return true;
        }
        let bytes = match old {
            Some(old) => self.bytes - old + payload.len(),
            None => self.bytes + topic.len() + payload.len(),
        };
        if bytes > LIMIT_BYTES || (old.is_none() && self.values.len() >= self.limit) {
            return false;
        }
        // A copy: the payload is a piece of a larger read buffer, which would stay with it.
        let payload = Bytes::copy_from_slice(payload);
        self.values.insert(topic.into(), Value { payload, qos });
        self.bytes = bytes;
        true
    }

    pub(super) fn get(&self, topic: &str) -> Option<&Value> {
        self.values.get(topic)
    }

    /// The topics that a filter selects.
    pub(super) fn topics(&self, wanted: &str) -> Vec<String> {
        self.values.keys().filter(|topic| filter::matches(wanted, topic)).cloned().collect()
    }
}

/// Bytes of all topics and values.
const LIMIT_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_value_removes_and_limits_hold() {
        let mut retained = Retained::new(2);
        assert!(retained.set("a/1", b"x", 1) && retained.set("a/2", b"y", 0));
        assert!(!retained.set("a/3", b"z", 1));
        assert!(retained.set("a/2", b"longer", 1));
        assert_eq!(retained.topics("a/+"), ["a/1", "a/2"]);
        assert_eq!(retained.get("a/2").unwrap().qos, 1);
        assert!(retained.set("a/1", b"", 1) && retained.set("a/3", b"z", 1));
        assert_eq!(retained.topics("#"), ["a/2", "a/3"]);
        assert_eq!(retained.bytes, 3 + 6 + 3 + 1);
    }
}
