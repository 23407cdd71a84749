//! The system clock, read in this one place: everything else takes the time as a parameter.

use std::time::Duration;

use nix::time::ClockId;

use crate::domain::Time;

/// The time now, in whole milliseconds since the Unix epoch.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Time {
    Time::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// Time since the machine started, sleep included. It tells no date, and it never jumps.
#[must_use]
pub fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
    // It fails for a clock that there is not, and this one there is.
    CLOCK.now().map_or(Duration::ZERO, Duration::from)
}

/// A number in `[0, 1)`, the only source of chance: jitter takes it as a parameter.
#[must_use]
pub fn chance() -> f64 {
    rand::random()
}
