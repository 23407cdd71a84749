//! Which times of a cron expression are due. Pure.
//!
//! The clock of a time zone leaps: a time that is left out in spring fires when the gap ends, one
//! that comes twice in autumn fires the first time; what recurs by the hour or minute goes on
//! through both hours.

use chrono::{DateTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};
use sluice_shared::{api::Missed, domain::Time};

/// How late a time may be and still not be missed, in milliseconds.
const GRACE: i64 = 60_000;

/// Jobs for times that were missed, at most.
const MOST: usize = 100;

/// Times by a cron expression in a time zone.
#[derive(Clone, Debug)]
pub struct Times {
    cron: croner::Cron,
    zone: Tz,
}

/// Which part cannot be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTimes {
    /// `cron` or `timezone`.
    pub field: &'static str,
    /// What is wrong, for people.
    pub detail: String,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The times to fire for, oldest first.
    pub fire: Vec<Time>,
    /// The next time; none when there is none.
    pub next: Option<Time>,
}

impl Times {
    /// The times of an expression of five fields.
    ///
    /// # Errors
    /// [`BadTimes`] says which part cannot be.
    pub fn parse(cron: &str, zone: &str) -> Result<Self, BadTimes> {
        let bad = |field, detail| BadTimes { field, detail };
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let shown: String = cron.chars().take(100).collect();
        let parsed = parser.parse(cron).map_err(|error| {
            let detail =
                format!("is `{shown}`: {error}; write five fields, such as `0 7 * * MON-FRI`");
            bad("cron", detail)
        })?;
        let shown: String = zone.chars().take(100).collect();
        let zone = zone.parse().map_err(|_| {
            let detail = format!("is `{shown}`, not an IANA time zone such as `Europe/Berlin`");
            bad("timezone", detail)
        })?;
        Ok(Self { cron: parsed, zone })
    }

    /// The first time after `time`; none when there is none within what a calendar holds.
    #[must_use]
    pub fn after(&self, time: Time) -> Option<Time> {
        let from = self.local(time)?;
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        Some(Time::from_millis(next.timestamp_millis()))
    }

    /// The last time up to `time`.
    fn up_to(&self, time: Time, inclusive: bool) -> Option<Time> {
        let from = self.local(time)?;
        let last = self.cron.find_previous_occurrence(&from, inclusive).ok()?;
        Some(Time::from_millis(last.timestamp_millis()))
    }

    fn local(&self, time: Time) -> Option<DateTime<Tz>> {
        let time = Utc.timestamp_millis_opt(time.as_millis()).single()?;
        Some(time.with_timezone(&self.zone))
    }

    /// What to do at `now`, when the times from `next` on have not been looked at.
    #[must_use]
    pub fn due(&self, next: Time, now: Time, missed: Missed) -> Due {
        let most = match missed {
            Missed::Skip | Missed::RunOnce => 1,
            Missed::RunAll => MOST,
        };
        let mut fire = Vec::new();
        let mut last = self.up_to(now, true);
        while let Some(time) = last.filter(|time| *time >= next && fire.len() < most) {
            fire.push(time);
            last = self.up_to(time, false);
        }
        fire.reverse();
        if missed == Missed::Skip {
            fire.retain(|time| now.as_millis() - time.as_millis() <= GRACE);
        }
        Due {
            fire,
            next: self.after(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> Time {
        let parsed: DateTime<Utc> = text.parse().unwrap();
        Time::from_millis(parsed.timestamp_millis())
    }

    fn next(cron: &str, zone: &str, from: &str, count: usize) -> Vec<Time> {
        let times = Times::parse(cron, zone).unwrap();
        let mut at = time(from);
        (0..count)
            .map(|_| {
                at = times.after(at).unwrap();
                at
            })
            .collect()
    }

    fn times(texts: &[&str]) -> Vec<Time> {
        texts.iter().map(|text| time(text)).collect()
    }

    #[test]
    fn a_time_of_the_day_keeps_to_the_clock_on_the_wall() {
        // Berlin goes from UTC+1 to UTC+2 on 2026-03-29 and back on 2026-10-25.
        assert_eq!(
            next("0 7 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3),
            times(&[
                "2026-03-28T06:00:00Z",
                "2026-03-29T05:00:00Z",
                "2026-03-30T05:00:00Z"
            ])
        );
        assert_eq!(
            next("0 7 * * *", "Europe/Berlin", "2026-10-24T00:00:00Z", 3),
            times(&[
                "2026-10-24T05:00:00Z",
                "2026-10-25T06:00:00Z",
                "2026-10-26T06:00:00Z"
            ])
        );
    }

    #[test]
    fn a_time_that_is_left_out_fires_when_the_gap_ends() {
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            times(&["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"])
        );
    }

    #[test]
    fn a_time_that_comes_twice_fires_once() {
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            times(&["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"])
        );
    }

    #[test]
    fn what_recurs_by_the_minute_goes_on_through_both() {
        let spring = next(
            "*/30 * * * *",
            "America/New_York",
            "2026-03-08T06:00:00Z",
            4,
        );
        let autumn = next(
            "*/30 * * * *",
            "America/New_York",
            "2026-11-01T04:30:00Z",
            6,
        );
        for times in [spring, autumn] {
            assert!(
                times
                    .windows(2)
                    .all(|pair| pair[1].as_millis() - pair[0].as_millis() == 30 * 60_000),
                "{times:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (cron, zone, field) in [
            ("", "UTC", "cron"),
            ("* * * *", "UTC", "cron"),
            ("* * * * * *", "UTC", "cron"),
            ("61 * * * *", "UTC", "cron"),
            ("* * * * *", "Mars/Base", "timezone"),
            ("* * * * *", "", "timezone"),
        ] {
            assert_eq!(
                Times::parse(cron, zone).unwrap_err().field,
                field,
                "{cron} {zone}"
            );
        }
        let never = Times::parse("0 0 30 2 *", "UTC").unwrap();
        assert_eq!(never.after(time("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn missed_times_are_handled_as_configured() {
        let hourly = Times::parse("0 * * * *", "UTC").unwrap();
        let due = |now, missed| hourly.due(time("2026-01-01T01:00:00Z"), time(now), missed);
        let three = [
            "2026-01-01T01:00:00Z",
            "2026-01-01T02:00:00Z",
            "2026-01-01T03:00:00Z",
        ];
        let now = "2026-01-01T03:20:00Z";
        assert_eq!(due(now, Missed::Skip).fire, []);
        assert_eq!(due(now, Missed::RunOnce).fire, times(&three[2..]));
        assert_eq!(due(now, Missed::RunAll).fire, times(&three));
        assert_eq!(
            due(now, Missed::RunAll).next,
            Some(time("2026-01-01T04:00:00Z"))
        );
        // A little late is not missed.
        let now = "2026-01-01T03:00:30Z";
        assert_eq!(due(now, Missed::Skip).fire, times(&three[2..]));
        // Nothing is due before its time.
        let early = due("2026-01-01T00:59:59.999Z", Missed::RunAll);
        assert_eq!((early.fire, early.next), (vec![], Some(time(three[0]))));
        let years = due("2036-01-01T00:00:00Z", Missed::RunAll).fire;
        assert_eq!(
            (years.len(), years[99]),
            (100, time("2036-01-01T00:00:00Z"))
        );
    }

    proptest! {
        #[test]
        fn whoever_looks_when_fires_each_time_once(
            looks in proptest::collection::vec(1_i64..200, 1..40), minute in 0_u32..60,
        ) {
            // From before the clocks go back in Berlin until after.
            let times = Times::parse(&format!("{minute} * * * *"), "Europe/Berlin").unwrap();
            let start = time("2026-10-24T20:00:00Z");
            let mut next = times.after(start).unwrap();
            let (mut now, mut fired) = (start, Vec::new());
            for minutes in looks {
                now = Time::from_millis(now.as_millis() + minutes * 60_000);
                if now >= next {
                    let due = times.due(next, now, Missed::RunAll);
                    fired.extend(due.fire);
                    next = due.next.unwrap();
                }
            }
            let hours = (now.as_millis() - start.as_millis()) / 3_600_000;
            prop_assert!(fired.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!((fired.len() as i64 - hours).abs() <= 1);
        }
    }
}
