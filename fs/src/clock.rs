//! Wall time for inodes: the one place that reads the clock. Records carry the times, so `apply` never asks. And how a time
//! is written for people.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Time;

/// The time now, as inodes keep it. A clock before 1970 counts as 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that the lint points to"
)]
pub(crate) fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        secs: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    }
}

/// A time as people read it, to the second: `2026-11-22T08:15:00Z`.
pub(crate) fn utc(time: Time) -> String {
    const DAY_SECS: i64 = 86_400;
    let (days, secs) = (
        time.secs.div_euclid(DAY_SECS),
        time.secs.rem_euclid(DAY_SECS),
    );
    // The civil calendar from days: years begin in March, so that a leap day ends one; eras have 400 years.
    let days = i128::from(days) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        let text = |secs| utc(Time { secs, nanos: 0 });
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(text(1_795_335_300), "2026-11-22T08:15:00Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59Z");
        let _ = (text(i64::MAX), text(i64::MIN));
    }
}
