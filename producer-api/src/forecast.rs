//! Forecasts: what the truth plane knows, put before the planner that runs ahead.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    clock,
    domain::{
        Account, Kind, Lane, Ledger, Standing, Time,
        forecast::{Limit, LimitKind, Server, Takes, Window},
    },
};

use crate::{
    app::App,
    store::{Measure, StoreError},
};

/// How long a job is taken to need while none has been measured anywhere.
const UNMEASURED: Duration = Duration::from_secs(30);

/// How long what was measured is used before it is measured again.
const FRESH: Duration = Duration::from_secs(5);

/// What was measured last, and when.
#[derive(Debug, Default)]
pub struct Measures(Mutex<Option<(Time, Vec<Measure>)>>);

/// An account for a forecast, and how many of its attempts were measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The account.
    pub account: Account,
    /// The same for the planner.
    pub server: Server,
    /// Attempts that its average was taken from; 0 when it was taken from the other accounts'.
    pub attempts: u64,
}

impl App {
    /// Every account as a forecast sees it, in the order of the configuration.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn measured(&self, now: Time) -> Result<Vec<Measured>, StoreError> {
        let measures = self.measures(now).await?;
        let states = self.store.accounts().await?;
        let average = average(&measures);
        let mut measured = Vec::with_capacity(states.len());
        for state in states {
            let own = measures
                .iter()
                .find(|measure| measure.account == state.account.id.as_str());
            let can_run =
                state.standing == Standing::Active && self.workers.may_serve(&state.account.id);
            let cooldown = state
                .cooldown_until
                .map_or(Duration::ZERO, |until| until.since(now));
            let server = Server {
                account: state.account.id.clone(),
                slots: if can_run {
                    state.account.max_concurrency
                } else {
                    0
                },
                busy: state.in_flight,
                cooldown,
                windows: windows_of(&state.account, &state.ledger, now),
                takes: own.map_or(average, takes),
            };
            measured.push(Measured {
                account: state.account,
                server,
                attempts: own.map_or(0, |measure| measure.attempts),
            });
        }
        Ok(measured)
    }

    async fn measures(&self, now: Time) -> Result<Vec<Measure>, StoreError> {
        let known = || {
            self.measures
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some((at, measures)) = &*known()
            && now.since(*at) < FRESH
        {
            return Ok(measures.clone());
        }
        let measures = self.store.measures().await?;
        *known() = Some((clock::now(), measures.clone()));
        Ok(measures)
    }
}

/// The limits of an account with what is used of them.
fn windows_of(account: &Account, ledger: &Ledger, now: Time) -> Vec<Window> {
    let window = |limit: &sluice_shared::domain::Limit| {
        let used = ledger.window(limit).map(|window| window.leaving(now));
        let used = used.into_iter().flatten();
        Window {
            limit: Limit {
                kind: match limit.kind {
                    Kind::Requests => LimitKind::Requests,
                    Kind::InputTokens => LimitKind::InputTokens,
                    Kind::OutputTokens => LimitKind::OutputTokens,
                    Kind::Cost => LimitKind::Cost,
                },
                limit: limit.most,
                window: limit.window,
            },
            used: used
                .map(|(leaves, amount)| (leaves.since(now), amount))
                .collect(),
        }
    };
    account.limits.iter().map(window).collect()
}

fn takes(measure: &Measure) -> Takes {
    Takes {
        time: Duration::from_millis(measure.millis.max(1)),
        input_tokens: measure.input_tokens,
        output_tokens: measure.output_tokens,
        cost_microusd: measure.cost_microusd,
    }
}

/// The average over all accounts, for those that have run nothing yet.
fn average(measures: &[Measure]) -> Takes {
    let attempts: u64 = measures.iter().map(|measure| measure.attempts).sum();
    let mean = |of: fn(&Measure) -> u64| {
        let sum: u128 = measures
            .iter()
            .map(|measure| u128::from(of(measure)) * u128::from(measure.attempts))
            .sum();
        let mean = sum.checked_div(u128::from(attempts)).unwrap_or(0);
        u64::try_from(mean).unwrap_or(u64::MAX)
    };
    Takes {
        time: match attempts {
            0 => UNMEASURED,
            _ => Duration::from_millis(mean(|measure| measure.millis).max(1)),
        },
        input_tokens: mean(|measure| measure.input_tokens),
        output_tokens: mean(|measure| measure.output_tokens),
        cost_microusd: mean(|measure| measure.cost_microusd),
    }
}

/// Which of the accounts a lane may use, as indices.
#[must_use]
pub fn servers_of(lane: &Lane, measured: &[Measured]) -> Vec<usize> {
    let admitted = |(_, measured): &(usize, &Measured)| lane.admits(&measured.account);
    measured
        .iter()
        .enumerate()
        .filter(admitted)
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(account: &str, attempts: u64, millis: u64) -> Measure {
        Measure {
            account: account.into(),
            attempts,
            millis,
            input_tokens: 10,
            output_tokens: 0,
            cost_microusd: 0,
        }
    }

    #[test]
    fn an_account_without_figures_is_taken_for_the_average() {
        assert_eq!(average(&[]).time, UNMEASURED);
        let both = average(&[measure("a", 30, 100), measure("b", 10, 500)]);
        assert_eq!(
            (both.time, both.input_tokens),
            (Duration::from_millis(200), 10)
        );
    }
}
