//! The life of a job: which state follows which event, and what an attempt's end means for it.
//!
//! Pure: no clock, no chance, no I/O. [`State::on`] alone computes a state; [`Job`] decides which
//! event a report from a worker amounts to. The store writes what comes out, and only while the
//! row still holds the state that it was computed from.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Outcome, Time, retry};

/// Attempts that a job may lose with their workers before it is held to be what kills them.
pub const MAX_LOSSES: u32 = 10;

/// How long an at-most-once job that came back unstarted waits before it is sent again. A
/// `started` that is still under way through another API process ends the job in that time.
pub const QUARANTINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Where a job is in its life.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted and bound to no account: waiting for its time, for capacity, or for a retry.
    Queued,
    /// Bound to an account and on its way to a worker.
    Dispatched,
    /// A worker has begun.
    Running,
    /// Ended with an answer.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Ended on request.
    Cancelled,
    /// Not begun before its `expires_at`.
    Expired,
}

impl State {
    /// Every state, in the order of a job's life.
    pub const ALL: [State; 7] = [
        State::Queued,
        State::Dispatched,
        State::Running,
        State::Succeeded,
        State::Failed,
        State::Cancelled,
        State::Expired,
    ];

    /// Whether a job in this state never changes again.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired
        )
    }

    /// Whether a job in this state holds a slot of an account.
    #[must_use]
    pub fn is_in_flight(self) -> bool {
        matches!(self, Self::Dispatched | Self::Running)
    }

    /// The name kept in the truth plane and shown in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatched => "dispatched",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The state with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// The state after `event`. What is not listed is refused, so a new state starts closed.
    ///
    /// # Errors
    /// [`Refused`] when `event` cannot happen in this state.
    pub fn on(self, event: Event) -> Result<State, Refused> {
        match (self, event) {
            (State::Queued, Event::Dispatch) => Ok(State::Dispatched),
            (State::Queued, Event::Expire) => Ok(State::Expired),
            (State::Dispatched | State::Running, Event::Start) => Ok(State::Running),
            (State::Dispatched | State::Running, Event::Succeed) => Ok(State::Succeeded),
            (State::Dispatched | State::Running, Event::Requeue) => Ok(State::Queued),
            (State::Queued | State::Dispatched | State::Running, Event::Fail) => Ok(State::Failed),
            (State::Queued | State::Dispatched | State::Running, Event::Cancel) => {
                Ok(State::Cancelled)
            }
            (state, event) => Err(Refused::Illegal { state, event }),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is bound to an account; a new attempt begins.
    Dispatch,
    /// Its worker has begun.
    Start,
    /// Its attempt answered.
    Succeed,
    /// It ends with an error.
    Fail,
    /// It goes back to the backlog, for a retry or another account.
    Requeue,
    /// It ends on request.
    Cancel,
    /// Its `expires_at` has come while it waited.
    Expire,
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 7] = [
        Event::Dispatch,
        Event::Start,
        Event::Succeed,
        Event::Fail,
        Event::Requeue,
        Event::Cancel,
        Event::Expire,
    ];
}

/// Why a report or a request changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The event cannot happen in this state.
    #[error("{event:?} is not possible: the job is {state}")]
    Illegal {
        /// The state the job is in.
        state: State,
        /// What was to happen.
        event: Event,
    },
    /// The report is about an attempt that is no longer the job's current one.
    #[error("attempt {reported} is superseded by attempt {current}")]
    Superseded {
        /// The attempt that was reported on.
        reported: u32,
        /// The job's current attempt.
        current: u32,
    },
}

/// The promise about how often a job is handed to a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Until there is an answer: a job whose worker died runs again.
    #[default]
    AtLeastOnce,
    /// Never twice: a job whose worker died after it began ends `failed` with `worker_lost`.
    /// A provider's refusal at the door (a 429, a 401, no credit) is no run.
    AtMostOnce,
}

/// What the core needs to know of a job to decide about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its state.
    pub state: State,
    /// The number of its current attempt; 0 before the first.
    pub attempt: u32,
    /// Attempts that count against `max_attempts` so far.
    pub failures: u32,
    /// Attempts lost with their worker so far.
    pub losses: u32,
    /// Failed attempts after which it ends.
    pub max_attempts: u32,
    /// How often it may be handed to a provider.
    pub delivery: Delivery,
    /// Someone asked for its end while it was in flight.
    pub cancel_requested: bool,
}

/// What a report about an attempt makes of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The new state.
    pub state: State,
    /// When it may be dispatched again; only of use in `Queued`.
    pub due: Time,
    /// The new count of failed attempts.
    pub failures: u32,
    /// The new count of lost attempts.
    pub losses: u32,
    /// The error that ends it, when it is not the attempt's own.
    pub code: Option<&'static str>,
}

impl Job {
    /// Refuses a report about any attempt but the current one, or about a job that has ended.
    fn check_current(&self, attempt: u32, event: Event) -> Result<(), Refused> {
        if self.state.is_terminal() {
            return Err(Refused::Illegal {
                state: self.state,
                event,
            });
        }
        if attempt != self.attempt {
            return Err(Refused::Superseded {
                reported: attempt,
                current: self.attempt,
            });
        }
        Ok(())
    }

    fn become_after(&self, event: Event, due: Time) -> Result<Settlement, Refused> {
        Ok(Settlement {
            state: self.state.on(event)?,
            due,
            failures: self.failures,
            losses: self.losses,
            code: None,
        })
    }

    /// Attempt `attempt` has begun at its worker.
    ///
    /// # Errors
    /// [`Refused`] when the attempt is not the current one or the job has ended.
    pub fn started(&self, attempt: u32, now: Time) -> Result<Settlement, Refused> {
        self.check_current(attempt, Event::Start)?;
        if self.state == State::Queued && self.delivery == Delivery::AtMostOnce {
            // It was taken for unstarted and put back, but it had begun: it must not run again.
            return Ok(Settlement {
                code: Some("worker_lost"),
                ..self.become_after(Event::Fail, now)?
            });
        }
        self.become_after(Event::Start, now)
    }

    /// Attempt `attempt` has ended with `outcome`. `chance` in `[0, 1)` spreads the backoff.
    ///
    /// # Errors
    /// [`Refused`] when the attempt is not the current one or the job has ended.
    pub fn finished(
        &self,
        attempt: u32,
        outcome: &Outcome,
        now: Time,
        chance: f64,
    ) -> Result<Settlement, Refused> {
        self.check_current(attempt, Event::Succeed)?;
        match outcome {
            Outcome::Completed(_) => self.become_after(Event::Succeed, now),
            Outcome::Rejected { .. } => self.become_after(Event::Fail, now),
            _ if self.cancel_requested => self.become_after(Event::Cancel, now),
            Outcome::Cancelled => self.become_after(Event::Requeue, now),
            Outcome::Throttled { .. }
            | Outcome::AuthFailed { .. }
            | Outcome::OutOfCredit { .. } => self.become_after(Event::Requeue, now),
            // Overload may strike in the middle of an answer, so it may have been a run.
            Outcome::Overloaded { .. } if self.delivery == Delivery::AtLeastOnce => {
                self.become_after(Event::Requeue, now)
            }
            Outcome::Overloaded { .. } => self.become_after(Event::Fail, now),
            Outcome::Failed { .. } => {
                let failures = self.failures.saturating_add(1);
                let again = failures < self.max_attempts && self.delivery == Delivery::AtLeastOnce;
                let event = if again { Event::Requeue } else { Event::Fail };
                let due = now + retry::backoff(failures, chance);
                Ok(Settlement {
                    failures,
                    ..self.become_after(event, due)?
                })
            }
        }
    }

    /// Attempt `attempt` is not being run by anyone and never will be: its worker died, gave it
    /// back, or lost its lease. `began` says whether the worker had begun, if it is known from
    /// elsewhere than the job's own state.
    ///
    /// # Errors
    /// [`Refused`] when the attempt is not the current one or the job is not in flight.
    pub fn lost(&self, attempt: u32, began: bool, now: Time) -> Result<Settlement, Refused> {
        self.check_current(attempt, Event::Requeue)?;
        if self.cancel_requested {
            return self.become_after(Event::Cancel, now);
        }
        let losses = self.losses.saturating_add(1);
        let began = began || self.state == State::Running;
        let twice = self.delivery == Delivery::AtMostOnce && began;
        if twice || losses > MAX_LOSSES {
            let code = Some("worker_lost");
            return Ok(Settlement {
                losses,
                code,
                ..self.become_after(Event::Fail, now)?
            });
        }
        let due = match self.delivery {
            Delivery::AtMostOnce => now + QUARANTINE,
            Delivery::AtLeastOnce => now,
        };
        Ok(Settlement {
            losses,
            ..self.become_after(Event::Requeue, due)?
        })
    }

    /// Attempt `attempt` was handed back by its worker before it began, on purpose: nothing is
    /// lost and nothing counts.
    ///
    /// # Errors
    /// [`Refused`] when the attempt is not the current one or the job is not in flight.
    pub fn returned(&self, attempt: u32, now: Time) -> Result<Settlement, Refused> {
        self.check_current(attempt, Event::Requeue)?;
        let event = if self.cancel_requested {
            Event::Cancel
        } else {
            Event::Requeue
        };
        self.become_after(event, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Completion, ThrottleKind};

    const NOW: Time = Time::from_millis(1_000_000);

    fn job(state: State) -> Job {
        Job {
            state,
            attempt: 2,
            failures: 0,
            losses: 0,
            max_attempts: 3,
            delivery: Delivery::AtLeastOnce,
            cancel_requested: false,
        }
    }

    fn outcomes() -> Vec<Outcome> {
        let detail = String::new;
        vec![
            Outcome::Completed(Completion::default()),
            Outcome::Throttled {
                until: None,
                throttle: ThrottleKind::Burst,
                detail: detail(),
            },
            Outcome::Overloaded {
                until: None,
                detail: detail(),
            },
            Outcome::AuthFailed { detail: detail() },
            Outcome::OutOfCredit { detail: detail() },
            Outcome::rejected("invalid_request", ""),
            Outcome::failed("timeout", ""),
            Outcome::Cancelled,
        ]
    }

    #[test]
    fn every_state_meets_every_event() {
        let mut table = String::new();
        for state in State::ALL {
            for event in Event::ALL {
                let next = state.on(event).map_or("-".into(), |next| next.to_string());
                table += &format!("{state} + {event:?} = {next}\n");
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn every_outcome_meets_every_promise() {
        let mut table = String::new();
        for delivery in [Delivery::AtLeastOnce, Delivery::AtMostOnce] {
            for cancel_requested in [false, true] {
                for failures in [0, 2] {
                    for outcome in outcomes() {
                        let job = Job {
                            delivery,
                            cancel_requested,
                            failures,
                            ..job(State::Running)
                        };
                        let end = job.finished(2, &outcome, NOW, 0.0).unwrap();
                        table += &format!(
                            "{delivery:?} cancel={cancel_requested} failures={failures} {} -> {} failures={} due=+{}s\n",
                            outcome.name(),
                            end.state,
                            end.failures,
                            end.due.since(NOW).as_secs(),
                        );
                    }
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_terminal_state_refuses_everything() {
        for state in State::ALL.into_iter().filter(|state| state.is_terminal()) {
            for event in Event::ALL {
                assert!(state.on(event).is_err(), "{state} + {event:?}");
            }
            let ended = job(state);
            assert!(ended.started(2, NOW).is_err());
            assert!(ended.lost(2, true, NOW).is_err());
            assert!(ended.finished(2, &Outcome::Cancelled, NOW, 0.0).is_err());
        }
    }

    #[test]
    fn an_at_most_once_job_that_began_ends_with_its_worker() {
        let once = Job {
            delivery: Delivery::AtMostOnce,
            ..job(State::Running)
        };
        let end = once.lost(2, false, NOW).unwrap();
        assert_eq!((end.state, end.code), (State::Failed, Some("worker_lost")));
    }

    #[test]
    fn an_at_most_once_job_that_never_began_is_sent_again_after_a_wait() {
        let once = Job {
            delivery: Delivery::AtMostOnce,
            ..job(State::Dispatched)
        };
        let back = once.lost(2, false, NOW).unwrap();
        assert_eq!((back.state, back.due), (State::Queued, NOW + QUARANTINE));
        let waiting = Job {
            state: State::Queued,
            ..once
        };
        let end = waiting.started(2, NOW).unwrap();
        assert_eq!((end.state, end.code), (State::Failed, Some("worker_lost")));
    }

    #[test]
    fn a_job_that_kills_its_workers_ends() {
        let poison = Job {
            losses: MAX_LOSSES,
            ..job(State::Running)
        };
        assert_eq!(poison.lost(2, true, NOW).unwrap().state, State::Failed);
    }

    proptest! {
        #[test]
        fn a_superseded_attempt_changes_nothing(
            reported in 0u32..10, current in 0u32..10, pick in 0usize..8, state in 0usize..7,
        ) {
            prop_assume!(reported != current);
            let job = Job { attempt: current, ..job(State::ALL[state]) };
            prop_assert!(job.finished(reported, &outcomes()[pick], NOW, 0.5).is_err());
            prop_assert!(job.lost(reported, true, NOW).is_err());
            prop_assert!(job.started(reported, NOW).is_err());
            prop_assert!(job.returned(reported, NOW).is_err());
        }

        #[test]
        fn a_job_ends_after_at_most_its_attempts(max_attempts in 1u32..20, chance in 0.0f64..1.0) {
            let mut job = Job { max_attempts, ..job(State::Running) };
            let mut rounds = 0;
            while job.state != State::Failed {
                let end = job.finished(2, &Outcome::failed("x", ""), NOW, chance).unwrap();
                rounds += 1;
                job.failures = end.failures;
                job.state = if end.state == State::Queued { State::Running } else { end.state };
            }
            prop_assert_eq!(rounds, max_attempts);
        }
    }
}
