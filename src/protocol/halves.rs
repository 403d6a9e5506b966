//! An answer in two halves: a device asks its edge to go on from where the front of the model stopped.
//!
//! ```text
//! device: front(window) --AtCut{version, ..}--> edge: the back of that version --> class, confidence
//! ```
//! Here is what both ends make of each other's values. The question is one on `infer/{model}` as any other
//! (`scada/at_cut.rs`), how long it may take and what is done without a reply is decided by [`super::cascade`],
//! and the sums are made in the lanes.

use std::collections::{BTreeSet, VecDeque};

use super::session::SplitTerms;
use super::update;
use crate::ids::{Digest, Version};
use crate::learn::{ActivationCoding, Activations, LearnError};
use crate::scada::RequestId;
use crate::scada::at_cut::{AtCut, Coding, FrontMark};
use crate::wire::SplitCoding;

impl SplitTerms {
    /// A device's question about one window.
    ///
    /// # Errors
    /// [`LearnError`] when a value isn't finite or beyond any scale.
    pub fn question(&self, front: FrontMark, at_cut: &Activations) -> Result<AtCut, LearnError> {
        let coding = match self.coding {
            SplitCoding::F32 => Coding::F32,
            SplitCoding::Int8 => Coding::Int8,
        };
        let size = |d: &usize| u32::try_from(*d).unwrap_or(u32::MAX);
        let shape = at_cut.shape.iter().map(size).collect();
        let data = at_cut.encode(coding_of(coding))?;
        Ok(AtCut { front, coding, shape, data })
    }

    /// The values of a question about one window, in the coding that was agreed on. That the shape is the
    /// model's is seen by the back.
    ///
    /// # Errors
    /// A short word: the question is refused by it.
    pub fn answerable(&self, question: &AtCut) -> Result<Activations, &'static str> {
        let agreed = match self.coding {
            SplitCoding::F32 => Coding::F32,
            SplitCoding::Int8 => Coding::Int8,
        };
        if question.coding != agreed {
            return Err("split_coding");
        }
        // One more than any has, so that a longer shape is refused and not cut short.
        let sizes = question.shape.iter().take(Activations::MAX_DIMS + 1);
        let shape: Vec<usize> = sizes.map(|d| usize::try_from(*d).unwrap_or(usize::MAX)).collect();
        if shape.first() != Some(&1) {
            return Err("split_shape");
        }
        let values = Activations::decode(coding_of(question.coding), &shape, &question.data);
        values.map_err(|error| match error {
            LearnError::NotFinite { .. } => "split_not_finite",
            _ => "split_shape",
        })
    }

    /// The front that belongs to a whole adapter, packed, of this version on this base.
    pub fn front_of(&self, version: Version, base: &Digest, adapter: &[u8]) -> Option<FrontMark> {
        let front = update::part(adapter, |name| self.cut.is_front(name)).ok()?;
        Some(FrontMark::new(version, base, &front))
    }
}

fn coding_of(coding: Coding) -> ActivationCoding {
    match coding {
        Coding::F32 => ActivationCoding::F32,
        Coding::Int8 => ActivationCoding::Int8,
    }
}

/// Ids of questions that were taken lately, so that one that the broker brings twice is answered once.
#[derive(Debug, Default)]
pub struct Asked {
    known: BTreeSet<RequestId>,
    order: VecDeque<RequestId>,
}

impl Asked {
    /// So many are remembered: a repeat comes within moments.
    pub const MOST: usize = 256;

    /// Whether this is the first time; the oldest is forgotten for it.
    pub fn is_new(&mut self, id: &RequestId) -> bool {
        if !self.known.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id.clone());
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::{Cut, Tensor, TensorSet};
    use crate::wire;

    fn terms(coding: SplitCoding) -> SplitTerms {
        SplitTerms { cut: Cut { blocks: 1, head_in_front: false }, coding, part_bytes: 1_024 }
    }

    fn mark() -> FrontMark {
        FrontMark::new(3, &Digest([1; 32]), b"front")
    }

    fn at_cut() -> Activations {
        Activations::new(vec![1, 2, 2], vec![1.0, -0.5, 0.25, 3.0]).unwrap()
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let exact = terms(SplitCoding::F32);
        let question = exact.question(mark(), &at_cut()).unwrap();
        assert_eq!(question.front, mark());
        assert_eq!(exact.answerable(&question), Ok(at_cut()));
        let short = terms(SplitCoding::Int8);
        let read = short.answerable(&short.question(mark(), &at_cut()).unwrap()).unwrap();
        assert!(read.data.iter().zip(&at_cut().data).all(|(a, b)| (a - b).abs() < 0.02));
        assert_eq!(short.answerable(&question), Err("split_coding"));
    }

    #[test]
    fn malformed_values_are_refused_by_a_word_and_their_twin_is_taken() {
        let terms = terms(SplitCoding::Int8);
        let good = terms.question(mark(), &at_cut()).unwrap();
        assert!(terms.answerable(&good).is_ok());
        let shaped =
            |shape: &[u32]| terms.answerable(&AtCut { shape: shape.to_vec(), ..good.clone() });
        for shape in [
            &[] as &[u32],
            &[1],
            &[2, 1, 2],
            &[1, 2, 3],
            &[1, 0, 2],
            &[1, 1, 1, 1, 2],
            &[1, u32::MAX, u32::MAX, u32::MAX],
        ] {
            assert_eq!(shaped(shape), Err("split_shape"), "{shape:?}");
        }
        let data = |data: Vec<u8>| terms.answerable(&AtCut { data, ..good.clone() });
        assert_eq!(data(vec![]), Err("split_shape"));
        let mut nan = good.data.clone();
        nan[..2].copy_from_slice(&[0xc0, 0x7f]);
        assert_eq!(data(nan), Err("split_not_finite"));
    }

    #[test]
    fn device_and_edge_name_the_same_front() {
        let tensor =
            |name: &str| Tensor { name: name.into(), shape: vec![2], data: vec![1.0, 2.0] };
        let whole = TensorSet::new(vec![tensor("blocks.0.a"), tensor("blocks.1.a")]).unwrap();
        let front = whole.clone().filtered(|name| name == "blocks.0.a");
        let pack = |set: &TensorSet| update::pack(set, wire::Coding::F32, 0).unwrap();
        let base = Digest([4; 32]);
        let of_whole = terms(SplitCoding::F32).front_of(7, &base, &pack(&whole));
        assert_eq!(of_whole, Some(FrontMark::new(7, &base, &pack(&front))));
        assert_eq!(terms(SplitCoding::F32).front_of(7, &base, b"no adapter"), None);
    }

    #[test]
    fn a_repeat_is_known_and_old_ones_are_forgotten() {
        let id = |i: usize| RequestId::new(format!("q-{i}")).unwrap();
        let mut asked = Asked::default();
        assert!(asked.is_new(&id(0)) && !asked.is_new(&id(0)));
        assert!((1..=Asked::MOST).all(|i| asked.is_new(&id(i))));
        assert!(asked.is_new(&id(0)), "it was the oldest");
        assert!(!asked.is_new(&id(Asked::MOST)));
        assert_eq!((asked.known.len(), asked.order.len()), (Asked::MOST, Asked::MOST));
    }
}
