//! The hours of a week in which a machine may train, in the plant's own time.
//!
//! Here are the windows and whether a minute is in one. What the plant's clock shows, summer time included, is for whoever asks
//! ([`crate::node`]): this knows no zone and no clock.

use std::fmt;

/// Minutes of a day.
const DAY: u16 = 24 * 60;
/// Minutes of a week, from Monday at midnight.
const WEEK: u16 = 7 * DAY;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Windows of a week. Without any, every minute is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calendar {
    /// First minute and the one behind the last, in order, none in two of them.
    windows: Vec<(u16, u16)>,
}

/// One entry of the settings: the days on which it begins, and its two times of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowOf<'a> {
    /// `mon` to `sun`; none stands for all.
    pub days: &'a [String],
    /// `22:00`.
    pub from: &'a str,
    /// `05:30`; of the next day where it isn't later. `24:00` is the day's end.
    pub until: &'a str,
}

/// Why windows make no calendar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CalendarError {
    /// No time of day.
    #[error("{0:?} is no time of day: write it as 05:30, 00:00 to 24:00")]
    Time(String),
    /// No day.
    #[error("{0:?} is no day: write mon, tue, wed, thu, fri, sat or sun")]
    Day(String),
    /// It would be empty, or a whole day.
    #[error("{0} to {0} is no time at all: for a whole day write 00:00 to 24:00")]
    Empty(String),
    /// Two say the same minute.
    #[error("windows overlap on {0}: take one of them out, or end it where the other begins")]
    Overlap(Minute),
}

/// A minute of the week, as people say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute(u16);

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = DAYS.get(usize::from(self.0 / DAY)).unwrap_or(&"sun");
        write!(f, "{day} {:02}:{:02}", self.0 % DAY / 60, self.0 % 60)
    }
}

impl Minute {
    /// Of a weekday, 0 for Monday, and a time of day. More than there are count as the last.
    pub fn new(weekday: u8, hour: u8, minute: u8) -> Self {
        let of_day = u16::from(hour.min(23)) * 60 + u16::from(minute.min(59));
        Self(u16::from(weekday.min(6)) * DAY + of_day)
    }
}

impl Calendar {
    /// Most windows of a week.
    pub const MAX_WINDOWS: usize = 64;

    /// The calendar of these entries.
    ///
    /// # Errors
    /// [`CalendarError`] tells the first that is wrong.
    pub fn new<'a>(entries: impl IntoIterator<Item = WindowOf<'a>>) -> Result<Self, CalendarError> {
        let mut windows = Vec::new();
        for WindowOf { days, from, until } in entries {
            let (begin, end) = (time_of_day(from)?, time_of_day(until)?);
            if begin == end {
                return Err(CalendarError::Empty(from.to_owned()));
            }
            let length = if end > begin { end - begin } else { end + DAY - begin };
            let mut on = Vec::new();
            for day in days {
                let known = DAYS.iter().position(|known| known == day);
                on.push(known.ok_or_else(|| CalendarError::Day(day.clone()))?);
            }
            if on.is_empty() {
                on.extend(0..DAYS.len());
            }
            for day in on {
                let first = u16::try_from(day).unwrap_or_default() * DAY + begin;
                let end = first + length;
                windows.push((first, end.min(WEEK)));
                if end > WEEK {
                    windows.push((0, end - WEEK)); // from Sunday into Monday
                }
            }
        }
        windows.sort_unstable();
        let overlap = windows.windows(2).find_map(|pair| match pair {
            [(_, end), (next, _)] if next < end => Some(Minute(*next)),
            _ => None,
        });
        overlap.map_or(Ok(Self { windows }), |at| Err(CalendarError::Overlap(at)))
    }

    /// Whether a machine may train in this minute.
    pub fn is_open(&self, at: Minute) -> bool {
        let holds = |(from, until): &(u16, u16)| (*from..*until).contains(&at.0);
        self.windows.is_empty() || self.windows.iter().any(holds)
    }
}

fn time_of_day(text: &str) -> Result<u16, CalendarError> {
    let parse = || {
        let (hour, minute) = text.split_once(':')?;
        let number = |part: &str| {
            let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            two.then(|| part.parse::<u16>().ok()).flatten()
        };
        let (hour, minute) = (number(hour)?, number(minute)?);
        let of_day = hour * 60 + minute;
        (minute < 60 && of_day <= DAY).then_some(of_day)
    };
    parse().ok_or_else(|| CalendarError::Time(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn days(days: &[&str]) -> Vec<String> {
        days.iter().map(|day| (*day).to_owned()).collect()
    }

    fn at(text: &str) -> Minute {
        let (day, time) = text.split_once(' ').unwrap();
        let day = DAYS.iter().position(|known| *known == day).unwrap();
        Minute(u16::try_from(day).unwrap() * DAY + time_of_day(time).unwrap())
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let (weekdays, sunday) = (days(&["mon", "fri"]), days(&["sun"]));
        let entries = [
            WindowOf { days: &weekdays, from: "22:00", until: "05:30" },
            WindowOf { days: &sunday, from: "22:00", until: "04:00" },
        ];
        let calendar = Calendar::new(entries).unwrap();
        for open in ["mon 22:00", "tue 05:29", "fri 23:59", "sat 00:00", "sun 22:00", "mon 03:59"] {
            assert!(calendar.is_open(at(open)), "{open}");
        }
        for closed in ["mon 21:59", "tue 05:30", "sat 05:30", "thu 23:00", "mon 04:00", "sun 21:59"]
        {
            assert!(!calendar.is_open(at(closed)), "{closed}");
        }
        assert!(Calendar::default().is_open(at("wed 12:00")), "without windows always");
        assert_eq!(Minute::new(6, 23, 59).to_string(), "sun 23:59");
    }

    #[test]
    fn what_makes_no_calendar_is_said_and_its_twin_is_taken() {
        let (all, monday, tuesday) = (days(&[]), days(&["mon"]), days(&["tue"]));
        let one = |days, from, until| Calendar::new([WindowOf { days, from, until }]);
        assert!(one(&all, "00:00", "24:00").is_ok(), "each day ends where the next begins");
        for bad in ["24:01", "5:30", "05:60", "0530", "-1:00", "aa:bb", ""] {
            assert_eq!(one(&all, bad, "06:00"), Err(CalendarError::Time(bad.into())));
        }
        assert_eq!(one(&all, "06:00", "06:00"), Err(CalendarError::Empty("06:00".into())));
        let mai = days(&["mai"]);
        assert_eq!(one(&mai, "06:00", "07:00"), Err(CalendarError::Day("mai".into())));
        let night = WindowOf { days: &monday, from: "22:00", until: "05:30" };
        let morning = |from| WindowOf { days: &tuesday, from, until: "06:00" };
        let error = Calendar::new([morning("05:29"), night]).unwrap_err();
        assert!(error.to_string().contains("overlap on tue 05:29"), "{error}");
        assert!(Calendar::new([morning("05:30"), night]).is_ok());
    }

    proptest! {
        /// Minute by minute it is what the entries say by themselves.
        #[test]
        fn a_minute_is_open_when_an_entry_covers_it(
            entries in proptest::collection::vec((0_usize..7, 0_u16..DAY, 1_u16..DAY), 1..4),
            minute in 0..WEEK,
        ) {
            let text = |of_day: u16| format!("{:02}:{:02}", of_day / 60, of_day % 60);
            let owned: Vec<_> = entries.iter().map(|(day, from, length)| {
                (days(&[DAYS[*day]]), text(*from), text((from + length) % DAY))
            }).collect();
            let windows = owned.iter().map(|(days, from, until)| WindowOf { days, from, until });
            let covers = entries.iter().filter(|(day, from, length)| {
                let first = u16::try_from(*day).unwrap() * DAY + from;
                (minute + WEEK - first) % WEEK < *length
            }).count();
            match Calendar::new(windows) {
                Ok(calendar) => {
                    prop_assert!(covers <= 1);
                    prop_assert_eq!(calendar.is_open(Minute(minute)), covers == 1);
                }
                Err(error) => prop_assert!(matches!(error, CalendarError::Overlap(_))),
            }
        }
    }
}
