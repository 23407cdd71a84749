//! Fallbacks: where a job goes when its first choice does not work out. Pure.
//!
//! A job with fallbacks has a way of steps: the lane and model that it was submitted with, then
//! one step for each fallback. It goes on to the next step when that step's condition is met, one
//! after the other, and never back. Its lane changes only while it waits, so that it stays bound
//! to no account.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Delivery, Event, Job, Outcome, Settlement, State, Time};

/// One step of a job's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The key of the lane that it waits in.
    pub lane: String,
    /// The model that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// It is taken when the job has been on the step before for this many milliseconds and waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// It is taken when an attempt on the step before fails or is rejected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_failure: bool,
}

impl Step {
    /// When it is taken by a job that is on the step before since `since`.
    #[must_use]
    pub fn due(&self, since: Time) -> Option<Time> {
        self.after_ms
            .map(|millis| since + Duration::from_millis(millis))
    }
}

/// What becomes of a job whose next step is taken on failure; none when this outcome is no failure
/// or the job must not run again. `settlement` is what becomes of it without.
///
/// A rejected request will never work where it was rejected, but may elsewhere: it counts as a
/// failed attempt.
#[must_use]
pub fn on_failure(
    job: &Job,
    outcome: &Outcome,
    settlement: &Settlement,
    now: Time,
) -> Option<Settlement> {
    match outcome {
        // On another lane there is no reason to wait for the backoff.
        Outcome::Failed { .. } if settlement.state == State::Queued => Some(Settlement {
            due: now,
            ..settlement.clone()
        }),
        Outcome::Rejected { .. } => {
            let failures = job.failures.saturating_add(1);
            let may_run_again = failures < job.max_attempts
                && job.delivery == Delivery::AtLeastOnce
                && !job.cancel_requested;
            let state = job.state.on(Event::Requeue).ok()?;
            may_run_again.then_some(Settlement {
                state,
                due: now,
                failures,
                losses: job.losses,
                code: None,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);

    fn job() -> Job {
        Job {
            state: State::Running,
            attempt: 1,
            failures: 0,
            losses: 0,
            max_attempts: 2,
            delivery: Delivery::AtLeastOnce,
            cancel_requested: false,
        }
    }

    fn after(job: &Job, outcome: &Outcome) -> Option<Settlement> {
        let settlement = job.finished(1, outcome, NOW, 0.5).unwrap();
        on_failure(job, outcome, &settlement, NOW)
    }

    #[test]
    fn a_failed_and_a_rejected_attempt_go_on_at_once_and_count() {
        for outcome in [
            Outcome::failed("timeout", ""),
            Outcome::rejected("prompt_too_long", ""),
        ] {
            let next = after(&job(), &outcome).unwrap();
            assert_eq!(
                (next.state, next.due, next.failures),
                (State::Queued, NOW, 1)
            );
        }
    }

    #[test]
    fn what_must_not_run_again_does_not() {
        let last = Job {
            failures: 1,
            ..job()
        };
        let once = Job {
            delivery: Delivery::AtMostOnce,
            ..job()
        };
        let cancelled = Job {
            cancel_requested: true,
            ..job()
        };
        for job in [last, once, cancelled] {
            for outcome in [Outcome::failed("x", ""), Outcome::rejected("x", "")] {
                assert_eq!(after(&job, &outcome), None, "{job:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn other_outcomes_are_no_failure() {
        let throttled = Outcome::Overloaded {
            until: None,
            detail: String::new(),
        };
        for outcome in [
            Outcome::Completed(Default::default()),
            Outcome::Cancelled,
            throttled,
        ] {
            assert_eq!(after(&job(), &outcome), None, "{outcome:?}");
        }
    }
}
