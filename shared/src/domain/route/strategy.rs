//! The strategies: how an account is chosen among those that could take a job.
//!
//! Each gives every candidate a [`Score`]; the highest is chosen. Among equals it is the one with
//! the smaller share of its slots taken, then the one that was chosen the longest time ago.

use std::{cmp::Ordering, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Seat;
use crate::domain::{Allowance, Needs, Time};

/// What `expiring` keeps of each window for jobs of a high priority, as a share.
const KEPT_BACK: f64 = 0.1;

/// A window that is about to reset is not worth more than one that resets in this time: nobody
/// could spend it faster.
const SOON: Duration = Duration::from_secs(60);

/// How an account is chosen among those that could take a job.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the smallest share of its slots taken.
    LeastConnections,
    /// In the ratio of the accounts' weights, evenly mixed (smooth weighted round robin).
    Weighted,
    /// The one that gives results the fastest, as measured, with regard to how full it is.
    ResponseTime,
    /// The one with the largest share of its tightest window left.
    Headroom,
    /// The one whose windows would waste the most if it were left alone: what resets first is
    /// spent first, and the last tenth of each window is for priorities above 0 while there is
    /// another account.
    Expiring,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Strategy; 6] = [
        Strategy::RoundRobin,
        Strategy::LeastConnections,
        Strategy::Weighted,
        Strategy::ResponseTime,
        Strategy::Headroom,
        Strategy::Expiring,
    ];

    /// Its name in the configuration and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
            Self::Weighted => "weighted",
            Self::ResponseTime => "response-time",
            Self::Headroom => "headroom",
            Self::Expiring => "expiring",
        }
    }

    /// The strategy with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.as_str() == name)
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How good an account is for a job. Higher is better; one that is kept back is worse than any
/// that is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The strategy would rather keep it for jobs of a higher priority.
    pub kept_back: bool,
    /// Turns since it was chosen last; free share of slots, below 0; credit; expected seconds,
    /// below 0; share of window left; shares an hour that would be wasted.
    pub value: f64,
}

impl Score {
    fn of(value: f64) -> Self {
        Self {
            kept_back: false,
            value,
        }
    }

    fn rank(&self, other: &Self) -> Ordering {
        let kept_back = other.kept_back.cmp(&self.kept_back);
        kept_back.then(self.value.total_cmp(&other.value))
    }
}

/// What changes about a seat while a plan is made.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// How many more jobs it can take; their tokens may leave room for fewer.
    pub(super) room: u32,
    /// What its windows still allow.
    allowance: Option<Allowance>,
    /// Jobs that this plan has given it.
    pub(super) taken: u32,
    /// The turn in which it was chosen last; 0 when it never was.
    pub(super) turn: u64,
    /// What the weighted strategy owes it.
    pub(super) credit: i64,
}

impl Place {
    pub(super) fn of(seat: &Seat) -> Self {
        Self {
            room: seat.room(),
            allowance: seat.allowance.clone(),
            taken: 0,
            turn: seat.mark.turn,
            credit: seat.mark.credit,
        }
    }

    /// Whether it can take a job with these needs.
    pub(super) fn fits(&self, needs: &Needs) -> bool {
        let allowed = self.allowance.as_ref();
        self.room > 0 && allowed.is_none_or(|allowance| allowance.fits(needs))
    }

    pub(super) fn take(&mut self, needs: &Needs, turn: u64) {
        self.room = self.room.saturating_sub(1);
        if let Some(allowance) = &mut self.allowance {
            allowance.take(needs);
            self.room = self.room.min(allowance.jobs());
        }
        self.taken += 1;
        self.turn = turn;
    }
}

/// The best of the candidates, all of which have room. `guess` is the [`fastest`] of the lane.
pub(super) fn choose(
    strategy: Strategy,
    seats: &[Seat],
    places: &[Place],
    candidates: &[usize],
    priority: i16,
    guess: Duration,
    now: Time,
) -> Option<usize> {
    let mut best: Option<(usize, Score)> = None;
    for &index in candidates {
        let score = score(
            strategy,
            &seats[index],
            &places[index],
            priority,
            guess,
            now,
        );
        let is_better = best.is_none_or(|(chosen, highest)| {
            let load = |index: usize| seats[index].load(places[index].taken);
            score
                .rank(&highest)
                .then_with(|| load(chosen).total_cmp(&load(index)))
                .then_with(|| places[chosen].turn.cmp(&places[index].turn))
                .is_gt()
        });
        if is_better {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// What each seat scores for a job of this priority when a plan begins, whether it has room or not.
/// [`super::Cursor::recall`] or the plan has filled in the seats' marks.
#[must_use]
pub fn scores(strategy: Strategy, seats: &[&Seat], priority: i16, now: Time) -> Vec<Score> {
    let guess = fastest(strategy, seats.iter().copied());
    seats
        .iter()
        .map(|seat| score(strategy, seat, &Place::of(seat), priority, guess, now))
        .collect()
}

/// An account of which nothing is known is taken for as fast as the fastest of its lane, so that
/// it is tried.
pub(super) fn fastest<'a>(strategy: Strategy, seats: impl Iterator<Item = &'a Seat>) -> Duration {
    if strategy != Strategy::ResponseTime {
        return Duration::ZERO;
    }
    let known = seats.filter_map(|seat| seat.time_to_result);
    known.min().unwrap_or(Duration::from_secs(1))
}

fn score(
    strategy: Strategy,
    seat: &Seat,
    place: &Place,
    priority: i16,
    guess: Duration,
    now: Time,
) -> Score {
    let taken = f64::from(place.taken);
    match strategy {
        Strategy::RoundRobin => Score::of(turns(seat, place)),
        Strategy::LeastConnections => Score::of(-seat.load(place.taken)),
        Strategy::Weighted => Score::of(exact(place.credit + i64::from(seat.weight))),
        Strategy::ResponseTime => {
            let alone = seat.time_to_result.unwrap_or(guess).as_secs_f64();
            Score::of(-alone * (1.0 + seat.load(place.taken)))
        }
        Strategy::Headroom => Score::of(least_left(seat, taken)),
        Strategy::Expiring => {
            let pace = seat.windows.iter().map(|window| {
                let left = window.left - window.one_job * taken;
                let hours = window.resets_at.since(now).max(SOON).as_secs_f64() / 3600.0;
                left / hours
            });
            Score {
                kept_back: priority <= 0 && least_left(seat, taken) < KEPT_BACK,
                // What never resets is never wasted.
                value: pace.reduce(f64::min).unwrap_or(0.0),
            }
        }
    }
}

/// The share left of the tightest window; 1 without windows.
fn least_left(seat: &Seat, taken: f64) -> f64 {
    let left = seat.windows.iter();
    left.map(|window| window.left - window.one_job * taken)
        .reduce(f64::min)
        .unwrap_or(1.0)
}

/// Turns since the seat was chosen last, while a plan is made: the smaller its last turn, the more.
fn turns(seat: &Seat, place: &Place) -> f64 {
    if place.taken > 0 {
        // Chosen within this plan: after all that were not, in the order of their turns.
        return -exact(i64::try_from(place.turn).unwrap_or(i64::MAX));
    }
    exact(i64::try_from(seat.mark.rested).unwrap_or(i64::MAX))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^53, and a wrong unit would only change one choice"
)]
fn exact(number: i64) -> f64 {
    number as f64
}

/// Pays each candidate its weight, and takes the sum from the chosen one: that is what makes the
/// choices come out in the ratio of the weights, and evenly mixed.
pub(super) fn settle_credits(
    seats: &[Seat],
    places: &mut [Place],
    candidates: &[usize],
    chosen: usize,
) {
    let mut sum = 0;
    for &index in candidates {
        let weight = i64::from(seats[index].weight);
        places[index].credit += weight;
        sum += weight;
    }
    places[chosen].credit -= sum;
}
