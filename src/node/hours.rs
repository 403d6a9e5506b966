//! The plant's idle hours by its own clock: a calendar, a time zone, and the node's wall clock.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::settings::SettingsProblem;
use crate::actors::AreHours;
use crate::scada::calendar::{Calendar, Minute};
use crate::settings::Settings;
use crate::time::{Clock, Wall};

/// Says whether a device may train now; none where it always may.
///
/// # Errors
/// The key that says nothing of use: windows that overlap, an unknown zone.
pub(super) fn of(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
) -> Result<Option<AreHours>, SettingsProblem> {
    let schedule = &settings.schedule;
    let key = "schedule.windows";
    let calendar = schedule
        .calendar()
        .map_err(|error| SettingsProblem::Key { key, problem: error.to_string() })?;
    let zone = schedule
        .time_zone()
        .map_err(|problem| SettingsProblem::Key { key: "schedule.zone", problem })?;
    if calendar == Calendar::default() {
        return Ok(None);
    }
    let clock = Arc::clone(clock);
    Ok(Some(Box::new(move || {
        minute_of(clock.now().wall, &zone).is_none_or(|at| calendar.is_open(at))
    })))
}

/// The minute of the week there; `None` for a moment that no calendar has.
#[expect(clippy::cast_sign_loss, reason = "weekdays, hours and minutes aren't negative")]
fn minute_of(wall: Wall, zone: &TimeZone) -> Option<Minute> {
    let at = Timestamp::from_millisecond(i64::try_from(wall.0).ok()?).ok()?.to_zoned(zone.clone());
    let weekday = at.weekday().to_monday_zero_offset();
    Some(Minute::new(weekday as u8, at.hour() as u8, at.minute() as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summer_time_moves_the_hours_with_the_plant() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let at = |utc: &str| minute_of(Wall::parse_utc(utc).unwrap(), &berlin).unwrap().to_string();
        assert_eq!(at("2026-01-05T21:00:00Z"), "mon 22:00");
        assert_eq!(at("2026-07-06T20:00:00Z"), "mon 22:00");
        // The last Sunday of October has this hour twice, that of March not at all.
        assert_eq!(at("2026-10-25T00:30:00Z"), "sun 02:30");
        assert_eq!(at("2026-10-25T01:30:00Z"), "sun 02:30");
        assert_eq!(at("2026-03-29T00:59:00Z"), "sun 01:59");
        assert_eq!(at("2026-03-29T01:00:00Z"), "sun 03:00");
    }
}
