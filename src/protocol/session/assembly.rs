//! Puts the parts of a message together again, one message of a partner at a time.

use std::collections::BTreeMap;

use crate::wire::{Frame, MAX_SPLIT_BYTES};

/// Parts of the newest exchange. What belongs to an older one is refused.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// Run, step, turn of what is being put together or was put together last.
    newest: Option<(u64, u32, u8)>,
    whole: bool,
    parts: BTreeMap<u16, Vec<u8>>,
    bytes: usize,
}

impl Assembly {
    /// Takes a part; gives the message's bytes once all are there.
    ///
    /// # Errors
    /// A word for the counter.
    pub(super) fn take(&mut self, frame: &Frame) -> Result<Option<Vec<u8>>, &'static str> {
        let fits = (1..=Frame::MAX_PARTS).contains(&frame.parts)
            && frame.part < frame.parts
            && frame.turn <= 1
            && (1..=Frame::MAX_PART_BYTES).contains(&frame.data.len());
        if !fits {
            return Err("frame_out_of_bounds");
        }
        let key = (frame.run, frame.step, frame.turn);
        match self.newest {
            Some(newest) if key < newest => return Err("frame_stale"),
            Some(newest) if key == newest && self.whole => return Err("frame_repeated"),
            Some(newest) if key == newest => {}
            Some(_) | None => *self = Self { newest: Some(key), ..Self::default() },
        }
        if self.parts.contains_key(&frame.part) {
            return Err("frame_repeated");
        }
        self.bytes += frame.data.len();
        if self.bytes > MAX_SPLIT_BYTES {
            *self = Self { newest: Some(key), whole: true, ..Self::default() };
            return Err("frame_out_of_bounds");
        }
        self.parts.insert(frame.part, frame.data.clone());
        if self.parts.len() < usize::from(frame.parts) {
            return Ok(None);
        }
        // Parts of another number of parts leave a hole, or stand beyond the end.
        let last = self.parts.last_key_value().map(|(part, _)| *part);
        let bytes = std::mem::take(&mut self.parts).into_values().flatten().collect();
        self.whole = true;
        self.bytes = 0;
        if last == Some(frame.parts - 1) { Ok(Some(bytes)) } else { Err("frame_out_of_bounds") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Stream;

    fn frame(step: u32, part: u16, parts: u16, data: &[u8]) -> Frame {
        Frame { run: 1, step, turn: 0, part, parts, data: data.to_vec() }
    }

    proptest! {
        #[test]
        fn any_order_gives_the_message_and_repeats_change_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            size in 1_usize..40,
            seed in any::<u64>(),
        ) {
            let parts = u16::try_from(bytes.len().div_ceil(size)).unwrap();
            let mut frames: Vec<Frame> = (0..).zip(bytes.chunks(size))
                .map(|(part, data)| frame(3, part, parts, data))
                .collect();
            frames.extend(frames.clone());
            Stream::new(seed, "order").shuffle(&mut frames);
            let mut assembly = Assembly::default();
            let got: Vec<_> = frames.iter().filter_map(|f| assembly.take(f).ok().flatten()).collect();
            prop_assert_eq!(got, vec![bytes]);
        }
    }

    #[test]
    fn an_older_exchange_is_refused_and_a_newer_one_takes_its_place() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(&frame(2, 0, 2, b"a")), Ok(None));
        assert_eq!(assembly.take(&frame(1, 0, 1, b"x")), Err("frame_stale"));
        assert_eq!(assembly.take(&frame(3, 0, 1, b"new")), Ok(Some(b"new".to_vec())));
        assert_eq!(assembly.take(&frame(2, 1, 2, b"b")), Err("frame_stale"));
        assert_eq!(assembly.take(&frame(3, 0, 1, b"new")), Err("frame_repeated"));
        let second_turn = Frame { turn: 1, ..frame(3, 0, 1, b"turn") };
        assert_eq!(assembly.take(&second_turn), Ok(Some(b"turn".to_vec())));
        let next_run = Frame { run: 2, ..frame(1, 0, 1, b"run") };
        assert_eq!(assembly.take(&next_run), Ok(Some(b"run".to_vec())));
    }

    #[test]
    fn frames_out_of_bounds_are_refused_and_hold_no_memory() {
        let mut assembly = Assembly::default();
        let bad = "frame_out_of_bounds";
        assert_eq!(assembly.take(&frame(1, 0, 0, b"a")), Err(bad));
        assert_eq!(assembly.take(&frame(1, 2, 2, b"a")), Err(bad));
        assert_eq!(assembly.take(&frame(1, 0, Frame::MAX_PARTS + 1, b"a")), Err(bad));
        assert_eq!(assembly.take(&frame(1, 0, 1, b"")), Err(bad));
        assert_eq!(assembly.take(&frame(1, 0, 1, &vec![0; Frame::MAX_PART_BYTES + 1])), Err(bad));
        assert_eq!(assembly.take(&Frame { turn: 2, ..frame(1, 0, 1, b"a") }), Err(bad));
        assert_eq!(assembly.take(&frame(1, 5, 9, b"a")), Ok(None));
        assert_eq!(assembly.take(&frame(1, 0, 2, b"a")), Err(bad), "parts of two numbers of parts");
        let part = vec![0; Frame::MAX_PART_BYTES];
        let most = u16::try_from(MAX_SPLIT_BYTES / Frame::MAX_PART_BYTES).unwrap();
        for i in 0..most {
            assert_eq!(assembly.take(&frame(2, i, most + 1, &part)), Ok(None));
        }
        assert_eq!(assembly.take(&frame(2, most, most + 1, &part)), Err(bad));
        assert!(assembly.parts.is_empty());
        assert_eq!(assembly.take(&frame(3, 0, 1, b"ok")), Ok(Some(b"ok".to_vec())), "the twin");
    }
}
