//! Time as plain values. Nothing here reads a clock; `now` is always an argument.
//!
//! Two kinds that must not be mixed: [`Mono`] orders timers inside one process; [`Wall`] is what
//! people read and what expiry compares. Safety never rests on the wall clock: it can only make a
//! node refuse a change.

use serde::{Deserialize, Serialize};

/// Milliseconds since the process started. Never goes back, means nothing elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub u64);

/// Milliseconds since 1970-01-01 UTC, as far as the machine's clock can be believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub u64);

/// Both readings, taken together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// Microseconds since the process started, for latencies.
    pub micros: u64,
    /// For people and for expiry.
    pub wall: Wall,
}

/// Where a node gets its time from: the machine's clock, or a test's.
pub trait Clock: Send + Sync {
    /// Both readings.
    fn now(&self) -> Now;
}

impl Wall {
    /// This moment plus `ms` milliseconds, at most the end of time.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// The moment that a text in UTC names: `2026-12-24T00:00:00Z`, as RFC 3339 has it, without parts of a second.
    ///
    /// # Examples
    /// ```
    /// use gaisnet::time::Wall;
    /// assert_eq!(Wall::parse_utc("1970-01-02T00:00:01Z"), Some(Wall(86_401_000)));
    /// assert_eq!(Wall::parse_utc("2024-02-29T12:30:00Z"), Some(Wall(1_709_209_800_000)));
    /// assert_eq!(Wall::parse_utc("2025-02-29T00:00:00Z"), None);
    /// assert_eq!(Wall::parse_utc("2025-02-28"), None);
    /// ```
    pub fn parse_utc(text: &str) -> Option<Self> {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let three = |text: &str, by: char, widths: [usize; 3]| -> Option<[u64; 3]> {
            let parts: Vec<&str> = text.split(by).collect();
            let [first, second, third] = <[&str; 3]>::try_from(parts).ok()?;
            let number = |part: &str, width: usize| {
                let plain = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
                plain.then(|| part.parse().ok()).flatten()
            };
            let [one, two, three] = widths;
            Some([number(first, one)?, number(second, two)?, number(third, three)?])
        };
        let [year, month, day] = three(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = three(time, ':', [2, 2, 2])?;
        let is_leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let days_of = |year: u64, month: u64| match month {
            2 => 28 + u64::from(is_leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let sound = year >= 1970
            && (1..=12).contains(&month)
            && (1..=days_of(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !sound {
            return None;
        }
        let years: u64 = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum();
        let months: u64 = (1..month).map(|month| days_of(year, month)).sum();
        let days = years + months + day - 1;
        Some(Self((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000))
    }
}
