//! How fast an account gives results: a moving average that forgets.

use std::time::Duration;

use crate::domain::Time;

/// The weight of one more result.
const ALPHA: f64 = 0.2;

/// Without results for this long, an account is believed to be faster than it was, so that it is
/// tried again: the average halves each time this passes once more.
const FORGET: Duration = Duration::from_secs(60);

/// A failed attempt counts as this many times what a result takes: one that fails fast must not
/// look like one that answers fast.
const FAILED: f64 = 4.0;

/// The least that a failed attempt counts for, in milliseconds.
const LEAST_FAILED: f64 = 10_000.0;

/// The most that anything counts for, in milliseconds.
const MOST: f64 = 3_600_000.0;

/// The time to result of an account: an exponentially weighted moving average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    mean_ms: f64,
    heard_at: Time,
}

impl Speed {
    /// The average after one more attempt that took `took` and succeeded or not.
    #[must_use]
    pub fn after(before: Option<Speed>, took: Duration, succeeded: bool, now: Time) -> Speed {
        let mut sample = took.as_secs_f64() * 1000.0;
        if !succeeded {
            let usual = before.map_or(sample, |speed| speed.mean_ms.max(sample));
            sample = (usual * FAILED).max(LEAST_FAILED);
        }
        let sample = sample.min(MOST);
        let mean_ms = match before {
            Some(before) => before.mean_ms + ALPHA * (sample - before.mean_ms),
            None => sample,
        };
        Speed {
            mean_ms,
            heard_at: now,
        }
    }

    /// What it is taken for at `now`.
    #[must_use]
    pub fn at(&self, now: Time) -> Duration {
        // A slow account is silent for long while it works; that is no reason to forget.
        let mean = Duration::from_secs_f64(self.mean_ms / 1000.0);
        let patience = FORGET.max(mean * 4);
        let silent = now.since(self.heard_at);
        let halvings = silent.saturating_sub(patience).as_secs_f64() / FORGET.as_secs_f64();
        mean.mul_f64(0.5_f64.powf(halvings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn steady(took: Duration) -> Speed {
        let mut speed = Speed::after(None, took, true, NOW);
        for _ in 0..50 {
            speed = Speed::after(Some(speed), took, true, NOW);
        }
        speed
    }

    #[test]
    fn it_follows_a_change() {
        let mut speed = steady(SECOND);
        for _ in 0..20 {
            speed = Speed::after(Some(speed), SECOND * 3, true, NOW);
        }
        let seconds = speed.at(NOW).as_secs_f64();
        assert!((2.9..3.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_fast_failure_is_no_fast_answer() {
        let failing = Speed::after(None, Duration::from_millis(1), false, NOW);
        assert!(failing.at(NOW) > steady(SECOND).at(NOW));
        let failing = Speed::after(Some(steady(SECOND)), Duration::ZERO, false, NOW);
        assert!(failing.at(NOW) > steady(SECOND).at(NOW));
    }

    #[test]
    fn what_is_long_ago_is_forgotten_but_not_while_it_works() {
        let slow = steady(Duration::from_secs(600));
        assert_eq!(slow.at(NOW + Duration::from_secs(1200)), slow.at(NOW));
        let quick = steady(SECOND);
        assert_eq!(quick.at(NOW + FORGET), quick.at(NOW));
        assert!(quick.at(NOW + FORGET * 11) < quick.at(NOW) / 1000);
    }

    #[test]
    fn nothing_overflows() {
        let speed = Speed::after(None, Duration::MAX, false, NOW);
        assert!(speed.at(Time::from_millis(i64::MAX)) <= Duration::from_secs(3600));
    }
}
