//! Section `[schedule]`: when a device may train. What it means is in [`crate::scada::calendar`] and the actors' pace.

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::scada::calendar::{Calendar, CalendarError, WindowOf};

/// Section `[schedule]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSettings {
    /// Name of the time zone that the windows are told in; absent: UTC.
    pub zone: Option<String>,
    /// Most of the time that training takes, in percent.
    pub cpu_percent: u8,
    /// Hours in which it may train; none: always.
    #[serde(default)]
    pub windows: Vec<WindowSettings>,
}

/// One block `[[schedule.windows]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSettings {
    /// Days on which it begins; absent: all.
    #[serde(default)]
    pub days: Vec<String>,
    /// Time of day.
    pub from: String,
    /// Time of day, of the next one where it isn't later.
    pub until: String,
}

impl ScheduleSettings {
    /// The windows as a calendar.
    ///
    /// # Errors
    /// [`CalendarError`]: two overlap, or one is none.
    pub fn calendar(&self) -> Result<Calendar, CalendarError> {
        Calendar::new(self.windows.iter().map(WindowSettings::window))
    }

    /// The zone that they are told in.
    ///
    /// # Errors
    /// What is wrong with its name.
    pub fn time_zone(&self) -> Result<TimeZone, String> {
        let Some(name) = &self.zone else { return Ok(TimeZone::UTC) };
        let unknown = |_| format!("{name:?} is no time zone: write one like Europe/Berlin");
        TimeZone::get(name).map_err(unknown)
    }
}

impl WindowSettings {
    fn window(&self) -> WindowOf<'_> {
        WindowOf { days: &self.days, from: &self.from, until: &self.until }
    }
}
