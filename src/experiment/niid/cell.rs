//! What is measured: a data set, how it is dealt out, how the clients learn together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::images::{ImageSet, fashion_mnist_dirichlet};
use crate::learn::{
    Cut, Images, LearnError, Split, split_by_dirichlet, split_by_labels, split_by_owned_labels,
    split_evenly,
};
use crate::rng::Stream;

/// One cell of the table; its text form is `fashion-mnist/dir0.5/fedavg`, with `/niid-bench` behind it under those conditions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Which images.
    pub set: ImageSet,
    /// How they are dealt out.
    pub split: SplitRule,
    /// How clients learn together.
    pub strategy: Strategy,
    /// What images and learning have beside that.
    pub conditions: Conditions,
}

/// What decides figures beside split and strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// Pixels scaled by mean and deviation of the set, all images of a client, no weight decay.
    Scaled,
    /// `niid-bench`: pixels from 0 to 1, a tenth of a client's images kept out, a weight decay of 0.00001, as Flower's
    /// `niid_bench` has them.
    NiidBench,
}

/// How a set is dealt out among the clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SplitRule {
    /// `iid`: evenly.
    Iid,
    /// `dir0.5`: by Dirichlet draws of this alpha.
    Dirichlet(f64),
    /// `labels2`: so many labels each.
    Labels(usize),
}

/// How clients learn together. A new one needs its variant, its name, and what it sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The weighted mean of what all have learned.
    FedAvg,
    /// The same, with a pull towards the round's start.
    FedProx,
    /// Each client keeps its own network; mean logits a class travel.
    FedDistill,
    /// Each client keeps its own network; mean embeddings a class travel.
    FedProto,
    /// Each client has the convolutions, its edge the dense layers; both halves are averaged each round. What
    /// crosses the cut does so as it is.
    SplitFed,
    /// The same with eight bits a value across the cut.
    Hfsl,
}

/// What an accuracy is of. Figures of one kind can be compared with each other, those of two can't.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// The one model that all clients come to.
    #[default]
    CommonModel,
    /// The mean accuracy of the clients' own models, each on all test images, also those of classes that the
    /// client has never seen. There is no common one.
    MeanOfOwnModels,
}

impl Judged {
    /// Its name, as in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::CommonModel => "common_model",
            Self::MeanOfOwnModels => "mean_of_own_models",
        }
    }
}

/// Clients of each cell.
pub const CLIENTS: usize = 10;

/// Labels of each client where they have two: what `niid_bench` draws with numpy and seed 42, as which of them meet
/// decides more than anything else does (its published figures differ by 2.5 points over draws).
const LABELS_2: [[usize; 2]; CLIENTS] =
    [[0, 7], [1, 6], [2, 4], [3, 4], [4, 8], [5, 0], [6, 2], [7, 0], [8, 5], [9, 7]];

/// The same with three.
const LABELS_3: [[usize; 3]; CLIENTS] = [
    [0, 7, 6],
    [1, 4, 8],
    [2, 0, 6],
    [3, 2, 0],
    [4, 5, 9],
    [5, 7, 1],
    [6, 8, 4],
    [7, 5, 3],
    [8, 1, 9],
    [9, 7, 6],
];

impl Cell {
    /// The cells that published figures are known for, those that are judged by them first; then one of each
    /// other strategy.
    pub fn all() -> Vec<Self> {
        const NAMES: [&str; 13] = [
            "fashion-mnist/dir0.5/fedavg",
            "mnist/dir0.5/fedavg",
            "fashion-mnist/labels2/fedavg",
            "fashion-mnist/labels2/fedavg/niid-bench",
            "fashion-mnist/iid/fedavg",
            "fashion-mnist/labels3/fedavg",
            "mnist/labels2/fedavg",
            "fashion-mnist/dir0.5/fedprox",
            "fashion-mnist/labels2/fedprox",
            "fashion-mnist/dir0.5/feddistill",
            "fashion-mnist/dir0.5/fedproto",
            "fashion-mnist/dir0.5/splitfed",
            "fashion-mnist/dir0.5/hfsl",
        ];
        NAMES.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Best accuracy in 50 rounds of 10 local passes that Flower's `niid_bench` publishes, and what a
    /// figure of one seed may differ by; none where it has no such cell.
    ///
    /// # Source
    /// Flower's baseline `niid_bench` after Li et al. 2021, arXiv:2102.02079.
    pub fn published(&self) -> Option<(f64, f64)> {
        let (set, split) = (self.set, self.split.to_string());
        match (set, split.as_str(), self.strategy) {
            (ImageSet::FashionMnist, "dir0.5", Strategy::FedAvg) => Some((0.8809, 0.006)),
            (ImageSet::FashionMnist, "dir0.5", Strategy::FedProx) => Some((0.8815, 0.006)),
            (ImageSet::FashionMnist, "labels2", Strategy::FedAvg) => Some((0.7810, 0.025)),
            (ImageSet::FashionMnist, "labels2", Strategy::FedProx) => Some((0.7805, 0.025)),
            (ImageSet::FashionMnist, "labels3", Strategy::FedAvg) => Some((0.8243, 0.015)),
            (ImageSet::FashionMnist, "labels3", Strategy::FedProx) => Some((0.8299, 0.015)),
            (ImageSet::FashionMnist, "iid", Strategy::FedAvg) => Some((0.8923, 0.006)),
            (ImageSet::FashionMnist, "iid", Strategy::FedProx) => Some((0.8942, 0.006)),
            (ImageSet::Mnist, "dir0.5", Strategy::FedAvg) => Some((0.9889, 0.003)),
            (ImageSet::Mnist, "dir0.5", Strategy::FedProx) => Some((0.9902, 0.003)),
            (ImageSet::Mnist, "labels2", Strategy::FedAvg) => Some((0.9686, 0.006)),
            (ImageSet::Mnist, "labels2", Strategy::FedProx) => Some((0.9685, 0.006)),
            _ => None,
        }
    }

    /// Rounds where none are asked for: as many as published where a cell is judged by them, else ten.
    pub fn rounds(&self) -> u64 {
        let judged = ["fashion-mnist/dir0.5", "mnist/dir0.5", "fashion-mnist/labels2"];
        let name = format!("{}/{}", self.set.name(), self.split);
        let is_judged = self.strategy == Strategy::FedAvg && judged.contains(&name.as_str());
        if is_judged { 50 } else { 10 }
    }

    /// Rows of each client.
    ///
    /// Of `fashion-mnist/dir0.5` they are fixed, whatever the seed: see [`fashion_mnist_dirichlet`]. Of `labels2` and
    /// `labels3` it is fixed which labels a client has, but not which of their rows.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it can't be dealt out so.
    pub fn deal(&self, train: &Images, seed: u64) -> Result<Split, LearnError> {
        let mut split = self.deal_all(train, seed)?;
        if self.conditions == Conditions::NiidBench {
            for (client, rows) in split.iter_mut().enumerate() {
                Stream::new(seed, &format!("held out {client}")).shuffle(rows);
                rows.truncate(rows.len() - rows.len() / 10);
            }
        }
        Ok(split)
    }

    fn deal_all(&self, train: &Images, seed: u64) -> Result<Split, LearnError> {
        let (labels, classes) = (&train.labels, train.classes);
        match self.split {
            SplitRule::Dirichlet(alpha)
                if self.set == ImageSet::FashionMnist
                    && (alpha - 0.5).abs() < f64::EPSILON
                    && labels.len() == 60_000 =>
            {
                Ok(fashion_mnist_dirichlet())
            }
            SplitRule::Dirichlet(alpha) => {
                split_by_dirichlet(labels, classes, CLIENTS, alpha, seed)
            }
            SplitRule::Iid => split_evenly(labels.len(), CLIENTS, seed),
            SplitRule::Labels(2) => split_by_owned_labels(labels, classes, &LABELS_2, seed),
            SplitRule::Labels(3) => split_by_owned_labels(labels, classes, &LABELS_3, seed),
            SplitRule::Labels(each) => split_by_labels(labels, classes, CLIENTS, each, seed),
        }
    }

    /// A name for its folder.
    pub fn folder(&self) -> String {
        self.to_string().replace('/', "-")
    }
}

impl Conditions {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scaled => "scaled",
            Self::NiidBench => "niid-bench",
        }
    }
}

impl Strategy {
    const ALL: [Self; 6] =
        [Self::FedAvg, Self::FedProx, Self::FedDistill, Self::FedProto, Self::SplitFed, Self::Hfsl];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::FedAvg => "fedavg",
            Self::FedProx => "fedprox",
            Self::FedDistill => "feddistill",
            Self::FedProto => "fedproto",
            Self::SplitFed => "splitfed",
            Self::Hfsl => "hfsl",
        }
    }

    /// Where the network is cut, if clients train a part of it only.
    pub fn cut(self) -> Option<Cut> {
        match self {
            Self::FedAvg | Self::FedProx | Self::FedDistill | Self::FedProto => None,
            // Behind its two convolutions.
            Self::SplitFed | Self::Hfsl => Some(Cut { blocks: 2, head_in_front: false }),
        }
    }

    /// What its accuracies are of.
    pub fn judged(self) -> Judged {
        match self {
            Self::FedAvg | Self::FedProx | Self::SplitFed | Self::Hfsl => Judged::CommonModel,
            Self::FedDistill | Self::FedProto => Judged::MeanOfOwnModels,
        }
    }

    /// Rounds of an edge for one of the cloud; a client's passes are dealt out among them.
    pub fn cluster_rounds(self) -> u32 {
        if self == Self::Hfsl { 2 } else { 1 }
    }

    /// What it sets, beside what all cells have in common.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Self::FedAvg => &["strategy.name=fedavg"],
            Self::FedProx => &["strategy.name=fedprox", "strategy.prox_mu=0.01"],
            Self::FedDistill => &[
                "strategy.name=fedavg",
                "strategy.contribute=class_logits",
                "strategy.distill_lambda=1",
                "knowledge.own_models=true",
                "knowledge.merging=mean",
                "knowledge.distil_steps=0",
            ],
            Self::FedProto => &[
                "strategy.name=fedavg",
                "strategy.contribute=prototypes",
                "knowledge.own_models=true",
                "knowledge.prototype_weight=1",
                "knowledge.merging=mean",
                "knowledge.distil_steps=0",
            ],
            Self::SplitFed => &["strategy.name=fedavg", "split.coding=f32"],
            Self::Hfsl => &["strategy.name=fedavg", "split.coding=int8"],
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.set.name(), self.split, self.strategy.name())?;
        match self.conditions {
            Conditions::Scaled => Ok(()),
            Conditions::NiidBench => write!(f, "/{}", self.conditions.name()),
        }
    }
}

impl fmt::Display for SplitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => f.write_str("iid"),
            Self::Dirichlet(alpha) => write!(f, "dir{alpha}"),
            Self::Labels(each) => write!(f, "labels{each}"),
        }
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let (Some(set), Some(split), Some(strategy), conditions, None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("expected set/split/strategy, as in fashion-mnist/dir0.5/fedavg".to_owned());
        };
        let conditions = match conditions {
            None => Conditions::Scaled,
            Some("niid-bench") => Conditions::NiidBench,
            Some(other) => return Err(format!("no conditions {other:?}: niid-bench, or nothing")),
        };
        let sets = || ImageSet::ALL.into_iter();
        let strategies = || Strategy::ALL.into_iter();
        Ok(Self {
            set: sets().find(|known| known.name() == set).ok_or_else(|| {
                format!(
                    "no set {set:?}: one of {:?}",
                    sets().map(ImageSet::name).collect::<Vec<_>>()
                )
            })?,
            split: split.parse()?,
            strategy: strategies().find(|known| known.name() == strategy).ok_or_else(|| {
                let known: Vec<_> = strategies().map(Strategy::name).collect();
                format!("no strategy {strategy:?}: one of {known:?}")
            })?,
            conditions,
        })
    }
}

impl FromStr for SplitRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("no split {text:?}: iid, dirALPHA (0.01 to 100) or labelsN (1 to 10)");
        if text == "iid" {
            return Ok(Self::Iid);
        }
        if let Some(alpha) = text.strip_prefix("dir") {
            let alpha = alpha.parse().ok().filter(|alpha| (0.01..=100.0).contains(alpha));
            return alpha.map(Self::Dirichlet).ok_or_else(bad);
        }
        let each = text.strip_prefix("labels").and_then(|each| each.parse().ok());
        each.filter(|each| (1..=10).contains(each)).map(Self::Labels).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn cells_are_named_by_set_split_and_strategy() {
        let all = Cell::all();
        assert_eq!(all.len(), 13);
        for cell in &all {
            assert_eq!(cell.to_string().parse::<Cell>().as_ref(), Ok(cell));
            let averages = matches!(cell.strategy, Strategy::FedAvg | Strategy::FedProx);
            assert_eq!(cell.published().is_some(), averages, "{cell}");
        }
        for strategy in Strategy::ALL {
            assert!(all.iter().any(|cell| cell.strategy == strategy), "{strategy:?}");
        }
        let rounds: Vec<u64> = all.iter().map(Cell::rounds).collect();
        assert_eq!(rounds, [50, 50, 50, 50, 10, 10, 10, 10, 10, 10, 10, 10, 10]);
        let other: Cell = "mnist/dir0.1/fedavg".parse().unwrap();
        assert_eq!((other.split, other.published()), (SplitRule::Dirichlet(0.1), None));
    }

    #[test]
    fn wrong_names_say_what_is_known() {
        let why = |text: &str| text.parse::<Cell>().unwrap_err();
        assert!(why("cifar/iid/fedavg").contains("fashion-mnist"));
        assert!(why("mnist/iid/scaffold").contains("fedprox"));
        for split in ["dir", "dir0", "dirNaN", "dir-1", "labels0", "labels11", "even"] {
            assert!(why(&format!("mnist/{split}/fedavg")).contains("dirALPHA"), "{split}");
        }
        assert!(why("mnist/iid/fedavg/4").contains("niid-bench"));
        for text in ["", "mnist", "mnist/iid", "mnist/iid/fedavg/niid-bench/4"] {
            assert!(why(text).contains("set/split/strategy"), "{text:?}");
        }
    }

    #[test]
    fn what_was_published_with_a_draw_is_dealt_as_drawn_there() {
        let labels = (0..60_000_u32).map(|row| u8::try_from(row % 10).unwrap()).collect();
        let train = Images { labels, classes: 10, width: 0, height: 0, pixels: Vec::new() };
        let deal = |name: &str, seed| name.parse::<Cell>().unwrap().deal(&train, seed).unwrap();
        let fixed = fashion_mnist_dirichlet();
        assert_eq!(deal("fashion-mnist/dir0.5/fedavg", 7), fixed);
        assert_ne!(deal("mnist/dir0.5/fedavg", 7), fixed);
        assert_ne!(deal("mnist/dir0.5/fedavg", 7), deal("mnist/dir0.5/fedavg", 8));

        let labels_of = |rows: &[usize]| rows.iter().map(|row| row % 10).collect::<BTreeSet<_>>();
        for seed in [1, 2] {
            let two = deal("mnist/labels2/fedavg", seed);
            assert!(two.iter().zip(&LABELS_2).all(|(rows, own)| labels_of(rows) == (*own).into()));
            let three = deal("fashion-mnist/labels3/fedavg", seed);
            assert!(
                three.iter().zip(&LABELS_3).all(|(rows, own)| labels_of(rows) == (*own).into())
            );
        }
        assert_ne!(deal("mnist/labels2/fedavg", 1), deal("mnist/labels2/fedavg", 2));
    }

    #[test]
    fn as_niid_bench_does_a_tenth_of_each_client_is_kept_out() {
        let labels = (0..6_000_u32).map(|row| u8::try_from(row % 10).unwrap()).collect();
        let train = Images { labels, classes: 10, width: 0, height: 0, pixels: Vec::new() };
        let cell = |name: &str| name.parse::<Cell>().unwrap();
        let all = cell("mnist/labels2/fedavg").deal(&train, 1).unwrap();
        let kept = cell("mnist/labels2/fedavg/niid-bench").deal(&train, 1).unwrap();
        for (all, kept) in all.iter().zip(&kept) {
            assert_eq!(kept.len(), all.len() - all.len() / 10);
            let (all, some) = (BTreeSet::from_iter(all), BTreeSet::from_iter(kept));
            assert!(some.len() == kept.len() && some.is_subset(&all));
            let out: BTreeSet<_> = all.difference(&some).map(|row| *row % 10).collect();
            assert_eq!(out.len(), 2, "of each label some are kept out");
        }
        let other = cell("mnist/labels2/fedavg/niid-bench").deal(&train, 2).unwrap();
        assert_ne!(kept, other);
    }
}
