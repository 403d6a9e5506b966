//! The table of nodes. A place in it is a node's name inside of a run.

use super::node::Node;
use crate::ids::NodeId;

/// A map that is only looked up, so that its order, which is another one in each process, shows nowhere. In a large tree
/// each key on the way down is memory that the processor has to wait for.
#[expect(clippy::disallowed_types, reason = "never walked")]
pub(crate) type Lookup<K, V> = std::collections::HashMap<K, V>;

/// A node's place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(pub(super) u32);

impl Place {
    /// The cloud comes first.
    pub(crate) const CLOUD: Self = Self(0);

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// All nodes; none ever leaves.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    list: Vec<Node>,
    by_name: Lookup<NodeId, Place>,
}

impl Nodes {
    /// Adds a node; gives its place.
    pub(crate) fn add(&mut self, node: Node) -> Place {
        let place = Place(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.by_name.insert(node.id.clone(), place);
        self.list.push(node);
        place
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "this table gave the place out, and keeps all nodes"
    )]
    pub(crate) fn at(&self, place: Place) -> &Node {
        &self.list[place.index()]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "this table gave the place out, and keeps all nodes"
    )]
    pub(crate) fn at_mut(&mut self, place: Place) -> &mut Node {
        &mut self.list[place.index()]
    }

    /// The node of this name.
    pub(crate) fn find(&self, name: &NodeId) -> Option<Place> {
        self.by_name.get(name).copied()
    }

    /// All places.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..u32::try_from(self.list.len()).unwrap_or(u32::MAX)).map(Place)
    }
}

/// Something about each node, grown as it is asked for.
#[derive(Debug)]
pub(crate) struct ByNode<T>(Vec<T>);

impl<T> Default for ByNode<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Default> ByNode<T> {
    #[expect(clippy::indexing_slicing, reason = "grown to the place first")]
    pub(crate) fn at(&mut self, place: Place) -> &mut T {
        let index = place.index();
        if index >= self.0.len() {
            self.0.resize_with(index + 1, T::default);
        }
        &mut self.0[index]
    }

    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        self.0.get(place.index())
    }
}
