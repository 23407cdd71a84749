//! Why an account takes no job now, and so what a job waits for.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{Standing, Time};

/// Why an account takes no job now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Refusal {
    /// All its slots are taken.
    NoFreeSlot,
    /// One of its windows is used up.
    WindowFull {
        /// When there is room again.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Time>,
    },
    /// It cools down.
    Cooling {
        /// Until when.
        until: Time,
    },
    /// No worker that serves it is there.
    NoWorker,
    /// Someone paused it, its credential was refused, or it has no credit.
    Out {
        /// Which of them.
        standing: Standing,
    },
}

impl Refusal {
    /// The order in which refusals end, as far as one can tell: the first ends by itself soon, the
    /// last only when someone acts.
    fn rank(self) -> (u8, Time) {
        match self {
            Self::NoFreeSlot => (0, Time::EPOCH),
            Self::WindowFull { until } => (1, until.unwrap_or(Time::EPOCH)),
            // Whichever comes first of the two that have a time.
            Self::Cooling { until } => (1, until),
            Self::NoWorker => (2, Time::EPOCH),
            Self::Out { .. } => (3, Time::EPOCH),
        }
    }
}

/// What a lane's jobs wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Wait {
    /// For its time: a `run_at`, or the pause before the next attempt.
    Time {
        /// When it comes.
        until: Time,
    },
    /// For the broker: nothing is bound that cannot be sent.
    Broker,
    /// For their turn: an account has room, and takes jobs as fast as they can be bound.
    Turn,
    /// For a free slot.
    FreeSlot,
    /// For room in a window.
    Window {
        /// When there is room again.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Time>,
    },
    /// For the end of a cooldown.
    Cooldown {
        /// When the first of the lane's accounts comes back.
        until: Time,
    },
    /// For a worker that serves one of the lane's accounts.
    Worker,
    /// For someone to put an account back to work: all are paused, or their credentials refused,
    /// or out of credit.
    Operator,
    /// For an account: the lane has none any more.
    Account,
}

/// What the jobs of a lane wait for, by what each of its accounts says; `None` is an account with
/// room.
#[must_use]
pub fn wait(accounts: impl IntoIterator<Item = Option<Refusal>>) -> Wait {
    let mut first: Option<Refusal> = None;
    for refusal in accounts {
        let Some(refusal) = refusal else {
            return Wait::Turn;
        };
        if first.is_none_or(|known| refusal.rank() < known.rank()) {
            first = Some(refusal);
        }
    }
    match first {
        None => Wait::Account,
        Some(Refusal::NoFreeSlot) => Wait::FreeSlot,
        Some(Refusal::WindowFull { until }) => Wait::Window { until },
        Some(Refusal::Cooling { until }) => Wait::Cooldown { until },
        Some(Refusal::NoWorker) => Wait::Worker,
        Some(Refusal::Out { .. }) => Wait::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_first_is_what_is_waited_for() {
        let out = Refusal::Out {
            standing: Standing::Paused,
        };
        let cooling = |millis| Refusal::Cooling {
            until: Time::from_millis(millis),
        };
        let window = |millis| Refusal::WindowFull {
            until: Some(Time::from_millis(millis)),
        };
        let cases = [
            (vec![], Wait::Account),
            (vec![Some(out)], Wait::Operator),
            (vec![Some(out), Some(Refusal::NoWorker)], Wait::Worker),
            (
                vec![Some(cooling(9)), Some(Refusal::NoWorker), Some(cooling(5))],
                Wait::Cooldown {
                    until: Time::from_millis(5),
                },
            ),
            (
                vec![Some(cooling(9)), Some(window(7))],
                Wait::Window {
                    until: Some(Time::from_millis(7)),
                },
            ),
            (
                vec![Some(cooling(5)), Some(Refusal::NoFreeSlot)],
                Wait::FreeSlot,
            ),
            (vec![Some(Refusal::NoFreeSlot), None], Wait::Turn),
        ];
        for (accounts, expected) in cases {
            assert_eq!(wait(accounts.clone()), expected, "{accounts:?}");
        }
    }
}
