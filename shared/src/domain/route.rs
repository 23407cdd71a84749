//! Routing: which waiting job goes to which account, over a snapshot of both.
//!
//! Pure: [`plan`] takes the heads of the lanes and what each account can still take, and gives
//! bindings. The order is priority, then the fair-queueing tag, then age. A job whose session ran
//! on an account that has room goes there again; otherwise the lane's [`Strategy`] chooses among
//! the accounts that have room. Every strategy only chooses: none ever lets a job wait beside an
//! account that could take it.

mod memory;
mod refusal;
mod speed;
mod strategy;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

pub use memory::{Cursor, Mark};
pub use refusal::{Refusal, Wait, wait};
pub use speed::Speed;
pub use strategy::{Score, Strategy, scores};

use self::strategy::Place;
use super::{AccountId, Allowance, JobId, Needs, Time};

/// A window of an account, as a strategy sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// What is left of it, from 0 to 1.
    pub left: f64,
    /// What one more job takes of it, about; 0 when nobody knows.
    pub one_job: f64,
    /// When what is left will have been of no use: then the window is full again anyway.
    pub resets_at: Time,
}

/// An account as the planner sees it.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Which account.
    pub account: AccountId,
    /// Slots that are free now.
    pub free_slots: u32,
    /// What its windows still allow; `None` without limits.
    pub allowance: Option<Allowance>,
    /// Attempts in flight now.
    pub in_flight: u32,
    /// Its share under the weighted strategy.
    pub weight: u32,
    /// How long it takes to give a result, as measured; `None` when nobody knows.
    pub time_to_result: Option<Duration>,
    /// What is left of its windows.
    pub windows: Vec<Share>,
    /// What the planner remembers of it; [`plan`] fills it in.
    pub mark: Mark,
}

impl Seat {
    /// How many more jobs it can take at most; their tokens may leave room for fewer.
    #[must_use]
    pub fn room(&self) -> u32 {
        let allowed = self.allowance.as_ref().map_or(u32::MAX, Allowance::jobs);
        self.free_slots.min(allowed)
    }

    /// How full it is, from 0 to 1, with `taken` more jobs.
    fn load(&self, taken: u32) -> f64 {
        let slots = self.in_flight.saturating_add(self.free_slots).max(1);
        f64::from(self.in_flight.saturating_add(taken)) / f64::from(slots)
    }
}

/// A waiting job at the head of its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which job.
    pub job: JobId,
    /// Higher goes first.
    pub priority: i16,
    /// Its start tag in fair queueing; lower goes first.
    pub fair_tag: i64,
    /// Index of its lane in the snapshot.
    pub lane: usize,
    /// The client's session.
    pub session: Option<String>,
    /// What it will use.
    pub needs: Needs,
}

/// A lane of the snapshot.
#[derive(Clone, Debug, Default)]
pub struct LaneSeats {
    /// The seats that its jobs may use, as indices.
    pub seats: Vec<usize>,
    /// How one of them is chosen.
    pub strategy: Strategy,
}

/// What is decided for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Index of the job in the given heads.
    pub head: usize,
    /// Index of the account in the given seats.
    pub seat: usize,
    /// It goes where its session went before, whatever the strategy would say.
    pub by_session: bool,
}

/// Which strategy each lane uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// That of every lane without one of its own.
    pub strategy: Strategy,
    /// Those of lanes with one of their own, by the lane's key.
    pub lanes: BTreeMap<String, Strategy>,
}

impl Routing {
    /// The strategy of the lane with this key.
    #[must_use]
    pub fn of(&self, lane_key: &str) -> Strategy {
        self.lanes.get(lane_key).copied().unwrap_or(self.strategy)
    }

    /// Whether any lane may use this strategy.
    #[must_use]
    pub fn uses(&self, strategy: Strategy) -> bool {
        self.strategy == strategy || self.lanes.values().any(|used| *used == strategy)
    }
}

/// Binds as many of `heads` as `seats` can take.
///
/// No seat gets more than its room, and a lane without room leaves the others' jobs untouched.
/// `cursor` is what the planner remembers from one plan to the next; the seats are left as they
/// were when the plan began, with what was remembered of them.
#[must_use]
pub fn plan(
    heads: &[Head],
    seats: &mut [Seat],
    lanes: &[LaneSeats],
    cursor: &mut Cursor,
    now: Time,
) -> Vec<Binding> {
    let mut order: Vec<usize> = (0..heads.len()).collect();
    order.sort_unstable_by_key(|&index| {
        let head = &heads[index];
        (std::cmp::Reverse(head.priority), head.fair_tag, head.job)
    });
    cursor.recall(seats);
    let seats = &*seats;
    let mut places: Vec<Place> = seats.iter().map(Place::of).collect();
    // What is full is never looked at again, so that a long lane costs no more than a short one.
    let mut open: Vec<Vec<usize>> = lanes
        .iter()
        .map(|lane| {
            let known = lane.seats.iter().copied();
            known.filter(|seat| *seat < seats.len()).collect()
        })
        .collect();
    let guesses: Vec<Duration> = lanes
        .iter()
        .zip(&open)
        .map(|(lane, open)| strategy::fastest(lane.strategy, open.iter().map(|seat| &seats[*seat])))
        .collect();
    let mut bindings = Vec::with_capacity(order.len());
    let mut able: Vec<usize> = Vec::new();
    for head in order {
        let Head {
            lane: index,
            priority,
            session,
            needs,
            ..
        } = &heads[head];
        let (Some(candidates), Some(lane)) = (open.get_mut(*index), lanes.get(*index)) else {
            continue;
        };
        candidates.retain(|seat| places[*seat].room > 0);
        // One that is too small for this job may do for the next.
        able.clear();
        able.extend(candidates.iter().filter(|seat| places[**seat].fits(needs)));
        let candidates = &able;
        let home = session.as_deref().and_then(|session| {
            let home = cursor.home(session)?;
            let is_home = |seat: &&usize| seats[**seat].account == home;
            candidates.iter().find(is_home).copied()
        });
        let chosen = home.or_else(|| {
            let guess = guesses[*index];
            strategy::choose(
                lane.strategy,
                seats,
                &places,
                candidates,
                *priority,
                guess,
                now,
            )
        });
        let Some(seat) = chosen else { continue };
        if lane.strategy == Strategy::Weighted {
            strategy::settle_credits(seats, &mut places, candidates, seat);
        }
        places[seat].take(needs, cursor.next_turn());
        if let Some(session) = session {
            cursor.settle_in(session, &seats[seat].account);
        }
        bindings.push(Binding {
            head,
            seat,
            by_session: home.is_some(),
        });
    }
    for (seat, place) in seats.iter().zip(&places) {
        cursor.keep(seat, place.turn, place.credit);
    }
    bindings
}
