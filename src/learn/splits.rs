//! How one labelled set is dealt out among clients: evenly, by Dirichlet draws, by labels.
//!
//! Each function gives a list of row indices a client; together they are a partition of the rows. They
//! follow the recipes of NIID-Bench, so that figures can be laid beside published ones; the draws are our
//! own streams, so the splits themselves are others.
//!
//! Called by `experiment/`; the rows are those of [`super::Images`].
//!
//! # Source
//! Li et al. 2021, arXiv:2102.02079 (NIID-Bench).

use super::LearnError;
use crate::rng::Stream;

/// Rows of each client.
pub type Split = Vec<Vec<usize>>;

/// All rows in a random order, in parts as even as can be.
///
/// # Errors
/// [`LearnError::OutOfRange`] with more clients than rows, or none.
/// # Examples
/// ```
/// let split = gaisnet::learn::split_evenly(7, 3, 1)?;
/// assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 2]);
/// # Ok::<(), gaisnet::learn::LearnError>(())
/// ```
pub fn split_evenly(rows: usize, clients: usize, seed: u64) -> Result<Split, LearnError> {
    check_clients(rows, clients)?;
    let mut order: Vec<usize> = (0..rows).collect();
    Stream::new(seed, "split/even").shuffle(&mut order);
    Ok(deal(&order, clients))
}

/// Each class is dealt out in proportions drawn from a symmetric Dirichlet distribution: the lower
/// `alpha`, the more a client has of few classes.
///
/// A client that has its even share already gets nothing of a class, and all is drawn anew until each
/// client has at least [`LEAST_ROWS`].
///
/// # Errors
/// [`LearnError::OutOfRange`] when `alpha` isn't positive, a label isn't below `classes`, there are too few
/// rows, or [`MOST_DRAWS`] draws leave somebody without.
pub fn split_by_dirichlet(
    labels: &[u8],
    classes: usize,
    clients: usize,
    alpha: f64,
    seed: u64,
) -> Result<Split, LearnError> {
    check_clients(labels.len(), clients)?;
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(out_of_range("alpha", "positive", alpha));
    }
    let by_class = rows_by_class(labels, classes)?;
    let mut stream = Stream::new(seed, "split/dirichlet");
    for _ in 0..MOST_DRAWS {
        let split = draw(&by_class, labels.len(), clients, alpha, &mut stream);
        if split.iter().all(|rows| rows.len() >= LEAST_ROWS) {
            return Ok(split);
        }
    }
    let expected = format!("{LEAST_ROWS} rows each: take fewer clients or a higher alpha");
    Err(out_of_range("rows of each client", &expected, "fewer"))
}

/// Each client has `each` labels, the first of which is its own number modulo the number of classes;
/// the rows of a class are dealt evenly to those that have it.
///
/// # Errors
/// [`LearnError::OutOfRange`] when `each` is none or more than all, a label isn't below `classes`, or nobody
/// has the label of some row.
pub fn split_by_labels(
    labels: &[u8],
    classes: usize,
    clients: usize,
    each: usize,
    seed: u64,
) -> Result<Split, LearnError> {
    check_clients(labels.len(), clients)?;
    if !(1..=classes).contains(&each) {
        return Err(out_of_range("labels a client", &format!("1 to {classes}"), each));
    }
    let mut stream = Stream::new(seed, "split/labels");
    let has: Vec<Vec<usize>> = (0..clients)
        .map(|client| {
            let mut own = vec![client % classes];
            while own.len() < each {
                let label = stream.below(classes);
                if !own.contains(&label) {
                    own.push(label);
                }
            }
            own
        })
        .collect();
    deal_by_labels(labels, classes, &has, &mut stream)
}

/// Each client has the labels that are named for it; the rows of a class are dealt evenly to those that have it.
///
/// # Errors
/// [`LearnError::OutOfRange`] as [`split_by_labels`].
pub fn split_by_owned_labels<T: AsRef<[usize]>>(
    labels: &[u8],
    classes: usize,
    owned: &[T],
    seed: u64,
) -> Result<Split, LearnError> {
    check_clients(labels.len(), owned.len())?;
    deal_by_labels(labels, classes, owned, &mut Stream::new(seed, "split/labels"))
}

fn deal_by_labels<T: AsRef<[usize]>>(
    labels: &[u8],
    classes: usize,
    owned: &[T],
    stream: &mut Stream,
) -> Result<Split, LearnError> {
    let mut split = vec![Vec::new(); owned.len()];
    for (class, mut rows) in rows_by_class(labels, classes)?.into_iter().enumerate() {
        stream.shuffle(&mut rows);
        let mut takers: Vec<&mut Vec<usize>> = split
            .iter_mut()
            .zip(owned)
            .filter(|(_, own)| own.as_ref().contains(&class))
            .map(|(rows, _)| rows)
            .collect();
        if takers.is_empty() && !rows.is_empty() {
            let expected = "clients: take more of them, or more labels each";
            return Err(out_of_range("class that nobody has", expected, class));
        }
        let parts = deal(&rows, takers.len());
        for (taker, part) in takers.iter_mut().zip(parts) {
            taker.extend(part);
        }
    }
    Ok(split)
}

/// Fewest rows of a client in a Dirichlet split.
pub const LEAST_ROWS: usize = 10;
/// Draws after which a Dirichlet split is given up.
pub const MOST_DRAWS: usize = 1_000;

fn draw(
    by_class: &[Vec<usize>],
    rows: usize,
    clients: usize,
    alpha: f64,
    stream: &mut Stream,
) -> Split {
    let mut split: Split = vec![Vec::new(); clients];
    for class in by_class {
        let mut class = class.clone();
        stream.shuffle(&mut class);
        let shares: Vec<f64> = split
            .iter()
            .map(|own| {
                let share = gamma(alpha, stream);
                if own.len() * clients < rows { share } else { 0.0 }
            })
            .collect();
        let total: f64 = shares.iter().sum();
        let (mut from, mut sum, last) = (0, 0.0, clients.saturating_sub(1));
        for (client, (own, share)) in split.iter_mut().zip(&shares).enumerate() {
            sum += share;
            let to = if client == last { class.len() } else { part_of(class.len(), sum / total) };
            own.extend(class.get(from..to.max(from)).unwrap_or_default());
            from = to.max(from);
        }
    }
    split
}

/// The whole part of `share` of `n`; nothing where the share is no number.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of rows, rounded down; `as` saturates"
)]
fn part_of(n: usize, share: f64) -> usize {
    ((share * n as f64) as usize).min(n)
}

/// A draw from the gamma distribution of shape `alpha` and scale 1; shares of such draws are
/// Dirichlet-distributed.
///
/// # Source
/// Marsaglia and Tsang 2000, "A simple method for generating gamma variables".
fn gamma(alpha: f64, stream: &mut Stream) -> f64 {
    // Their method is for shapes from 1 on; a lower one is brought up by a power of a uniform draw.
    let raise = if alpha < 1.0 { (1.0 - stream.unit()).powf(1.0 / alpha) } else { 1.0 };
    let d = if alpha < 1.0 { alpha + 1.0 } else { alpha } - 1.0 / 3.0;
    loop {
        let x = stream.normal();
        let cube = (1.0 + x / (9.0 * d).sqrt()).powi(3);
        let uniform = 1.0 - stream.unit();
        if cube > 0.0 && uniform.ln() < 0.5 * x * x + d - d * cube + d * cube.ln() {
            return d * cube * raise;
        }
    }
}

/// Consecutive parts; the first ones are longer by one where it doesn't come out even.
fn deal(rows: &[usize], parts: usize) -> Split {
    let parts_or_one = parts.max(1);
    let (each, more) = (rows.len() / parts_or_one, rows.len() % parts_or_one);
    let mut rest = rows.iter().copied();
    (0..parts).map(|at| rest.by_ref().take(each + usize::from(at < more)).collect()).collect()
}

fn rows_by_class(labels: &[u8], classes: usize) -> Result<Vec<Vec<usize>>, LearnError> {
    let mut by_class = vec![Vec::new(); classes];
    for (row, label) in labels.iter().enumerate() {
        let Some(rows) = by_class.get_mut(usize::from(*label)) else {
            return Err(out_of_range("label", &format!("below {classes}"), label));
        };
        rows.push(row);
    }
    Ok(by_class)
}

fn check_clients(rows: usize, clients: usize) -> Result<(), LearnError> {
    if (1..=rows).contains(&clients) {
        return Ok(());
    }
    Err(out_of_range("clients", &format!("1 to the {rows} rows"), clients))
}

fn out_of_range(what: &'static str, expected: &str, actual: impl std::fmt::Display) -> LearnError {
    LearnError::OutOfRange { what, expected: expected.to_owned(), actual: actual.to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(rows: usize) -> Vec<u8> {
        (0..rows).map(|row| u8::try_from(row % 10).unwrap()).collect()
    }

    fn counts(split: &Split, labels: &[u8]) -> Vec<[usize; 10]> {
        let count = |rows: &Vec<usize>| {
            let mut counts = [0; 10];
            for row in rows {
                counts[usize::from(labels[*row])] += 1;
            }
            counts
        };
        split.iter().map(count).collect()
    }

    fn is_partition(split: &Split, rows: usize) -> bool {
        let mut all: Vec<usize> = split.iter().flatten().copied().collect();
        all.sort_unstable();
        all == (0..rows).collect::<Vec<_>>()
    }

    #[test]
    fn a_low_alpha_gives_few_classes_and_a_high_one_all() {
        let labels = labels(6_000);
        let largest = |alpha: f64| -> f64 {
            let split = split_by_dirichlet(&labels, 10, 10, alpha, 42).unwrap();
            assert!(is_partition(&split, 6_000));
            // Mean over clients of the share of their most frequent class.
            let share = |c: &[usize; 10]| {
                f64::from(u32::try_from(*c.iter().max().unwrap()).unwrap())
                    / f64::from(u32::try_from(c.iter().sum::<usize>()).unwrap())
            };
            counts(&split, &labels).iter().map(share).sum::<f64>() / 10.0
        };
        let [few, some, all] = [0.1, 0.5, 100.0].map(largest);
        assert!(few > some && some > all, "{few} {some} {all}");
        assert!(few > 0.5 && all < 0.15, "{few} {all}");
    }

    #[test]
    fn nobody_gets_a_class_after_its_even_share_is_full() {
        // As in the recipe: a client may pass its share by its last class only.
        let labels = labels(6_000);
        let split = split_by_dirichlet(&labels, 10, 10, 0.5, 7).unwrap();
        for counts in counts(&split, &labels) {
            let mut sum = 0;
            for count in counts {
                assert!(sum < 600 || count == 0, "{counts:?}");
                sum += count;
            }
        }
    }

    #[test]
    fn each_client_has_so_many_labels_and_its_own_is_among_them() {
        let labels = labels(6_000);
        for each in [1, 2, 3, 10] {
            let split = split_by_labels(&labels, 10, 10, each, 42).unwrap();
            assert!(is_partition(&split, 6_000));
            for (client, counts) in counts(&split, &labels).iter().enumerate() {
                assert_eq!(counts.iter().filter(|n| **n > 0).count(), each);
                assert!(counts[client] > 0);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_split_and_another_does_not() {
        let labels = labels(1_000);
        assert_eq!(split_evenly(1_000, 10, 1), split_evenly(1_000, 10, 1));
        assert_ne!(split_evenly(1_000, 10, 1), split_evenly(1_000, 10, 2));
        let dirichlet = |seed| split_by_dirichlet(&labels, 10, 10, 0.5, seed).unwrap();
        assert_eq!(dirichlet(1), dirichlet(1));
        assert_ne!(dirichlet(1), dirichlet(2));
        let by_labels = |seed| split_by_labels(&labels, 10, 10, 2, seed).unwrap();
        assert_eq!(by_labels(1), by_labels(1));
        assert_ne!(by_labels(1), by_labels(2));
    }

    #[test]
    fn gamma_draws_have_mean_and_variance_of_their_shape() {
        for alpha in [0.1, 0.5, 1.0, 3.0] {
            let mut stream = Stream::new(1, "gamma");
            let draws: Vec<f64> = (0..40_000).map(|_| gamma(alpha, &mut stream)).collect();
            let mean = draws.iter().sum::<f64>() / 40_000.0;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 40_000.0;
            assert!((mean / alpha - 1.0).abs() < 0.05, "{alpha} {mean}");
            assert!((variance / alpha - 1.0).abs() < 0.1, "{alpha} {variance}");
        }
    }

    #[test]
    fn what_cannot_be_dealt_out_is_refused() {
        let labels = labels(20);
        let kind = |split: Result<Split, LearnError>| split.unwrap_err().kind();
        assert_eq!(kind(split_evenly(3, 4, 1)), "out_of_range");
        assert_eq!(kind(split_evenly(3, 0, 1)), "out_of_range");
        assert_eq!(kind(split_by_dirichlet(&labels, 10, 2, 0.0, 1)), "out_of_range");
        assert_eq!(kind(split_by_dirichlet(&labels, 10, 2, f64::NAN, 1)), "out_of_range");
        assert_eq!(kind(split_by_dirichlet(&labels, 9, 2, 0.5, 1)), "out_of_range");
        assert_eq!(kind(split_by_dirichlet(&labels, 10, 10, 0.5, 1)), "out_of_range", "10 each");
        assert_eq!(kind(split_by_labels(&labels, 10, 2, 0, 1)), "out_of_range");
        assert_eq!(kind(split_by_labels(&labels, 10, 2, 11, 1)), "out_of_range");
        // Two clients with a label each: the rows of eight classes would be nobody's.
        assert_eq!(kind(split_by_labels(&labels, 10, 2, 1, 1)), "out_of_range");
        let two = labels.iter().map(|label| label % 2).collect::<Vec<u8>>();
        assert!(is_partition(&split_by_labels(&two, 10, 2, 1, 1).unwrap(), 20), "no such rows");
    }

    proptest! {
        #[test]
        fn an_even_split_is_a_partition_into_even_parts(
            rows in 1_usize..500, clients in 1_usize..20, seed in any::<u64>(),
        ) {
            prop_assume!(clients <= rows);
            let split = split_evenly(rows, clients, seed).unwrap();
            prop_assert!(is_partition(&split, rows));
            let sizes = || split.iter().map(Vec::len);
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
    }
}
