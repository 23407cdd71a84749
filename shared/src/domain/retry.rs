//! When to try again. Chance is a parameter in `[0, 1)`.

use std::time::Duration;

/// How long a failed job waits before its next attempt: 1 s doubling to 5 min, less up to half
/// of it by chance, so that jobs that failed together do not come back together.
#[must_use]
pub fn backoff(failures: u32, chance: f64) -> Duration {
    jittered(
        Duration::from_secs(1),
        Duration::from_secs(300),
        failures,
        chance,
    )
}

/// How long an account rests when its provider names no time: from `first`, doubling with each
/// refusal in a row up to `most`, less up to half of it by chance.
#[must_use]
pub fn rest(first: Duration, most: Duration, streak: u32, chance: f64) -> Duration {
    jittered(first, most, streak, chance)
}

fn jittered(first: Duration, most: Duration, step: u32, chance: f64) -> Duration {
    let doublings = step.saturating_sub(1).min(20);
    let full = first.saturating_mul(1 << doublings).min(most);
    full.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_lies_between_half_and_all_of_its_step(step in 0u32..100, chance in 0.0f64..1.0) {
            let full = backoff(step, 0.0);
            let wait = backoff(step, chance);
            prop_assert!(wait <= full && wait >= full / 2);
            prop_assert!(wait <= Duration::from_secs(300) && full >= Duration::from_secs(1));
            prop_assert!(backoff(step + 1, 0.0) >= full);
        }
    }
}
