//! What is dealt out and judged by: examples of one set.

use crate::data::{bearings, images};
use crate::learn::{Examples, Images, Windows};

/// Examples of one kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Pool {
    /// Windows of a signal.
    Windows(Windows),
    /// Images.
    Images(Images),
}

/// A set as comparisons need it.
#[derive(Debug, Clone)]
pub struct Material {
    /// As it came, where it came in parts.
    pub(super) plants: Vec<Pool>,
    /// All that may be learned from.
    pub(super) pooled: Pool,
    /// What is judged by; a row is a window, or the pixels of an image.
    pub(super) test: Windows,
    /// Other images, for a base that comes from elsewhere.
    pub(super) elsewhere: Option<Images>,
}

impl Material {
    /// The recordings of four plants.
    pub fn bearings(set: bearings::Dataset) -> Self {
        Self {
            plants: set.plants.into_iter().map(Pool::Windows).collect(),
            pooled: Pool::Windows(set.pooled),
            test: set.test,
            elsewhere: None,
        }
    }

    /// A part of Fashion-MNIST: its first training images to learn from, its first test images to judge by.
    /// A part of MNIST is what a base is pre-trained on.
    pub fn images(fashion: &images::Dataset, digits: &images::Dataset) -> Self {
        let first = |images: &Images, n| images.choose(&(0..n).collect::<Vec<_>>());
        let test = first(&fashion.test, TEST_IMAGES);
        Self {
            plants: Vec::new(),
            pooled: Pool::Images(first(&fashion.train, IMAGES)),
            test: Windows {
                x: test.pixels.iter().map(|pixel| f32::from(*pixel)).collect(),
                len: test.width * test.height,
                labels: test.labels.iter().map(|label| usize::from(*label)).collect(),
                classes: test.classes,
            },
            elsewhere: Some(first(&digits.train, DIGITS)),
        }
    }
}

impl Pool {
    /// The examples of these rows, in this order; rows that aren't there are left out.
    pub(super) fn choose(&self, rows: &[usize]) -> Self {
        match self {
            Self::Images(images) => Self::Images(images.choose(rows)),
            Self::Windows(windows) => Self::Windows(choose(windows, rows)),
        }
    }

    /// At most so many, taken evenly from all of them.
    pub(super) fn thin(&self, most: Option<usize>) -> Self {
        match even_rows(self.labels().len(), most) {
            Some(rows) => self.choose(&rows),
            None => self.clone(),
        }
    }

    /// Class of each example.
    pub(super) fn labels(&self) -> Vec<u8> {
        match self {
            Self::Images(images) => images.labels.clone(),
            Self::Windows(windows) => {
                let narrow = |label: &usize| u8::try_from(*label).unwrap_or(u8::MAX);
                windows.labels.iter().map(narrow).collect()
            }
        }
    }

    /// Number of classes.
    pub(super) fn classes(&self) -> usize {
        match self {
            Self::Images(images) => images.classes,
            Self::Windows(windows) => windows.classes,
        }
    }

    /// Bytes of its examples as a device has them: samples as f32, a byte a pixel.
    pub(super) fn num_bytes(&self) -> u64 {
        match self {
            Self::Images(images) => images.pixels.len() as u64,
            Self::Windows(windows) => 4 * windows.x.len() as u64,
        }
    }

    /// All of them in one place.
    pub(super) fn together(parts: &[Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let mut all = first.clone();
        for part in rest {
            match (&mut all, part) {
                (Self::Images(all), Self::Images(more)) => {
                    all.pixels.extend_from_slice(&more.pixels);
                    all.labels.extend_from_slice(&more.labels);
                }
                (Self::Windows(all), Self::Windows(more)) => {
                    all.x.extend_from_slice(&more.x);
                    all.labels.extend_from_slice(&more.labels);
                }
                _ => return None,
            }
        }
        Some(all)
    }
}

impl From<Pool> for Examples {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::Images(images) => images.into(),
            Pool::Windows(windows) => windows.into(),
        }
    }
}

/// The windows of these rows, in this order; rows that aren't there are left out.
fn choose(from: &Windows, rows: &[usize]) -> Windows {
    let mut chosen = Windows { x: Vec::new(), labels: Vec::new(), ..*from };
    for row in rows {
        if let (Some(window), Some(label)) = (from.row(*row), from.labels.get(*row)) {
            chosen.x.extend_from_slice(window);
            chosen.labels.push(*label);
        }
    }
    chosen
}

/// The same of what is judged by.
pub(super) fn thin_windows(from: &Windows, most: Option<usize>) -> Windows {
    match even_rows(from.num_examples(), most) {
        Some(rows) => choose(from, &rows),
        None => from.clone(),
    }
}

/// Rows evenly from all; none where all may stay.
fn even_rows(n: usize, most: Option<usize>) -> Option<Vec<usize>> {
    let most = most.filter(|most| *most < n)?;
    Some((0..most).map(|at| at * n / most).collect())
}

/// Images to learn from.
const IMAGES: usize = 3_000;
/// Images to judge by.
const TEST_IMAGES: usize = 1_000;
/// Images of digits to pre-train on.
const DIGITS: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_thinned_evenly_and_put_together_in_order() {
        let images = Pool::Images(Images {
            pixels: (0..6).collect(),
            width: 1,
            height: 1,
            labels: vec![0, 1, 2, 0, 1, 2],
            classes: 3,
        });
        let thin = images.thin(Some(3));
        assert_eq!(thin.labels(), [0, 2, 1]);
        assert_eq!(images.thin(Some(6)), images);
        let both = Pool::together(&[thin.clone(), images.clone()]).unwrap();
        assert_eq!((both.labels().len(), both.num_bytes(), both.classes()), (9, 9, 3));
        let windows = Windows { x: vec![0.0; 4], len: 2, labels: vec![1, 0], classes: 2 };
        assert_eq!(thin_windows(&windows, Some(1)).labels, [1]);
        let windows = Pool::Windows(windows);
        assert_eq!(windows.num_bytes(), 16);
        assert_eq!(Pool::together(&[images, windows]), None, "of one kind only");
    }
}
