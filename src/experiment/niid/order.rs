//! What the process of a node is told on its standard input: a line of JSON, then, for a device, its images:
//! a byte a label, a byte a pixel. Nobody else's images ever are in its memory.

use std::io::BufRead;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::experiment::ExperimentError;
use crate::ids::NodeId;
use crate::learn::Images;

/// One node of one cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Which node.
    pub node: NodeId,
    /// Where keys, keyring and stores are.
    pub folder: PathBuf,
    /// Name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The cell's name.
    pub cell: String,
    /// As in the cell's record.
    pub config: String,
    /// The network in words: who has another one has no part in this cell.
    pub model: String,
    /// Classes of the set.
    pub classes: usize,
    /// Rounds in all.
    pub rounds: u64,
    /// Passes in a round.
    pub local_epochs: u32,
    /// Seed.
    pub seed: u64,
    /// Of a device, what images follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Size>,
}

/// How many images follow, and how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    number: usize,
    width: usize,
    height: usize,
}

impl Order {
    /// The bytes to tell, with these images behind.
    pub(super) fn write(mut self, images: Option<&Images>) -> Result<Vec<u8>, ExperimentError> {
        self.images = images.map(|images| Size {
            number: images.num_examples(),
            width: images.width,
            height: images.height,
        });
        let line = serde_json::to_vec(&self);
        let mut bytes = line.map_err(|error| ExperimentError::Order(error.to_string()))?;
        bytes.push(b'\n');
        if let Some(images) = images {
            bytes.extend_from_slice(&images.labels);
            bytes.extend_from_slice(&images.pixels);
        }
        Ok(bytes)
    }

    /// Reads one with its images; what comes behind stays where it is.
    ///
    /// # Errors
    /// [`ExperimentError::Order`] when it isn't one, or more than a set has.
    pub fn read(input: &mut dyn BufRead) -> Result<(Self, Option<Images>), ExperimentError> {
        let bad = |why: &dyn std::fmt::Display| ExperimentError::Order(why.to_string());
        let mut line = Vec::new();
        let mut first = std::io::Read::take(&mut *input, MAX_LINE);
        first.read_until(b'\n', &mut line).map_err(|error| bad(&error))?;
        let order: Self = serde_json::from_slice(&line).map_err(|error| bad(&error))?;
        let Some(Size { number, width, height }) = order.images else { return Ok((order, None)) };
        let pixels = width.checked_mul(height).and_then(|size| size.checked_mul(number));
        let pixels = pixels.filter(|pixels| number.max(*pixels) <= MAX_PIXELS);
        let pixels = pixels.ok_or_else(|| bad(&"more images than a set has"))?;
        let mut part = |length| {
            let mut bytes = vec![0; length];
            input.read_exact(&mut bytes).map_err(|error| bad(&error)).map(|()| bytes)
        };
        let (labels, pixels) = (part(number)?, part(pixels)?);
        if let Some(label) = labels.iter().find(|label| usize::from(**label) >= order.classes) {
            return Err(bad(&format!("a label {label} of {} classes", order.classes)));
        }
        let images = Images { pixels, width, height, labels, classes: order.classes };
        Ok((order, Some(images)))
    }

    /// Where its links go.
    #[cfg(feature = "torch")]
    pub(super) fn broker(&self) -> super::Broker {
        super::Broker { host: self.host.clone(), port: self.port }
    }
}

const MAX_LINE: u64 = 64 << 10;
/// As many as the largest set has.
const MAX_PIXELS: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            node: NodeId::new("machine-3").unwrap(),
            folder: "out/nodes".into(),
            host: "localhost".into(),
            port: 1883,
            cell: "mnist/iid/fedavg".into(),
            config: "ab".into(),
            model: "a mean".into(),
            classes: 3,
            rounds: 2,
            local_epochs: 1,
            seed: 1,
            images: None,
        }
    }

    fn images() -> Images {
        Images { pixels: (0..12).collect(), width: 3, height: 2, labels: vec![0, 2], classes: 3 }
    }

    fn why(bytes: &[u8]) -> String {
        let error = Order::read(&mut &*bytes).unwrap_err();
        assert_eq!(error.kind(), "order");
        error.to_string()
    }

    #[test]
    fn a_device_gets_its_images_and_the_others_none() {
        let bytes = order().write(Some(&images())).unwrap();
        let behind = [bytes.as_slice(), b"behind"].concat();
        let mut input = behind.as_slice();
        let (read, found) = Order::read(&mut input).unwrap();
        assert_eq!((found, input), (Some(images()), b"behind".as_slice()));
        assert_eq!(Order { images: None, ..read }, order());
        let bytes = order().write(None).unwrap();
        assert_eq!(Order::read(&mut bytes.as_slice()).unwrap(), (order(), None));
    }

    #[test]
    fn what_is_no_order_is_refused_and_says_who_gives_them() {
        assert!(why(b"").contains("experiment run niid --processes"));
        assert!(why(b"{}\n").contains("node"));
        let bytes = order().write(Some(&images())).unwrap();
        assert!(why(&bytes[..bytes.len() - 1]).contains("fill"), "an image is cut off");
        let other = Images { labels: vec![0, 3], ..images() };
        assert!(why(&order().write(Some(&other)).unwrap()).contains("a label 3 of 3"));
        for (number, width) in [(usize::MAX, 1), (1 << 20, 1 << 20), (1 << 40, 0)] {
            let images = Some(Size { number, width, height: 28 });
            let line = serde_json::to_vec(&Order { images, ..order() }).unwrap();
            assert!(why(&line).contains("more images"), "{number} x {width}");
        }
    }
}
