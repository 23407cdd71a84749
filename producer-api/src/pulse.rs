//! What happened in the last hour, counted in this process. It is for people to look at: a new
//! process begins with none of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    api::{self, PulsePoint},
    clock,
    domain::{Outcome, State, Time},
    message::Report,
};

use crate::store::Verdict;

/// The length of a step.
const STEP: Duration = Duration::from_secs(15);

/// Steps that are kept: an hour.
const STEPS: i64 = 240;

/// The counts of the last hour; cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse {
    since: Time,
    points: Arc<Mutex<VecDeque<PulsePoint>>>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            since: clock::now(),
            points: Arc::default(),
        }
    }
}

impl Pulse {
    /// Jobs were accepted.
    pub fn accepted(&self, jobs: usize, now: Time) {
        self.at(now, |point| point.accepted += jobs as u64);
    }

    /// Jobs have ended.
    pub fn ended(&self, state: State, jobs: u64, now: Time) {
        self.at(now, |point| match state {
            State::Succeeded => point.succeeded += jobs,
            State::Failed => point.failed += jobs,
            State::Cancelled => point.cancelled += jobs,
            State::Expired => point.expired += jobs,
            State::Queued | State::Dispatched | State::Running => {}
        });
    }

    /// Attempts have ended.
    pub fn settled(&self, verdicts: &[Verdict], now: Time) {
        self.at(now, |point| {
            for verdict in verdicts {
                let Verdict::Report(reply) = verdict else {
                    continue;
                };
                match &reply.report {
                    Report::Finished {
                        outcome: Outcome::Completed(answer),
                        ..
                    } => {
                        point.input_tokens += answer.usage.input_tokens;
                        point.output_tokens += answer.usage.output_tokens;
                        point.cost_microusd += answer.usage.cost_microusd.unwrap_or(0);
                    }
                    Report::Finished { .. } | Report::Redelivered | Report::Returned { .. } => {
                        point.unanswered += 1;
                    }
                    Report::Started { .. } | Report::Leased { .. } => {}
                }
            }
        });
    }

    /// The steps of the last hour in which something happened.
    #[must_use]
    pub fn view(&self, now: Time) -> api::Pulse {
        let first = step_of(now) - STEPS * step_ms();
        let points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        api::Pulse {
            step_ms: step_ms().unsigned_abs(),
            since: self.since.max(Time::from_millis(first)),
            points: points
                .iter()
                .filter(|point| point.at_ms > first)
                .copied()
                .collect(),
        }
    }

    fn at(&self, now: Time, count: impl FnOnce(&mut PulsePoint)) {
        let at_ms = step_of(now);
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back counts in the last step, so that the steps stay in order.
        if points.back().is_none_or(|last| last.at_ms < at_ms) {
            points.push_back(PulsePoint {
                at_ms,
                ..PulsePoint::default()
            });
            while points
                .pop_front_if(|point| point.at_ms <= at_ms - STEPS * step_ms())
                .is_some()
            {}
        }
        if let Some(point) = points.back_mut() {
            count(point);
        }
    }
}

fn step_ms() -> i64 {
    i64::try_from(STEP.as_millis()).unwrap_or(i64::MAX)
}

fn step_of(now: Time) -> i64 {
    now.as_millis() - now.as_millis().rem_euclid(step_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_in_steps() {
        let (pulse, start) = (Pulse::default(), Time::from_millis(3_600_000));
        pulse.accepted(2, start);
        pulse.accepted(1, start + STEP / 2);
        pulse.ended(State::Failed, 4, start + STEP);
        let points = pulse.view(start + STEP).points;
        let counts: Vec<_> = points.iter().map(|p| (p.accepted, p.failed)).collect();
        assert_eq!(counts, [(3, 0), (0, 4)]);
        let hour = STEP * u32::try_from(STEPS).unwrap();
        assert_eq!(pulse.view(start + hour).points.len(), 1);
        pulse.accepted(1, start + hour * 2);
        assert_eq!(pulse.view(start + hour * 2).points.len(), 1);
        assert_eq!(
            pulse.points.lock().unwrap().len(),
            1,
            "old steps are let go"
        );
    }
}
