//! Puts many short texts into few sequences of one length, so that no text sees another.
//!
//! A work order has a dozen tokens, a training step takes 256: several go into one sequence. Each
//! keeps a segment number (attention stays inside it) and positions of its own from 0 on, so that
//! what the model learns is the same as if each had a sequence for itself; a property test of the
//! model can rely on that. What is left at a sequence's end is padding, which nobody learns from.
//!
//! ```text
//! rows       a b c | d e | f g h i
//! inputs     S a b c S d e .   S f g h i . . .      S: the start token, . padding
//! targets    a b c E d e E -   f g h i E - - -      E: the end token, - not learned
//! segments   1 1 1 1 2 2 2 0   1 1 1 1 1 0 0 0
//! positions  0 1 2 3 0 1 2 0   0 1 2 3 4 0 0 0
//! ```
//! A row's first token is foreseen from the start token alone. The end token after the last is learned
//! too, or a model that writes would never stop, but it isn't judged.
//!
//! [`lay_end_to_end`] does the other thing: the rows of *one* owner are his log book, and each is foreseen
//! from those before it in the sequence as well. Whatever is packed so shares a sequence with nobody
//! else's rows.

use super::LearnError;

/// What is around a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Comes before a row; its first token is foreseen from this one.
    pub start: u32,
    /// Comes after a row and is learned, never judged.
    pub end: u32,
    /// Rows see those before them: see [`lay_end_to_end`].
    pub together: bool,
}

impl Frame {
    /// Rows by themselves, with one token for both ends.
    pub fn separator(token: u32) -> Self {
        Self { start: token, end: token, together: false }
    }

    /// Rows of one log book, with a separator between them.
    pub fn log_book(token: u32) -> Self {
        Self { together: true, ..Self::separator(token) }
    }
}

/// Sequences of one length, all row-major `[num, length]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packed {
    /// Tokens a sequence.
    pub length: usize,
    /// What the model reads; padding repeats the start token.
    pub inputs: Vec<u32>,
    /// What is to be foreseen at each place; none at padding.
    pub targets: Vec<Option<u32>>,
    /// From 1 inside a sequence; 0 is padding. A place attends to earlier ones of its segment only.
    pub segments: Vec<u32>,
    /// Place inside the segment, from 0.
    pub positions: Vec<u32>,
    /// Whether the target is one of a row's own tokens: these are what a model is judged by.
    pub judged: Vec<bool>,
}

impl Packed {
    /// Number of sequences.
    pub fn num(&self) -> usize {
        self.inputs.len().checked_div(self.length).unwrap_or(0)
    }

    /// Places that are learned from.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    /// The sequences with these numbers; what isn't there is left out.
    pub fn choose(&self, sequences: &[usize]) -> Self {
        let mut out = Self { length: self.length, ..Self::default() };
        for at in sequences {
            let range = at * self.length..(at + 1) * self.length;
            let Some(inputs) = self.inputs.get(range.clone()) else { continue };
            out.inputs.extend_from_slice(inputs);
            out.targets.extend_from_slice(self.targets.get(range.clone()).unwrap_or_default());
            out.segments.extend_from_slice(self.segments.get(range.clone()).unwrap_or_default());
            out.positions.extend_from_slice(self.positions.get(range.clone()).unwrap_or_default());
            out.judged.extend_from_slice(self.judged.get(range).unwrap_or_default());
        }
        out
    }

    /// Adds sequences of the same length behind these.
    pub fn append(&mut self, more: &Self) {
        debug_assert!(self.length == more.length || more.inputs.is_empty(), "one length");
        self.inputs.extend_from_slice(&more.inputs);
        self.targets.extend_from_slice(&more.targets);
        self.segments.extend_from_slice(&more.segments);
        self.positions.extend_from_slice(&more.positions);
        self.judged.extend_from_slice(&more.judged);
    }

    fn open_sequence(&mut self, start: u32) -> usize {
        let at = self.inputs.len();
        let end = at + self.length;
        self.inputs.resize(end, start);
        self.targets.resize(end, None);
        self.segments.resize(end, 0);
        self.positions.resize(end, 0);
        self.judged.resize(end, false);
        at
    }

    fn put(&mut self, at: usize, segment: u32, inputs: &[u32], targets: &[(u32, bool)]) {
        let places = at..at + inputs.len();
        let mut place = self.inputs.get_mut(places.clone()).into_iter().flatten();
        inputs.iter().zip(&mut place).for_each(|(token, to)| *to = *token);
        let mut place = self.targets.get_mut(places.clone()).into_iter().flatten();
        targets.iter().zip(&mut place).for_each(|((token, _), to)| *to = Some(*token));
        let mut place = self.judged.get_mut(places.clone()).into_iter().flatten();
        targets.iter().zip(&mut place).for_each(|((_, judged), to)| *to = *judged);
        self.segments.get_mut(places.clone()).into_iter().flatten().for_each(|to| *to = segment);
        let numbers = self.positions.get_mut(places).into_iter().flatten();
        (0..).zip(numbers).for_each(|(number, to)| *to = number);
    }
}

/// Packs rows in their order into sequences of `length` places: each by itself, unless the frame says that
/// they belong together.
///
/// A row goes into the first of the last few open sequences that has room for it, so little is lost to
/// padding. A row with more than `length` places is cut: each piece is a segment of its own that
/// begins with the piece's predecessor, so that every token is a target exactly once.
///
/// # Determinism
/// Depends on the rows and their order alone.
/// # Errors
/// [`LearnError::OutOfRange`] when `length` is below 2 or above [`MAX_LENGTH`].
pub fn pack<'a>(
    rows: impl IntoIterator<Item = &'a [u32]>,
    frame: Frame,
    length: usize,
) -> Result<Packed, LearnError> {
    if frame.together {
        return lay_end_to_end(rows, frame, length);
    }
    check_length(length)?;
    let mut packed = Packed { length, ..Packed::default() };
    let mut open: Vec<Open> = Vec::new();
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for row in rows.into_iter().filter(|row| !row.is_empty()) {
        inputs.clear();
        inputs.push(frame.start);
        inputs.extend_from_slice(row);
        targets.clear();
        targets.extend(row.iter().map(|token| (*token, true)));
        targets.push((frame.end, false));
        for (inputs, targets) in inputs.chunks(length).zip(targets.chunks(length)) {
            let found = open.iter().position(|sequence| sequence.room(length) >= inputs.len());
            let at = found.unwrap_or_else(|| {
                if open.len() == OPEN {
                    open.remove(0);
                }
                let begin = packed.open_sequence(frame.start);
                open.push(Open { begin, used: 0, segments: 0 });
                open.len() - 1
            });
            let Some(sequence) = open.get_mut(at) else { continue };
            sequence.segments += 1;
            packed.put(sequence.begin + sequence.used, sequence.segments, inputs, targets);
            sequence.used += inputs.len();
        }
    }
    Ok(packed)
}

/// Lays rows end to end in their order, an end token behind each, and cuts them into sequences of `length`
/// places: a row sees all that came before it in its sequence.
///
/// A sequence begins with what its predecessor ended with, so that every token is a target exactly once.
///
/// # Errors
/// As [`pack`].
pub fn lay_end_to_end<'a>(
    rows: impl IntoIterator<Item = &'a [u32]>,
    frame: Frame,
    length: usize,
) -> Result<Packed, LearnError> {
    check_length(length)?;
    let mut packed = Packed { length, ..Packed::default() };
    let (mut inputs, mut targets) = (vec![frame.start], Vec::new());
    for row in rows.into_iter().filter(|row| !row.is_empty()) {
        inputs.extend_from_slice(row);
        inputs.push(frame.end);
        targets.extend(row.iter().map(|token| (*token, true)));
        targets.push((frame.end, false));
    }
    for (inputs, targets) in inputs.chunks(length).zip(targets.chunks(length)) {
        let at = packed.open_sequence(frame.start);
        let seen = inputs.get(..targets.len()).unwrap_or(inputs);
        packed.put(at, 1, seen, targets);
    }
    Ok(packed)
}

fn check_length(length: usize) -> Result<(), LearnError> {
    if (2..=MAX_LENGTH).contains(&length) {
        return Ok(());
    }
    Err(LearnError::OutOfRange {
        what: "tokens a sequence",
        expected: format!("2 to {MAX_LENGTH}"),
        actual: length.to_string(),
    })
}

/// A sequence that has room left.
struct Open {
    begin: usize,
    used: usize,
    segments: u32,
}

impl Open {
    fn room(&self, length: usize) -> usize {
        length - self.used
    }
}

/// Longest sequence.
pub const MAX_LENGTH: usize = 1 << 20;

/// Open sequences that a row may still go into.
const OPEN: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME: Frame = Frame { start: 100, end: 200, together: false };

    fn packed(rows: &[Vec<u32>], length: usize) -> Packed {
        pack(rows.iter().map(Vec::as_slice), FRAME, length).unwrap()
    }

    fn end_to_end(rows: &[Vec<u32>], length: usize) -> Packed {
        let frame = Frame { together: true, ..FRAME };
        pack(rows.iter().map(Vec::as_slice), frame, length).unwrap()
    }

    #[test]
    fn three_rows_by_hand() {
        let packed = packed(&[vec![1, 2, 3], vec![4, 5], vec![6, 7, 8, 9]], 8);
        assert_eq!(packed.inputs, [100, 1, 2, 3, 100, 4, 5, 100, 100, 6, 7, 8, 9, 100, 100, 100]);
        assert_eq!(packed.segments, [1, 1, 1, 1, 2, 2, 2, 0, 1, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 0, 0]);
        let targets: Vec<u32> = packed.targets.iter().map(|t| t.unwrap_or(0)).collect();
        assert_eq!(targets, [1, 2, 3, 200, 4, 5, 200, 0, 6, 7, 8, 9, 200, 0, 0, 0]);
        assert_eq!((packed.num(), packed.num_targets()), (2, 12));
    }

    #[test]
    fn what_is_judged_are_the_rows_own_tokens_and_not_their_ends() {
        let rows = [vec![1, 2, 3], vec![200, 5]];
        for packed in [packed(&rows, 8), end_to_end(&rows, 8)] {
            let targets = packed.targets.iter().zip(&packed.judged);
            let judged: Vec<u32> = targets.filter(|(_, j)| **j).filter_map(|(t, _)| *t).collect();
            assert_eq!(judged, [1, 2, 3, 200, 5], "also when a row has the end token inside");
        }
    }

    #[test]
    fn sequences_can_be_chosen() {
        let all = packed(&[vec![1; 6], vec![2; 6], vec![3; 6]], 8);
        let some = all.choose(&[2, 0, 9]);
        assert_eq!(some.num(), 2);
        assert_eq!((some.inputs[1], some.inputs[9]), (3, 1));
        assert_eq!(some.judged.len(), some.targets.len());
        assert_eq!(all.choose(&[0, 1, 2]), all);
    }

    #[test]
    fn a_log_book_by_hand() {
        let packed = end_to_end(&[vec![1, 2], vec![], vec![3, 4, 5]], 4);
        assert_eq!(packed.inputs, [100, 1, 2, 200, 3, 4, 5, 100]);
        let targets: Vec<u32> = packed.targets.iter().map(|t| t.unwrap_or(0)).collect();
        assert_eq!(targets, [1, 2, 200, 3, 4, 5, 200, 0]);
        assert_eq!(packed.segments, [1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 0, 1, 2, 0]);
    }

    #[test]
    fn a_short_row_fills_a_gap_that_a_longer_one_left() {
        let packed = packed(&[vec![1; 4], vec![2; 5], vec![3]], 7);
        assert_eq!(packed.num(), 2, "{:?}", packed.segments);
        assert_eq!(packed.segments[5..7], [2, 2]);
    }

    #[test]
    fn a_row_that_is_too_long_is_cut_and_loses_no_target() {
        let packed = packed(&[(1..=6).collect()], 4);
        assert_eq!(packed.inputs, [100, 1, 2, 3, 4, 5, 6, 100]);
        assert_eq!(packed.segments, [1, 1, 1, 1, 1, 1, 1, 0]);
        let targets: Vec<u32> = packed.targets.iter().flatten().copied().collect();
        assert_eq!(targets, [1, 2, 3, 4, 5, 6, 200]);
    }

    #[test]
    fn no_rows_give_no_sequences_and_odd_lengths_are_refused() {
        assert_eq!(packed(&[], 4).num(), 0);
        assert_eq!(packed(&[vec![]], 4).num(), 0);
        assert_eq!(end_to_end(&[vec![]], 4).num(), 0);
        for length in [0, 1, MAX_LENGTH + 1] {
            assert_eq!(pack([], FRAME, length).unwrap_err().kind(), "out_of_range");
            assert_eq!(lay_end_to_end([], FRAME, length).unwrap_err().kind(), "out_of_range");
        }
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<u32>>> {
        prop::collection::vec(prop::collection::vec(1_u32..50, 0..30), 0..40)
    }

    proptest! {
        #[test]
        fn every_token_is_a_target_once_and_its_input_is_what_came_before(
            rows in rows(), length in 2_usize..40,
        ) {
            let packed = packed(&rows, length);
            let mut pairs = Vec::new();
            for (input, target) in packed.inputs.iter().zip(&packed.targets) {
                pairs.extend(target.map(|target| (*input, target)));
            }
            let mut expected = Vec::new();
            for row in rows.iter().filter(|row| !row.is_empty()) {
                let before = [&[FRAME.start], row.as_slice()].concat();
                let after = [row.as_slice(), &[FRAME.end]].concat();
                expected.extend(before.into_iter().zip(after));
            }
            pairs.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(pairs, expected);
        }

        #[test]
        fn end_to_end_every_token_is_a_target_once_in_order(rows in rows(), length in 2_usize..40) {
            let packed = end_to_end(&rows, length);
            let targets: Vec<u32> = packed.targets.iter().flatten().copied().collect();
            let rows: Vec<&Vec<u32>> = rows.iter().filter(|row| !row.is_empty()).collect();
            let expected: Vec<u32> =
                rows.iter().flat_map(|row| [row.as_slice(), &[FRAME.end]].concat()).collect();
            prop_assert_eq!(&targets, &expected);
            // What is read is what was to be foreseen, one place later.
            let read = packed.inputs.iter().zip(&packed.targets).filter(|(_, t)| t.is_some());
            let read: Vec<u32> = read.map(|(input, _)| *input).collect();
            prop_assert_eq!(read.get(1..).unwrap_or_default(), &expected[..expected.len().max(1) - 1]);
            prop_assert!(packed.inputs.len() < targets.len() + length);
        }

        #[test]
        fn a_segment_is_one_run_of_one_row_with_positions_of_its_own(
            rows in rows(), length in 2_usize..40,
        ) {
            let packed = packed(&rows, length);
            for at in 0..packed.inputs.len() {
                let first = at % length == 0 || packed.segments[at] != packed.segments[at - 1];
                let is_padding = packed.segments[at] == 0;
                prop_assert_eq!(is_padding, packed.targets[at].is_none());
                if is_padding {
                    let rest = &packed.segments[at..at + length - at % length];
                    prop_assert!(rest.iter().all(|segment| *segment == 0), "padding is at the end");
                } else if first {
                    prop_assert_eq!(packed.positions[at], 0);
                } else {
                    prop_assert_eq!(packed.positions[at], packed.positions[at - 1] + 1);
                    // The next input is what was to be foreseen: no row goes over into another.
                    prop_assert_eq!(Some(packed.inputs[at]), packed.targets[at - 1]);
                }
            }
        }

        #[test]
        fn little_is_lost_to_padding(rows in prop::collection::vec(
            prop::collection::vec(1_u32..50, 1..20), 60..90,
        )) {
            let packed = packed(&rows, 64);
            let lost = packed.inputs.len() - packed.num_targets();
            // At most the last few open sequences have a gap that some row would fit into.
            prop_assert!(lost <= OPEN * 64 + packed.num() * 20, "{lost}");
            prop_assert!(lost * 3 <= packed.inputs.len() + OPEN * 64, "{lost}");
        }
    }
}
