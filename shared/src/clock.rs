//! The system clock, read in this one place: everything else takes the time as a parameter.

use crate::domain::Time;

/// The time now, in whole milliseconds since the Unix epoch.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Time {
    Time::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// A number in `[0, 1)`, the only source of chance: jitter takes it as a parameter.
#[must_use]
pub fn chance() -> f64 {
    rand::random()
}
