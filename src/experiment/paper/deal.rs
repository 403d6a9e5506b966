//! Who gets which examples, and who is at whose site.

use super::cell::{Cell, Deal, Grouping};
use super::material::Pool;
use crate::learn::{LearnError, split_by_dirichlet, split_by_labels, split_evenly};
use crate::rng::Stream;

/// The examples of each device.
///
/// # Errors
/// [`LearnError::OutOfRange`] when they can't be dealt out so.
pub(super) fn deal(cell: &Cell, plants: &[Pool], pooled: &Pool) -> Result<Vec<Pool>, LearnError> {
    let labels = pooled.labels();
    let (n, classes, seed) = (cell.devices, pooled.classes(), cell.seed);
    let rows = match cell.deal {
        Deal::Plants if plants.len() == n => return Ok(plants.to_vec()),
        Deal::Plants => {
            return Err(LearnError::OutOfRange {
                what: "devices",
                expected: format!("{}, one a plant", plants.len()),
                actual: n.to_string(),
            });
        }
        Deal::Iid => split_evenly(labels.len(), n, seed)?,
        Deal::Dirichlet(alpha) => split_by_dirichlet(&labels, classes, n, alpha, seed)?,
        Deal::Labels(each) => split_by_labels(&labels, classes, n, each, seed)?,
    };
    Ok(rows.iter().map(|rows| pooled.choose(rows)).collect())
}

/// Examples of each class, a device each.
pub(super) fn class_counts(devices: &[Pool]) -> Vec<Vec<u64>> {
    let counts = |device: &Pool| {
        let mut counts = vec![0; device.classes()];
        for label in device.labels() {
            if let Some(count) = counts.get_mut(usize::from(label)) {
                *count += 1;
            }
        }
        counts
    };
    devices.iter().map(counts).collect()
}

/// The site of each device; sites are as even as can be.
pub(super) fn sites(cell: &Cell, counts: &[Vec<u64>]) -> Vec<usize> {
    let order: Vec<usize> = match cell.grouping {
        Grouping::InOrder => (0..counts.len()).collect(),
        Grouping::Random => {
            let mut order: Vec<usize> = (0..counts.len()).collect();
            Stream::new(cell.seed, "paper/groups").shuffle(&mut order);
            order
        }
        Grouping::Alike => alike(counts, counts.len().div_ceil(cell.sites.max(1))),
    };
    let mut sites = vec![0; counts.len()];
    for (at, device) in order.iter().enumerate() {
        if let Some(site) = sites.get_mut(*device) {
            *site = at * cell.sites / counts.len().max(1);
        }
    }
    sites
}

/// Devices group by group: the first that is left, then those nearest to it, by the distance of their
/// shares of the classes.
fn alike(counts: &[Vec<u64>], size: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..counts.len()).collect();
    let mut order = Vec::with_capacity(left.len());
    while let Some(first) = left.first().copied() {
        left.sort_by(|a, b| {
            let to = |device: &usize| distance(counts.get(first), counts.get(*device));
            to(a).total_cmp(&to(b)).then(a.cmp(b))
        });
        order.extend(left.drain(..size.clamp(1, left.len())));
        left.sort_unstable();
    }
    order
}

/// Sum of absolute differences of the shares, 0 to 2.
#[expect(clippy::cast_precision_loss, reason = "counts of examples")]
fn distance(a: Option<&Vec<u64>>, b: Option<&Vec<u64>>) -> f64 {
    let (Some(a), Some(b)) = (a, b) else { return f64::MAX };
    let all = |of: &[u64]| of.iter().sum::<u64>().max(1) as f64;
    let (all_a, all_b) = (all(a), all(b));
    a.iter().zip(b).map(|(a, b)| (*a as f64 / all_a - *b as f64 / all_b).abs()).sum()
}

/// Mean distance of the shares of two devices of a site, 0 to 2; 0 where each site has one device.
pub(super) fn spread(counts: &[Vec<u64>], sites: &[usize]) -> f64 {
    let (mut sum, mut pairs) = (0.0, 0_u32);
    for (at, (a, site)) in counts.iter().zip(sites).enumerate() {
        for (b, other) in counts.iter().zip(sites).skip(at + 1) {
            if site == other {
                sum += distance(Some(a), Some(b));
                pairs += 1;
            }
        }
    }
    sum / f64::from(pairs.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::paper::Paper;
    use crate::learn::Images;

    fn cell(sites: usize, grouping: Grouping) -> Cell {
        Cell { sites, grouping, ..Paper::E.cells(false).remove(0) }
    }

    #[test]
    fn the_like_are_together_and_sites_are_even() {
        let counts: Vec<Vec<u64>> =
            [[9, 1], [1, 9], [8, 2], [0, 5], [5, 0], [2, 8]].map(Vec::from).to_vec();
        let alike = sites(&cell(2, Grouping::Alike), &counts);
        assert_eq!(alike, [0, 1, 0, 1, 0, 1]);
        let in_order = sites(&cell(2, Grouping::InOrder), &counts);
        assert_eq!(in_order, [0, 0, 0, 1, 1, 1]);
        assert!(spread(&counts, &alike) < spread(&counts, &in_order));
        let random = sites(&cell(3, Grouping::Random), &counts);
        for site in 0..3 {
            assert_eq!(random.iter().filter(|at| **at == site).count(), 2, "{random:?}");
        }
        assert_eq!(sites(&cell(1, Grouping::Alike), &counts), [0; 6]);
    }

    #[test]
    fn examples_are_dealt_out_whole_and_once() {
        let labels: Vec<u8> = (0..60).map(|row| row % 3).collect();
        let (pixels, classes) = ((0..60).collect(), 3);
        let pooled = Pool::Images(Images { pixels, width: 1, height: 1, labels, classes });
        let dealt = |deal_by| {
            let cell = Cell { deal: deal_by, devices: 3, ..cell(1, Grouping::InOrder) };
            deal(&cell, &[], &pooled)
        };
        for by in [Deal::Iid, Deal::Labels(2), Deal::Dirichlet(1.0)] {
            let devices = dealt(by).unwrap();
            let mut seen = Vec::new();
            for device in &devices {
                let Pool::Images(images) = device else { unreachable!("images were dealt") };
                assert!(images.pixels.iter().zip(&images.labels).all(|(p, label)| p % 3 == *label));
                seen.extend_from_slice(&images.pixels);
            }
            let counted: u64 = class_counts(&devices).iter().flatten().sum();
            seen.sort_unstable();
            assert_eq!((seen, counted), ((0..60).collect(), 60), "{by:?}");
        }
        assert!(dealt(Deal::Plants).is_err(), "there are no plants");
    }
}
