//! Writes a point in time as ISO 8601 does, for the values that databases give back. No time zone
//! is applied: what a database gives is either UTC or of no zone.

use std::fmt::Write;

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// A date, from its days since 1970-01-01 in the Gregorian calendar.
#[must_use]
pub fn date(days: i64) -> String {
    // Days are counted from 0000-03-01, so that a leap day is the last of its year (the algorithm
    // of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A time of day, from its microseconds; a fraction only where there is one.
#[must_use]
pub fn time(us: i64) -> String {
    let (second, fraction) = (us / 1_000_000, us % 1_000_000);
    let mut text = format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60);
    if fraction != 0 {
        // dropped: writing into a String cannot fail.
        let _ = write!(text, ".{fraction:06}");
    }
    text
}

/// A date and time, from its microseconds since 1970-01-01T00:00:00.
#[must_use]
pub fn date_time(us: i64) -> String {
    format!("{}T{}", date(us.div_euclid(DAY_US)), time(us.rem_euclid(DAY_US)))
}

#[cfg(test)]
mod tests {
    use super::{date, date_time};

    #[test]
    fn days_and_times_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_088, "2024-12-31"),
            (-719_528, "0000-01-01"),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
        assert_eq!(date_time(-1), "1969-12-31T23:59:59.999999");
        assert_eq!(date_time(951_827_696_000_000), "2000-02-29T12:34:56");
    }
}
