//! Accounts as the planner and those who explain it see them: one reading of their rows for both.

use std::time::Duration;

use sluice_shared::domain::{
    Account, Cooldowns, Gate, Ledger, Present, Standing, Time,
    route::{Mark, Refusal, Seat, Share},
};

use super::AccountRow;

/// An account's windows, and the time to look at them by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) present: Present,
}

/// What is left of an account with so many attempts in flight.
pub(super) fn seat(
    account: &Account,
    in_flight: u32,
    time_to_result: Option<Duration>,
    windows: Option<Windows<'_>>,
) -> Seat {
    Seat {
        account: account.id.clone(),
        free_slots: account.max_concurrency.saturating_sub(in_flight),
        allowance: windows
            .map(|Windows { ledger, present }| ledger.allowance(&account.limits, present)),
        in_flight,
        weight: account.weight,
        time_to_result,
        windows: windows.map_or_else(Vec::new, |windows| shares(account, windows)),
        mark: Mark::default(),
    }
}

/// What is left of each window, and what a job takes of it.
#[expect(clippy::cast_precision_loss, reason = "a share needs no more")]
fn shares(account: &Account, Windows { ledger, present }: Windows<'_>) -> Vec<Share> {
    let now = present.earliest;
    let share = |limit: &sluice_shared::domain::Limit| {
        let window = ledger.window(limit)?;
        let most = limit.most.max(1) as f64;
        let one_job = match limit.kind {
            sluice_shared::domain::Kind::Requests => 1,
            _ => window.typical(limit.most),
        };
        Some(Share {
            left: window.room(limit.most, now) as f64 / most,
            one_job: one_job as f64 / most,
            resets_at: window.full_again(now),
        })
    };
    account.limits.iter().filter_map(share).collect()
}

/// Why an account takes no job that asks for this model, whatever room it has. Without a lane's
/// model to ask for it is what holds for every job.
fn refusal(
    standing: Standing,
    cooldowns: &Cooldowns,
    model: Option<Option<&str>>,
    now: Time,
) -> Option<Refusal> {
    if standing != Standing::Active {
        return Some(Refusal::Out { standing });
    }
    let until = match model {
        Some(model) => match cooldowns.gate(model, now) {
            Gate::Open | Gate::HalfOpen => return None,
            // A canary is under way.
            Gate::Shut(until) => until.unwrap_or(now),
        },
        None => {
            let cooldown = cooldowns.longest()?;
            if cooldown.until <= now && !cooldown.probing {
                return None;
            }
            cooldown.until.max(now)
        }
    };
    Some(Refusal::Cooling { until })
}

impl AccountRow {
    /// What is left of it.
    #[must_use]
    pub fn seat(&self, time_to_result: Option<Duration>, now: Time) -> Seat {
        let windows = (!self.account.limits.is_empty()).then_some(Windows {
            ledger: &self.ledger,
            present: Present::exactly(now),
        });
        seat(&self.account, self.in_flight, time_to_result, windows)
    }

    /// Why it takes no job at `now`; none when it does. With a lane's model (the lane may leave it
    /// open) it is asked for jobs of that lane.
    #[must_use]
    pub fn refusal(&self, model: Option<Option<&str>>, now: Time) -> Option<Refusal> {
        refusal(self.standing, &self.cooldowns, model, now).or_else(|| self.full(now))
    }

    /// Why it has no room.
    fn full(&self, now: Time) -> Option<Refusal> {
        if self.account.max_concurrency <= self.in_flight {
            return Some(Refusal::NoFreeSlot);
        }
        // All of its full windows must have room again; nobody knows when while calls are under way.
        let full = self.account.limits.iter().filter_map(|limit| {
            let window = self.ledger.window(limit)?;
            let is_full = window.room(limit.most, now) == 0;
            is_full.then(|| window.room_at(limit.most, 1, now))
        });
        let until = full.reduce(|one, other| Some(one?.max(other?)))?;
        Some(Refusal::WindowFull { until })
    }
}
