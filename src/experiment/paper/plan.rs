//! Which cells make up each comparison.

use std::fmt;

use super::cell::{Base, Cell, Deal, Grouping, How, Method, Set};

/// The five comparisons that the `GaisNet` paper (arXiv:2401.02668) asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paper {
    /// With and without pre-training.
    A,
    /// With and without fine-tuning, by method.
    B,
    /// What training and answers cost, by where they happen.
    C,
    /// Devices with unlike examples.
    D,
    /// Devices in clusters.
    E,
}

impl Paper {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "paper-a",
            Self::B => "paper-b",
            Self::C => "paper-c",
            Self::D => "paper-d",
            Self::E => "paper-e",
        }
    }

    /// What it asks.
    pub fn question(self) -> &'static str {
        match self {
            Self::A => "What is a federation's base worth: pre-trained, or random weights?",
            Self::B => "What is fine-tuning worth, and which method of it?",
            Self::C => {
                "What do training and answers cost: federated, split, hybrid, all in one place?"
            }
            Self::D => "What does it cost when devices have unlike examples?",
            Self::E => "What do clusters of devices change?",
        }
    }

    /// Whether each cell is run in a process of its own, so that its peak of memory is its own.
    pub fn tells_memory(self) -> bool {
        self == Self::C
    }

    /// Its cells, in the order to run and tell them; those of a quick look have one seed, two steps and few
    /// examples.
    pub fn cells(self, quick: bool) -> Vec<Cell> {
        let arms = match self {
            Self::A => pre_training(),
            Self::B => fine_tuning(),
            Self::C => costs(),
            Self::D => unlike(),
            Self::E => clusters(),
        };
        let mut cells = Vec::new();
        for seed in 1..=if quick { 1 } else { SEEDS } {
            for arm in &arms {
                let mut cell = Cell { seed, ..arm.clone() };
                // Bytes don't depend on the seed, and to tell them is all that this arm is for.
                if seed > 1 && (cell.arm == F32_ARM || cell.set == Set::FashionMnist) {
                    continue;
                }
                if quick {
                    cell.rounds = cell.rounds.min(1);
                    cell.local_steps = 2;
                    cell.batch_size = 8;
                    cell.most_examples = Some(24);
                    if let Base::Deep { steps } | Base::Digits { steps } = &mut cell.base {
                        *steps = 2;
                    }
                }
                cells.push(cell);
            }
        }
        cells
    }
}

impl fmt::Display for Paper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Four plants with their own recordings, two a site, `LoRA` on the base that comes along.
fn plants(arm: &str) -> Cell {
    Cell {
        arm: arm.to_owned(),
        set: Set::Bearings,
        base: Base::Shipped,
        method: Method::Lora,
        how: How::Federated,
        deal: Deal::Plants,
        devices: 4,
        sites: 2,
        grouping: Grouping::InOrder,
        rounds: 5,
        // With batches of 32 about one pass over a plant's windows.
        local_steps: 10,
        batch_size: 32,
        learning_rate: RATE,
        seed: 0,
        most_examples: None,
    }
}

/// Four devices with even parts of the images, on a base that has seen digits.
fn images(arm: &str) -> Cell {
    let base = Base::Digits { steps: DIGIT_STEPS };
    Cell { set: Set::FashionMnist, base, deal: Deal::Iid, ..plants(arm) }
}

/// Makes a cell of an arm's name.
type Start = fn(&str) -> Cell;
/// What is done with bearings, and what with images.
const SETS: [Start; 2] = [plants, images];

fn pre_training() -> Vec<Cell> {
    let of = |start: Start| {
        let full = |arm| Cell { method: Method::Full, learning_rate: FULL_RATE, ..start(arm) };
        [
            start("pretrained-lora"),
            full("pretrained-full"),
            Cell { base: Base::Random, ..start("random-lora") },
            Cell { base: Base::Random, ..full("random-full") },
        ]
    };
    SETS.into_iter().flat_map(of).collect()
}

fn fine_tuning() -> Vec<Cell> {
    SETS.into_iter().flat_map(methods).collect()
}

fn methods(start: Start) -> [Cell; 8] {
    let of = |arm, method| Cell { method, ..start(arm) };
    [
        Cell { how: How::Untrained, rounds: 0, ..of("none", Method::Nothing) },
        of("head", Method::Head),
        of("lora", Method::Lora),
        of("deep-prompts", Method::DeepPrompts),
        of("ia3", Method::Ia3),
        of("bottleneck", Method::Bottleneck),
        of("bitfit", Method::BitFit),
        Cell { learning_rate: FULL_RATE, ..of("full", Method::Full) },
    ]
}

fn costs() -> Vec<Cell> {
    let of = |arm, how| Cell { how, base: Base::Deep { steps: DEEP_STEPS }, ..plants(arm) };
    vec![
        of("fl", How::Federated),
        of("sl", How::Split { shared: true, int8: false }),
        of("hfsl", How::Split { shared: false, int8: true }),
        of(F32_ARM, How::Split { shared: false, int8: false }),
        of("cloud", How::Pooled),
        images("fl"),
        Cell { how: How::Split { shared: true, int8: false }, ..images("sl") },
        Cell { how: How::Split { shared: false, int8: true }, ..images("hfsl") },
        Cell { how: How::Pooled, ..images("cloud") },
    ]
}

fn unlike() -> Vec<Cell> {
    let of = |start: Start| {
        // With ten classes and two labels each it takes ten devices to have all of them.
        let devices = if start("").set == Set::Bearings { 6 } else { 10 };
        let of = |arm, deal| Cell { deal, devices, ..start(arm) };
        [
            of("iid", Deal::Iid),
            of("dir1.0", Deal::Dirichlet(1.0)),
            of("dir0.5", Deal::Dirichlet(0.5)),
            of("dir0.1", Deal::Dirichlet(0.1)),
            of("labels2", Deal::Labels(2)),
            of("labels1", Deal::Labels(1)),
        ]
    };
    SETS.into_iter().flat_map(of).collect()
}

fn clusters() -> Vec<Cell> {
    let of = |start: Start| {
        let of = |arm, sites, grouping| Cell {
            deal: Deal::Dirichlet(0.5),
            devices: 10,
            sites,
            grouping,
            ..start(arm)
        };
        [
            of("1-site", 1, Grouping::InOrder),
            of("2-sites-alike", 2, Grouping::Alike),
            of("2-sites-random", 2, Grouping::Random),
            of("5-sites-alike", 5, Grouping::Alike),
            of("5-sites-random", 5, Grouping::Random),
        ]
    };
    SETS.into_iter().flat_map(of).collect()
}

/// Seeds of each arm on bearings; images have one.
const SEEDS: u64 = 3;
/// Learning rate where a part trains: that of the default settings.
const RATE: f64 = 3e-3;
/// Where all of the model trains: half of the peak of its pre-training.
const FULL_RATE: f64 = 1e-3;
/// Steps of the deep base's pre-training.
const DEEP_STEPS: u32 = 300;
/// Steps of the pre-training on digits.
const DIGIT_STEPS: u32 = 600;
/// The hybrid with activations as they are: to hold the bytes of eight bits beside.
const F32_ARM: &str = "hfsl-f32";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cell_has_a_name_of_its_own_that_can_be_a_folder() {
        for paper in [Paper::A, Paper::B, Paper::C, Paper::D, Paper::E] {
            for quick in [false, true] {
                let cells = paper.cells(quick);
                let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
                assert_eq!(names.len(), cells.len(), "{paper}");
                let plain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
                assert!(names.iter().all(|name| name.chars().all(plain)), "{names:?}");
            }
            assert!(paper.cells(true).iter().all(|cell| cell.local_steps == 2));
        }
    }

    #[test]
    fn bytes_of_f32_frames_are_measured_once() {
        let cells = Paper::C.cells(false);
        let of = |arm: &str| cells.iter().filter(|cell| cell.arm == arm).count();
        assert_eq!((of("hfsl"), of("fl"), of("hfsl-f32")), (4, 4, 1), "one of each is on images");
        let steps = |arm: &str| {
            let cell = cells.iter().find(|cell| cell.arm == arm).unwrap();
            (cell.rounds, cell.local_steps, cell.batch_size)
        };
        assert_eq!(steps("hfsl"), steps("fl"), "compared at equal epochs");
    }
}
