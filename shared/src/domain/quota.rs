//! Quotas of clients: what one may have waiting, running and spent, and what a refusal says.
//!
//! Pure: how much there is of each comes from the truth plane, where it is counted and never
//! reserved, so that nothing can be left reserved by a crash.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;

const DAY_MILLIS: i64 = 86_400_000;

/// Jobs that a client with a budget may have in flight while nothing is known of what one uses.
const UNKNOWN_COST: u32 = 4;

/// What a client may have at most. What is not given is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Requests to the API in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub requests_per_minute: Option<u32>,
    /// Jobs waiting, scheduled ones included; a submit beyond it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_waiting: Option<u32>,
    /// Jobs in flight; those beyond it wait, and no one else's with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_running: Option<u32>,
    /// Input and output tokens in a day (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub tokens_per_day: Option<u64>,
    /// Input and output tokens in a calendar month (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub tokens_per_month: Option<u64>,
    /// Cost in a day (UTC), in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub cost_microusd_per_day: Option<u64>,
    /// Cost in a calendar month (UTC), in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub cost_microusd_per_month: Option<u64>,
}

/// One rule of a [`Quota`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Requests in a minute.
    Requests,
    /// Jobs waiting.
    Waiting,
    /// Tokens in a day.
    TokensPerDay,
    /// Tokens in a month.
    TokensPerMonth,
    /// Cost in a day.
    CostPerDay,
    /// Cost in a month.
    CostPerMonth,
}

impl Policy {
    /// Its name in the API, which is its field in [`Quota`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_minute",
            Self::Waiting => "max_waiting",
            Self::TokensPerDay => "tokens_per_day",
            Self::TokensPerMonth => "tokens_per_month",
            Self::CostPerDay => "cost_microusd_per_day",
            Self::CostPerMonth => "cost_microusd_per_month",
        }
    }
}

/// A rule that a submit would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub policy: Policy,
    /// What it allows.
    pub limit: u64,
    /// How much of it there is already.
    pub used: u64,
    /// When it starts anew; `None` when that depends on the client's own jobs.
    pub resets_at: Option<Time>,
}

/// What a client's attempts used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Attempts that were answered.
    pub jobs: u64,
    /// Input and output tokens.
    pub tokens: u64,
    /// Cost in millionths of a US dollar.
    pub cost_microusd: u64,
}

impl Spent {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            jobs: self.jobs.saturating_add(other.jobs),
            tokens: self.tokens.saturating_add(other.tokens),
            cost_microusd: self.cost_microusd.saturating_add(other.cost_microusd),
        }
    }
}

/// What a client has used in the current day and month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Since midnight, UTC.
    pub day: Spent,
    /// Since the first of the month, UTC.
    pub month: Spent,
}

/// The number of the day, in UTC, from the Unix epoch.
#[must_use]
pub fn day(now: Time) -> i64 {
    now.as_millis().div_euclid(DAY_MILLIS)
}

/// The number of the first day of the month, in UTC.
#[must_use]
pub fn month_start(now: Time) -> i64 {
    let of_month = jiff::Timestamp::from_millisecond(now.as_millis()).map_or(1, |timestamp| {
        jiff::tz::Offset::UTC.to_datetime(timestamp).day()
    });
    day(now) - i64::from(of_month) + 1
}

/// The next midnight in UTC.
#[must_use]
pub fn next_day(now: Time) -> Time {
    Time::from_millis((day(now) + 1).saturating_mul(DAY_MILLIS))
}

/// The next first of a month in UTC.
#[must_use]
pub fn next_month(now: Time) -> Time {
    let days = jiff::Timestamp::from_millisecond(now.as_millis()).map_or(31, |timestamp| {
        jiff::tz::Offset::UTC
            .to_datetime(timestamp)
            .date()
            .days_in_month()
    });
    Time::from_millis((month_start(now) + i64::from(days)).saturating_mul(DAY_MILLIS))
}

impl Quota {
    /// Whether it has a budget of tokens or cost.
    #[must_use]
    pub fn has_budget(&self) -> bool {
        self.budgets(&Ledger::default(), Time::EPOCH)
            .iter()
            .any(|(_, limit, ..)| limit.is_some())
    }

    /// Whether `jobs` more may be submitted.
    ///
    /// # Errors
    /// The rule that they would break.
    pub fn admits(
        &self,
        waiting: u64,
        jobs: u64,
        used: &Ledger,
        now: Time,
    ) -> Result<(), Violation> {
        if let Some(most) = self.max_waiting
            && waiting.saturating_add(jobs) > u64::from(most)
        {
            return Err(Violation {
                policy: Policy::Waiting,
                limit: most.into(),
                used: waiting,
                resets_at: None,
            });
        }
        for (policy, limit, spent, _, resets_at) in self.budgets(used, now) {
            if let Some(limit) = limit
                && spent >= limit
            {
                return Err(Violation {
                    policy,
                    limit,
                    used: spent,
                    resets_at: Some(resets_at),
                });
            }
        }
        Ok(())
    }

    /// How many more of its jobs may be dispatched beside `running` ones. What these will use is
    /// not known before they end; they are taken to use what this month's did on average, so that
    /// a burst cannot overdraw a budget by more than the last jobs differ from that.
    #[must_use]
    pub fn room(&self, running: u32, used: &Ledger) -> u32 {
        let mut most = self.max_running.unwrap_or(u32::MAX);
        for (_, limit, spent, of_month, _) in self.budgets(used, Time::EPOCH) {
            let Some(limit) = limit else { continue };
            let left = limit.saturating_sub(spent);
            let allowed = if left == 0 {
                0
            } else if of_month == 0 || used.month.jobs == 0 {
                UNKNOWN_COST
            } else {
                let jobs = u128::from(left) * u128::from(used.month.jobs) / u128::from(of_month);
                // The last of a budget is spent, too.
                u32::try_from(jobs).unwrap_or(u32::MAX).max(1)
            };
            most = most.min(allowed);
        }
        most.saturating_sub(running)
    }

    /// Each budget: its rule, its limit, what is spent of it, what the month's jobs used of its
    /// kind, and when it starts anew.
    fn budgets(&self, used: &Ledger, now: Time) -> [(Policy, Option<u64>, u64, u64, Time); 4] {
        let (tokens, cost) = (used.month.tokens, used.month.cost_microusd);
        [
            (
                Policy::TokensPerDay,
                self.tokens_per_day,
                used.day.tokens,
                tokens,
                next_day(now),
            ),
            (
                Policy::TokensPerMonth,
                self.tokens_per_month,
                tokens,
                tokens,
                next_month(now),
            ),
            (
                Policy::CostPerDay,
                self.cost_microusd_per_day,
                used.day.cost_microusd,
                cost,
                next_day(now),
            ),
            (
                Policy::CostPerMonth,
                self.cost_microusd_per_month,
                cost,
                cost,
                next_month(now),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> Time {
        text.parse().unwrap()
    }

    fn spent(jobs: u64, tokens: u64) -> Ledger {
        let spent = Spent {
            jobs,
            tokens,
            cost_microusd: 0,
        };
        Ledger {
            day: spent,
            month: spent,
        }
    }

    #[test]
    fn days_and_months_begin_in_utc() {
        let now = time("2028-02-29T23:59:59.999Z");
        assert_eq!(next_day(now), time("2028-03-01T00:00:00Z"));
        assert_eq!(next_month(now), time("2028-03-01T00:00:00Z"));
        assert_eq!(day(now) - month_start(now), 28);
        let first = time("2026-12-01T00:00:00Z");
        assert_eq!(month_start(first), day(first));
        assert_eq!(next_month(first), time("2027-01-01T00:00:00Z"));
    }

    #[test]
    fn a_full_backlog_refuses_what_does_not_fit_as_a_whole() {
        let quota = Quota {
            max_waiting: Some(10),
            ..Quota::default()
        };
        let used = Ledger::default();
        assert!(quota.admits(7, 3, &used, Time::EPOCH).is_ok());
        let refused = quota.admits(8, 3, &used, Time::EPOCH).unwrap_err();
        assert_eq!(
            (refused.policy, refused.limit, refused.used),
            (Policy::Waiting, 10, 8)
        );
    }

    #[test]
    fn a_spent_budget_refuses_until_it_starts_anew() {
        let quota = Quota {
            tokens_per_day: Some(100),
            ..Quota::default()
        };
        let now = time("2026-11-24T12:00:00Z");
        assert!(quota.admits(0, 1, &spent(1, 99), now).is_ok());
        let refused = quota.admits(0, 1, &spent(1, 100), now).unwrap_err();
        assert_eq!(refused.policy, Policy::TokensPerDay);
        assert_eq!(refused.resets_at, Some(time("2026-11-25T00:00:00Z")));
    }

    #[test]
    fn a_burst_does_not_overdraw_a_budget() {
        let quota = Quota {
            tokens_per_day: Some(1_000),
            ..Quota::default()
        };
        assert_eq!(quota.room(0, &Ledger::default()), UNKNOWN_COST);
        assert_eq!(quota.room(2, &spent(5, 500)), 3);
        assert_eq!(quota.room(0, &spent(1, 999)), 1);
        assert_eq!(quota.room(0, &spent(1, 1_000)), 0);
        let both = Quota {
            max_running: Some(2),
            ..quota
        };
        assert_eq!(both.room(0, &spent(5, 500)), 2);
    }

    proptest! {
        /// Jobs that all use the same never take a budget further than one job past its end.
        #[test]
        fn a_budget_holds_whatever_runs_at_once(
            budget in 1u64..10_000,
            each in 1u64..500,
            ends in proptest::collection::vec(1u32..20, 1..200),
        ) {
            let quota = Quota { tokens_per_month: Some(budget), ..Quota::default() };
            let (mut jobs, mut running) = (0, 0);
            for ended in ends {
                running += quota.room(running, &spent(jobs, jobs * each));
                let ended = ended.min(running);
                running -= ended;
                jobs += u64::from(ended);
            }
            let overdraft = (jobs + u64::from(running)) * each;
            prop_assert!(overdraft < budget + each * u64::from(UNKNOWN_COST));
        }
    }
}
