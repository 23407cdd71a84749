//! Accounts as the planner and those who explain it see them: one reading of their rows for both.

use std::time::Duration;

use sluice_shared::domain::{
    Account, Standing, Time,
    route::{Mark, Refusal, Seat},
};

use super::AccountRow;

/// What is left of an account with so many attempts in flight.
pub(super) fn seat(account: &Account, in_flight: u32, time_to_result: Option<Duration>) -> Seat {
    Seat {
        account: account.id.clone(),
        free_slots: account.max_concurrency.saturating_sub(in_flight),
        window_room: None,
        in_flight,
        weight: account.weight,
        time_to_result,
        windows: Vec::new(),
        mark: Mark::default(),
    }
}

/// Why an account takes no job, whatever room it has.
pub(super) fn refusal(
    standing: Standing,
    cooldown_until: Option<Time>,
    now: Time,
) -> Option<Refusal> {
    if standing != Standing::Active {
        return Some(Refusal::Out { standing });
    }
    cooldown_until
        .filter(|until| *until > now)
        .map(|until| Refusal::Cooling { until })
}

/// Why a seat has no room.
fn full(seat: &Seat) -> Option<Refusal> {
    if seat.free_slots == 0 {
        return Some(Refusal::NoFreeSlot);
    }
    if seat.window_room == Some(0) {
        let until = seat.windows.iter().map(|window| window.resets_at).min();
        return Some(Refusal::WindowFull { until });
    }
    None
}

impl AccountRow {
    /// What is left of it.
    #[must_use]
    pub fn seat(&self, time_to_result: Option<Duration>) -> Seat {
        seat(&self.account, self.in_flight, time_to_result)
    }

    /// Why it takes no job at `now`; none when it does.
    #[must_use]
    pub fn refusal(&self, now: Time) -> Option<Refusal> {
        refusal(self.standing, self.cooldown_until, now).or_else(|| full(&self.seat(None)))
    }
}
