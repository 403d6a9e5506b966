//! Collects a tag's samples into windows of a model's length.
//!
//! A window is contiguous: after a gap in time the samples before it are dropped. One with a sample
//! that is no finite number is handed out as [`Window::Bad`] and counted, so that the answer for
//! it has quality `bad` instead of none at all. Memory is bounded however much arrives.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use crate::scada::tags::MAX_SAMPLES;
use crate::scada::telegram::Quality;
use crate::time::Wall;

/// How to cut a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowConfig {
    /// Samples in a window, the model's input length.
    pub len: NonZeroUsize,
    /// Samples from the start of one window to the start of the next; `len` for no overlap.
    pub hop: NonZeroUsize,
    /// A pause between telegrams longer than this breaks the window that was being filled.
    pub max_gap_ms: u64,
}

/// What came out of a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Window {
    /// `len` finite samples in their order.
    Good(Vec<f32>),
    /// A window that can't be answered.
    Bad {
        /// Samples in it that were NaN or infinite.
        non_finite: usize,
    },
}

/// What was thrown away since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowCounts {
    /// Windows handed out as good.
    pub good: u64,
    /// Windows with a sample that was no finite number.
    pub bad: u64,
    /// Half-filled windows dropped because of a pause.
    pub gaps: u64,
    /// Samples dropped because nobody took the windows in time.
    pub overrun_samples: u64,
}

/// The samples of one tag that wait to become windows.
#[derive(Debug, Clone)]
pub struct WindowStream {
    config: WindowConfig,
    samples: VecDeque<f32>,
    /// Samples still to pass over before the next window starts (a hop longer than a window).
    skip: usize,
    /// Samples that have left the front, for whatever reason.
    passed: u64,
    last: Option<Wall>,
    /// Telegrams with samples that still wait: number of the first one, and when it came.
    came: VecDeque<(u64, Wall)>,
    began: Option<Wall>,
    counts: WindowCounts,
}

impl WindowStream {
    /// An empty stream.
    pub fn new(config: WindowConfig) -> Self {
        Self {
            config,
            samples: VecDeque::new(),
            skip: 0,
            passed: 0,
            last: None,
            came: VecDeque::new(),
            began: None,
            counts: WindowCounts::default(),
        }
    }

    /// Takes the samples of one telegram that arrived at `now`. Call
    /// [`next_window`](Self::next_window) until it is empty afterwards.
    pub fn push(&mut self, samples: &[f32], now: Wall) {
        let paused = |last: Wall| now.0.saturating_sub(last.0) > self.config.max_gap_ms;
        if self.last.is_some_and(paused) {
            self.counts.gaps += u64::from(!self.samples.is_empty());
            self.passed += self.samples.len() as u64;
            self.samples.clear();
            self.skip = 0;
        }
        self.last = Some(now);
        if !samples.is_empty() {
            self.came.push_back((self.seen(), now));
        }
        self.samples.extend(samples);
        let overrun = self.samples.len().saturating_sub(self.capacity());
        if overrun > 0 {
            self.samples.drain(..overrun);
            self.passed += overrun as u64;
            self.counts.overrun_samples += overrun as u64;
        }
    }

    /// Takes the next complete window out.
    pub fn next_window(&mut self) -> Option<Window> {
        self.next_window_with_start().map(|(_, window)| window)
    }

    /// The same, with the number of its first sample in the stream; [`WindowStream::began`] tells when that one came.
    pub fn next_window_with_start(&mut self) -> Option<(u64, Window)> {
        let len = self.config.len.get();
        let passed = self.skip.min(self.samples.len());
        self.samples.drain(..passed);
        self.passed += passed as u64;
        self.skip -= passed;
        if self.skip > 0 || self.samples.len() < len {
            return None;
        }
        let window: Vec<f32> = self.samples.iter().take(len).copied().collect();
        let start = self.passed;
        while self.came.get(1).is_some_and(|(first, _)| *first <= start) {
            self.came.pop_front();
        }
        self.began = self.came.front().map(|(_, at)| *at);
        let hop = self.config.hop.get();
        let moved = hop.min(self.samples.len());
        self.samples.drain(..moved);
        self.passed += moved as u64;
        self.skip = hop - moved;
        let non_finite = window.iter().filter(|sample| !sample.is_finite()).count();
        if non_finite > 0 {
            self.counts.bad += 1;
            return Some((start, Window::Bad { non_finite }));
        }
        self.counts.good += 1;
        Some((start, Window::Good(window)))
    }

    /// Samples that came so far: the number of the next one.
    pub fn seen(&self) -> u64 {
        self.passed + self.samples.len() as u64
    }

    /// When the first sample of the last window that was taken out came.
    pub fn began(&self) -> Option<Wall> {
        self.began
    }

    /// What was thrown away so far.
    pub fn counts(&self) -> WindowCounts {
        self.counts
    }

    /// When the last telegram arrived.
    pub fn last_sample(&self) -> Option<Wall> {
        self.last
    }

    /// Samples that are kept at most: one window and one telegram.
    fn capacity(&self) -> usize {
        self.config.len.get().saturating_add(MAX_SAMPLES)
    }
}

/// The watchdog: `stale` when the input stopped (or never came), else `good`.
///
/// A clock that was set back makes nothing stale.
pub fn quality(now: Wall, last_sample: Option<Wall>, stale_after_ms: u64) -> Quality {
    match last_sample {
        Some(last) if now.0.saturating_sub(last.0) <= stale_after_ms => Quality::Good,
        _ => Quality::Stale,
    }
}

/// Checks the length of a window that comes whole.
///
/// # Errors
/// [`WrongLength`] with both lengths.
pub fn check_length(expected: NonZeroUsize, actual: usize) -> Result<(), WrongLength> {
    if actual == expected.get() {
        Ok(())
    } else {
        Err(WrongLength { expected: expected.get(), actual })
    }
}

/// A window that doesn't fit the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model takes windows of {expected} samples, got {actual}")]
pub struct WrongLength {
    /// The model's input length.
    pub expected: usize,
    /// What came.
    pub actual: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(len: usize, hop: usize) -> WindowStream {
        WindowStream::new(WindowConfig {
            len: NonZeroUsize::new(len).unwrap(),
            hop: NonZeroUsize::new(hop).unwrap(),
            max_gap_ms: 100,
        })
    }

    fn drain(stream: &mut WindowStream) -> Vec<Window> {
        std::iter::from_fn(|| stream.next_window()).collect()
    }

    fn good(samples: &[f32]) -> Window {
        Window::Good(samples.to_vec())
    }

    #[test]
    fn telegrams_of_any_size_become_windows_of_the_models_length() {
        let mut stream = stream(4, 4);
        stream.push(&[1.0], Wall(0));
        stream.push(&[2.0, 3.0], Wall(10));
        assert_eq!(drain(&mut stream), []);
        stream.push(&[4.0, 5.0, 6.0, 7.0, 8.0, 9.0], Wall(20));
        assert_eq!(drain(&mut stream), [good(&[1.0, 2.0, 3.0, 4.0]), good(&[5.0, 6.0, 7.0, 8.0])]);
    }

    #[test]
    fn windows_tell_where_they_start_also_after_pauses() {
        let mut stream = stream(2, 3);
        stream.push(&[0.0, 1.0, 2.0, 3.0], Wall(0));
        assert_eq!(stream.next_window_with_start(), Some((0, good(&[0.0, 1.0]))));
        assert_eq!(stream.next_window_with_start(), None);
        assert_eq!(stream.seen(), 4);
        stream.push(&[4.0, 5.0], Wall(1_000));
        assert_eq!(stream.next_window_with_start(), Some((4, good(&[4.0, 5.0]))));
        assert_eq!(stream.seen(), 6);
    }

    #[test]
    fn a_short_hop_overlaps_and_a_long_one_leaves_samples_out() {
        let numbers: Vec<f32> = (1_u8..=9).map(f32::from).collect();
        let mut overlapping = stream(4, 2);
        overlapping.push(&numbers[..6], Wall(0));
        assert_eq!(
            drain(&mut overlapping),
            [good(&[1.0, 2.0, 3.0, 4.0]), good(&[3.0, 4.0, 5.0, 6.0])]
        );
        let mut sparse = stream(2, 5);
        for number in &numbers {
            sparse.push(&[*number], Wall(0));
        }
        assert_eq!(drain(&mut sparse), [good(&[1.0, 2.0]), good(&[6.0, 7.0])]);
    }

    #[test]
    fn nan_drops_just_its_window_and_is_counted() {
        let mut stream = stream(2, 2);
        stream.push(&[1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 5.0, 6.0], Wall(0));
        assert_eq!(
            drain(&mut stream),
            [Window::Bad { non_finite: 1 }, Window::Bad { non_finite: 2 }, good(&[5.0, 6.0])]
        );
        assert_eq!(stream.counts(), WindowCounts { good: 1, bad: 2, gaps: 0, overrun_samples: 0 });
    }

    #[test]
    fn samples_on_both_sides_of_a_pause_never_share_a_window() {
        let mut stream = stream(4, 4);
        stream.push(&[1.0, 2.0], Wall(0));
        stream.push(&[3.0], Wall(100));
        stream.push(&[5.0, 6.0, 7.0, 8.0], Wall(201));
        assert_eq!(drain(&mut stream), [good(&[5.0, 6.0, 7.0, 8.0])]);
        assert_eq!(stream.counts().gaps, 1);
    }

    #[test]
    fn memory_is_bounded_when_nobody_takes_the_windows() {
        let mut stream = stream(8, 8);
        for _ in 0..5 {
            stream.push(&vec![1.0; MAX_SAMPLES], Wall(0));
        }
        assert_eq!(stream.samples.len(), MAX_SAMPLES + 8);
        assert_eq!(stream.counts().overrun_samples, (4 * MAX_SAMPLES - 8) as u64);
    }

    #[test]
    fn the_watchdog_turns_quality_stale() {
        let at = |now, last| quality(Wall(now), last, 1_000);
        assert_eq!(at(5_000, Some(Wall(4_000))), Quality::Good);
        assert_eq!(at(5_001, Some(Wall(4_000))), Quality::Stale);
        assert_eq!(at(5_000, None), Quality::Stale);
        assert_eq!(at(3_000, Some(Wall(4_000))), Quality::Good);
    }

    #[test]
    fn a_whole_window_of_another_length_is_refused_with_both_lengths() {
        let len = NonZeroUsize::new(2_048).unwrap();
        assert_eq!(check_length(len, 2_048), Ok(()));
        assert_eq!(
            check_length(len, 1_024).unwrap_err().to_string(),
            "the model takes windows of 2048 samples, got 1024"
        );
    }

    proptest! {
        #[test]
        fn windows_do_not_depend_on_how_the_stream_was_cut(
            total in 0_u16..400, cuts in prop::collection::vec(0_usize..60, 0..20),
            len in 1_usize..40, hop in 1_usize..60,
        ) {
            let samples: Vec<f32> = (0..total).map(f32::from).collect();
            let mut whole = stream(len, hop);
            whole.push(&samples, Wall(0));
            let expected: Vec<Window> = (0..samples.len())
                .map(|k| k * hop)
                .take_while(|start| start + len <= samples.len())
                .map(|start| good(&samples[start..start + len]))
                .collect();
            prop_assert_eq!(drain(&mut whole), expected.clone());

            let mut pieces = stream(len, hop);
            let (mut rest, mut found) = (samples.as_slice(), Vec::new());
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece, Wall(0));
                found.extend(drain(&mut pieces));
                rest = tail;
            }
            pieces.push(rest, Wall(0));
            found.extend(drain(&mut pieces));
            prop_assert_eq!(found, expected);
        }
    }
}
