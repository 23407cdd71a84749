//! Routing: which waiting job goes to which account, over a snapshot of both.
//!
//! Pure: [`plan`] takes the heads of the lanes and what each account can still take, and gives
//! bindings. The order is priority, then the fair-queueing tag, then age; a [`Strategy`] chooses
//! among the accounts of a job's lane that have room.

use serde::{Deserialize, Serialize};

use super::{AccountId, Allowance, JobId, Needs};

/// How an account is chosen among those that could take a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Each in turn.
    #[default]
    RoundRobin,
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
}

impl Seat {
    /// How many more jobs it can take at most; their tokens may leave room for fewer.
    #[must_use]
    pub fn room(&self) -> u32 {
        let allowed = self.allowance.as_ref().map_or(u32::MAX, Allowance::jobs);
        self.free_slots.min(allowed)
    }

    /// Whether it can take a job with these needs.
    #[must_use]
    pub fn fits(&self, needs: &Needs) -> bool {
        let allowed = self.allowance.as_ref();
        self.free_slots > 0 && allowed.is_none_or(|allowance| allowance.fits(needs))
    }

    /// Takes a job with these needs.
    pub fn take(&mut self, needs: &Needs) {
        self.free_slots = self.free_slots.saturating_sub(1);
        if let Some(allowance) = &mut self.allowance {
            allowance.take(needs);
        }
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
    /// What it will use.
    pub needs: Needs,
}

/// What is decided for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Index of the job in the given heads.
    pub head: usize,
    /// Index of the account in the given seats.
    pub seat: usize,
}

/// Where round-robin left off; kept from one plan to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(usize);

/// Binds as many of `heads` as `seats` can take.
///
/// `lanes[i]` lists the seats, as indices, that jobs of lane `i` may use. No seat gets more than
/// its room, and a lane without room leaves the others' jobs untouched.
#[must_use]
pub fn plan(
    heads: &[Head],
    seats: &[Seat],
    lanes: &[Vec<usize>],
    strategy: Strategy,
    cursor: &mut Cursor,
) -> Vec<Binding> {
    let mut order: Vec<usize> = (0..heads.len()).collect();
    order.sort_unstable_by_key(|&index| {
        let head = &heads[index];
        (std::cmp::Reverse(head.priority), head.fair_tag, head.job)
    });
    let mut seats = seats.to_vec();
    let mut bindings = Vec::with_capacity(order.len());
    for head in order {
        let candidates = lanes.get(heads[head].lane).map_or(&[][..], Vec::as_slice);
        let needs = &heads[head].needs;
        if let Some(seat) = choose(candidates, &seats, needs, strategy, cursor) {
            seats[seat].take(needs);
            bindings.push(Binding { head, seat });
        }
    }
    bindings
}

fn choose(
    candidates: &[usize],
    seats: &[Seat],
    needs: &Needs,
    strategy: Strategy,
    cursor: &mut Cursor,
) -> Option<usize> {
    let has_room = |seat: &usize| seats.get(*seat).is_some_and(|seat| seat.fits(needs));
    match strategy {
        Strategy::RoundRobin => {
            // The first with room after the one that went last, in the order of the seats.
            let next = candidates
                .iter()
                .copied()
                .filter(has_room)
                .min_by_key(|&seat| (seat < cursor.0, seat))?;
            cursor.0 = next + 1;
            Some(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{Strategy, *};
    use crate::domain::{Kind, window::Left};

    fn seat(index: usize, free_slots: u32, requests: Option<u32>) -> Seat {
        let left = |requests: u32| Left {
            kind: Kind::Requests,
            most: 100,
            left: requests.into(),
            typical: 1,
        };
        Seat {
            account: format!("a{index}").parse().unwrap(),
            free_slots,
            allowance: requests.map(|requests| Allowance::new(vec![left(requests)])),
        }
    }

    fn head(number: u128, priority: i16, lane: usize) -> Head {
        Head {
            job: JobId(Uuid::from_u128(number)),
            priority,
            fair_tag: 0,
            lane,
            needs: Needs::default(),
        }
    }

    #[test]
    fn round_robin_takes_each_in_turn_across_plans() {
        let seats = [seat(0, 9, None), seat(1, 9, None), seat(2, 9, None)];
        let lanes = [vec![0, 1, 2]];
        let mut cursor = Cursor::default();
        let mut taken = Vec::new();
        for number in 0..6 {
            let plan = plan(
                &[head(number, 0, 0)],
                &seats,
                &lanes,
                Strategy::RoundRobin,
                &mut cursor,
            );
            taken.push(plan[0].seat);
        }
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_lane_without_room_delays_only_its_own_jobs() {
        let seats = [seat(0, 0, None), seat(1, 1, None)];
        let heads = [head(1, 9, 0), head(2, 0, 1)];
        let plan = plan(
            &heads,
            &seats,
            &[vec![0], vec![1]],
            Strategy::RoundRobin,
            &mut Cursor::default(),
        );
        assert_eq!(plan, [Binding { head: 1, seat: 1 }]);
    }

    #[test]
    fn priority_goes_before_age() {
        let heads = [head(1, 0, 0), head(2, 5, 0)];
        let plan = plan(
            &heads,
            &[seat(0, 1, None)],
            &[vec![0]],
            Strategy::RoundRobin,
            &mut Cursor::default(),
        );
        assert_eq!(plan, [Binding { head: 1, seat: 0 }]);
    }

    #[test]
    fn a_job_that_is_too_large_for_one_account_goes_to_another() {
        let tokens = |index, left| Seat {
            allowance: Some(Allowance::new(vec![Left {
                kind: Kind::OutputTokens,
                most: 1000,
                left,
                typical: 10,
            }])),
            ..seat(index, 9, None)
        };
        let needing = |number, tokens| Head {
            needs: Needs::of(4, Some(tokens)),
            ..head(number, 0, 0)
        };
        let bindings = plan(
            &[needing(1, 500), needing(2, 90), needing(3, 20)],
            &[tokens(0, 100), tokens(1, 500)],
            &[vec![0, 1]],
            Strategy::RoundRobin,
            &mut Cursor::default(),
        );
        let bound: Vec<(usize, usize)> = bindings
            .iter()
            .map(|bound| (bound.head, bound.seat))
            .collect();
        assert_eq!(bound, [(0, 1), (1, 0)], "the third waits for room");
    }

    proptest! {
        #[test]
        fn no_seat_gets_more_than_its_room_and_none_stays_idle(
            rooms in proptest::collection::vec((0u32..5, proptest::option::of(0u32..5)), 1..6),
            jobs in proptest::collection::vec((-2i16..3, 0usize..4), 0..40),
            lanes in proptest::collection::vec(proptest::collection::vec(0usize..6, 0..6), 4),
        ) {
            let seats: Vec<Seat> = rooms
                .iter()
                .enumerate()
                .map(|(index, (slots, window))| seat(index, *slots, *window))
                .collect();
            let lanes: Vec<Vec<usize>> = lanes
                .into_iter()
                .map(|lane| lane.into_iter().filter(|seat| *seat < seats.len()).collect())
                .collect();
            let heads: Vec<Head> = jobs
                .iter()
                .enumerate()
                .map(|(number, (priority, lane))| head(number as u128, *priority, *lane))
                .collect();
            let bindings =
                plan(&heads, &seats, &lanes, Strategy::RoundRobin, &mut Cursor::default());
            let mut used = vec![0u32; seats.len()];
            let mut bound = vec![false; heads.len()];
            for Binding { head, seat } in &bindings {
                prop_assert!(lanes[heads[*head].lane].contains(seat));
                prop_assert!(!std::mem::replace(&mut bound[*head], true));
                used[*seat] += 1;
            }
            for (seat, used) in seats.iter().zip(&used) {
                prop_assert!(*used <= seat.room());
            }
            for (index, head) in heads.iter().enumerate().filter(|(index, _)| !bound[*index]) {
                let idle = lanes[head.lane].iter().any(|seat| used[*seat] < seats[*seat].room());
                prop_assert!(!idle, "job {index} waits beside a free slot");
            }
        }
    }
}
