//! From one version a device counts at one edge: above, two edges that have it in their sums would count it twice.

use std::collections::{BTreeMap, VecDeque};

use super::super::broken::Broken;
use super::super::nodes::{Nodes, Place};
use crate::ids::{NodeId, Version};
use crate::protocol::CombineJob;

pub(crate) const NAME: &str = "one_edge";

/// Where each device that has two edges counted, from its last versions.
#[derive(Debug, Default)]
pub(crate) struct OneEdge {
    counted: BTreeMap<NodeId, VecDeque<(Version, Place)>>,
}

impl OneEdge {
    /// Versions that are remembered: more than late work may be behind.
    const VERSIONS: usize = 16;

    pub(crate) fn committed(
        &mut self,
        nodes: &Nodes,
        at: Place,
        job: Option<&CombineJob>,
    ) -> Result<(), Broken> {
        if nodes.at(at).guests.is_empty() {
            return Ok(()); // nobody here has two
        }
        let has_two = |sender: &NodeId| {
            nodes.find(sender).is_some_and(|place| nodes.at(place).second.is_some())
        };
        for input in job.iter().flat_map(|job| &job.inputs).filter(|input| has_two(&input.sender)) {
            let counted = self.counted.entry(input.sender.clone()).or_default();
            let other =
                counted.iter().find(|(version, place)| *version == input.version && *place != at);
            if let Some((version, place)) = other {
                let (device, here, there) = (&input.sender, &nodes.at(at).id, &nodes.at(*place).id);
                let what = format!("{here} counts {device} from version {version}, as {there} did");
                return Err(Broken::new(NAME, what));
            }
            counted.push_back((input.version, at));
            if counted.len() > Self::VERSIONS {
                counted.pop_front();
            }
        }
        Ok(())
    }
}
