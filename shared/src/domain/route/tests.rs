//! What strategies promise, by example and by property.

use proptest::{prelude::*, strategy::Strategy as Generates};
use uuid::Uuid;

use super::{Strategy, *};
use crate::domain::{Kind, window::Left};

const NOW: Time = Time::from_millis(1_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn seat(index: usize, free_slots: u32) -> Seat {
    Seat {
        account: format!("a{index}").parse().unwrap(),
        free_slots,
        allowance: None,
        in_flight: 0,
        weight: 1,
        time_to_result: None,
        windows: vec![],
        mark: Mark::default(),
    }
}

fn allowing(kind: Kind, left: u32) -> Allowance {
    Allowance::new(vec![Left {
        kind,
        most: 1000,
        left: left.into(),
        typical: 10,
    }])
}

fn window(left: f64, resets_in: Duration) -> Share {
    Share {
        left,
        one_job: 0.01,
        resets_at: NOW + resets_in,
    }
}

fn head(number: usize, priority: i16, lane: usize) -> Head {
    Head {
        job: JobId(Uuid::from_u128(number as u128)),
        priority,
        fair_tag: 0,
        lane,
        session: None,
        needs: Needs::default(),
    }
}

fn lane(seats: &[usize], strategy: Strategy) -> LaneSeats {
    LaneSeats {
        seats: seats.to_vec(),
        strategy,
    }
}

/// The seats that jobs of one lane over all `seats` go to, one plan a job.
fn one_by_one(strategy: Strategy, seats: &[Seat], jobs: usize, cursor: &mut Cursor) -> Vec<usize> {
    let all: Vec<usize> = (0..seats.len()).collect();
    let lanes = [lane(&all, strategy)];
    let seats = &mut seats.to_vec();
    let mut chosen = Vec::new();
    for number in 0..jobs {
        let bindings = plan(&[head(number, 0, 0)], seats, &lanes, cursor, NOW);
        chosen.extend(bindings.iter().map(|binding| binding.seat));
    }
    chosen
}

/// The same, all jobs in one plan.
fn at_once(strategy: Strategy, seats: &[Seat], jobs: usize) -> Vec<usize> {
    at_priority(strategy, seats, jobs, 0)
}

fn at_priority(strategy: Strategy, seats: &[Seat], jobs: usize, priority: i16) -> Vec<usize> {
    let all: Vec<usize> = (0..seats.len()).collect();
    let heads: Vec<Head> = (0..jobs).map(|number| head(number, priority, 0)).collect();
    let lanes = [lane(&all, strategy)];
    plan(
        &heads,
        &mut seats.to_vec(),
        &lanes,
        &mut Cursor::default(),
        NOW,
    )
    .iter()
    .map(|binding| binding.seat)
    .collect()
}

#[test]
fn round_robin_takes_each_in_turn_across_plans() {
    let seats = [seat(0, 9), seat(1, 9), seat(2, 9)];
    let mut cursor = Cursor::default();
    let taken = one_by_one(Strategy::RoundRobin, &seats, 6, &mut cursor);
    assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    assert_eq!(at_once(Strategy::RoundRobin, &seats, 5), [0, 1, 2, 0, 1]);
    // An account that was away has its turn first.
    assert_eq!(
        one_by_one(Strategy::RoundRobin, &seats[..2], 2, &mut cursor),
        [0, 1]
    );
    assert_eq!(
        one_by_one(Strategy::RoundRobin, &seats, 3, &mut cursor),
        [2, 0, 1]
    );
}

#[test]
fn lanes_that_share_accounts_do_not_upset_each_others_turns() {
    let mut seats = [seat(0, 9), seat(1, 9), seat(2, 9)];
    let lanes = [
        lane(&[0, 1], Strategy::RoundRobin),
        lane(&[2], Strategy::RoundRobin),
    ];
    let mut cursor = Cursor::default();
    let mut taken = [0; 3];
    for number in 0..20 {
        let heads = [head(number, 0, number % 2)];
        taken[plan(&heads, &mut seats, &lanes, &mut cursor, NOW)[0].seat] += 1;
    }
    assert_eq!(taken, [5, 5, 10]);
}

#[test]
fn weighted_mixes_evenly() {
    let seats = [(0, 5), (1, 1), (2, 1)].map(|(index, weight)| Seat {
        weight,
        ..seat(index, 99)
    });
    let taken = one_by_one(Strategy::Weighted, &seats, 7, &mut Cursor::default());
    assert_eq!(taken, [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(at_once(Strategy::Weighted, &seats, 7), taken);
}

#[test]
fn least_connections_goes_by_the_share_of_slots() {
    let seats = [
        Seat {
            in_flight: 2,
            ..seat(0, 2)
        },
        Seat {
            in_flight: 3,
            ..seat(1, 7)
        },
    ];
    assert_eq!(at_once(Strategy::LeastConnections, &seats, 4), [1, 1, 0, 1]);
}

#[test]
fn response_time_prefers_the_fast_and_tries_the_unknown() {
    let timed = |index, seconds: Option<u64>| Seat {
        time_to_result: seconds.map(Duration::from_secs),
        ..seat(index, 4)
    };
    let seats = [timed(0, Some(4)), timed(1, Some(1)), timed(2, None)];
    let taken = at_once(Strategy::ResponseTime, &seats, 8);
    assert_eq!(taken[..2], [1, 2]);
    assert!(!taken.contains(&0), "{taken:?}");
    assert_eq!(
        at_once(Strategy::ResponseTime, &seats, 12).len(),
        12,
        "the slow one takes what the others cannot"
    );
}

#[test]
fn headroom_levels_what_is_left() {
    let seats = [(0, 0.5), (1, 0.53), (2, 0.2)].map(|(index, left)| Seat {
        windows: vec![window(1.0, HOUR), window(left, HOUR)],
        ..seat(index, 99)
    });
    let taken = at_once(Strategy::Headroom, &seats, 7);
    assert_eq!(taken[..3], [1, 1, 1]);
    let counts = [0, 1, 2].map(|seat| taken.iter().filter(|taken| **taken == seat).count());
    assert_eq!(counts, [2, 5, 0]);
}

#[test]
fn expiring_spends_first_what_resets_first() {
    let seats = [(0, 5), (1, 1), (2, 3)].map(|(index, hours)| Seat {
        windows: vec![window(0.5, HOUR * hours)],
        ..seat(index, 2)
    });
    assert_eq!(at_once(Strategy::Expiring, &seats, 6), [1, 1, 2, 2, 0, 0]);
    // What is nearly spent in its longer window is not in a hurry.
    let seats = [
        Seat {
            windows: vec![window(0.9, HOUR), window(0.11, HOUR * 100)],
            ..seat(0, 2)
        },
        Seat {
            windows: vec![window(0.5, HOUR * 5)],
            ..seat(1, 2)
        },
        seat(2, 2),
    ];
    assert_eq!(at_once(Strategy::Expiring, &seats, 6), [1, 1, 0, 0, 2, 2]);
}

#[test]
fn expiring_keeps_the_last_of_a_window_for_high_priorities() {
    let seats = [
        Seat {
            windows: vec![window(0.105, HOUR)],
            ..seat(0, 4)
        },
        Seat {
            windows: vec![window(0.5, HOUR * 50)],
            ..seat(1, 2)
        },
    ];
    assert_eq!(at_priority(Strategy::Expiring, &seats, 4, 0), [0, 1, 1, 0]);
    assert_eq!(at_priority(Strategy::Expiring, &seats, 4, 1), [0, 0, 0, 0]);
}

#[test]
fn a_session_stays_where_it_was_and_never_waits_for_it() {
    let mut seats = [seat(0, 9), seat(1, 9)];
    let lanes = [lane(&[0, 1], Strategy::RoundRobin)];
    let mut cursor = Cursor::default();
    let mut go = |seats: &[Seat], number| {
        let head = Head {
            session: Some("s".into()),
            ..head(number, 0, 0)
        };
        let bindings = plan(&[head], &mut seats.to_vec(), &lanes, &mut cursor, NOW);
        (bindings[0].seat, bindings[0].by_session)
    };
    assert_eq!(go(&seats, 0), (0, false));
    for number in 1..5 {
        assert_eq!(go(&seats, number), (0, true));
    }
    seats[0].free_slots = 0;
    assert_eq!(go(&seats, 5), (1, false));
    seats[0].free_slots = 9;
    assert_eq!(go(&seats, 6), (1, true), "it is at home where it ran last");
}

#[test]
fn a_lane_without_room_delays_only_its_own_jobs() {
    let mut seats = [seat(0, 0), seat(1, 1)];
    let heads = [head(1, 9, 0), head(2, 0, 1)];
    let lanes = [
        lane(&[0], Strategy::RoundRobin),
        lane(&[1], Strategy::RoundRobin),
    ];
    let bindings = plan(&heads, &mut seats, &lanes, &mut Cursor::default(), NOW);
    assert_eq!(bindings.len(), 1);
    assert_eq!((bindings[0].head, bindings[0].seat), (1, 1));
}

#[test]
fn priority_goes_before_age() {
    let heads = [head(1, 0, 0), head(2, 5, 0)];
    let lanes = [lane(&[0], Strategy::RoundRobin)];
    let bindings = plan(
        &heads,
        &mut [seat(0, 1)],
        &lanes,
        &mut Cursor::default(),
        NOW,
    );
    assert_eq!((bindings.len(), bindings[0].head), (1, 1));
}

#[test]
fn a_job_that_is_too_large_for_one_account_goes_to_another() {
    for strategy in Strategy::ALL {
        let tokens = |index, left| Seat {
            allowance: Some(allowing(Kind::OutputTokens, left)),
            ..seat(index, 9)
        };
        let needing = |number, tokens| Head {
            needs: Needs::of(4, Some(tokens)),
            ..head(number, 0, 0)
        };
        let bindings = plan(
            &[needing(1, 500), needing(2, 90), needing(3, 20)],
            &mut [tokens(0, 100), tokens(1, 500)],
            &[lane(&[0, 1], strategy)],
            &mut Cursor::default(),
            NOW,
        );
        let bound: Vec<(usize, usize)> = bindings
            .iter()
            .map(|bound| (bound.head, bound.seat))
            .collect();
        assert_eq!(bound, [(0, 1), (1, 0)], "the third waits for room");
    }
}

fn any_strategy() -> impl Generates<Value = Strategy> {
    prop::sample::select(Strategy::ALL.as_slice())
}

fn any_seat() -> impl Generates<Value = Seat> {
    let share =
        (0.0..1.0f64, 0.0..0.2f64, -10_000i64..10_000_000).prop_map(|(left, one_job, millis)| {
            Share {
                left,
                one_job,
                resets_at: Time::from_millis(NOW.as_millis() + millis),
            }
        });
    (
        0u32..5,
        prop::option::of(0u32..5),
        0u32..9,
        0u32..9,
        prop::option::of(0u64..10_000),
        prop::collection::vec(share, 0..3),
    )
        .prop_map(
            |(free_slots, requests, in_flight, weight, millis, windows)| Seat {
                account: "x".parse().unwrap(),
                free_slots,
                allowance: requests.map(|left| allowing(Kind::Requests, left)),
                in_flight,
                weight,
                time_to_result: millis.map(Duration::from_millis),
                windows,
                mark: Mark::default(),
            },
        )
}

proptest! {
    #[test]
    fn no_strategy_picks_who_cannot_or_lets_a_job_wait_beside_who_can(
        rounds in prop::collection::vec(
            (
                prop::collection::vec(any_seat(), 1..6),
                prop::collection::vec((-2i16..3, 0usize..4, prop::option::of(0u8..3)), 0..40),
            ),
            1..4,
        ),
        lanes in prop::collection::vec(
            (prop::collection::vec(0usize..6, 0..6), any_strategy()), 4,
        ),
    ) {
        let mut cursor = Cursor::default();
        for (mut seats, jobs) in rounds {
            for (index, seat) in seats.iter_mut().enumerate() {
                seat.account = format!("a{index}").parse().unwrap();
            }
            let lanes: Vec<LaneSeats> = lanes
                .iter()
                .map(|(members, strategy)| lane(members, *strategy))
                .collect();
            let heads: Vec<Head> = jobs
                .iter()
                .enumerate()
                .map(|(number, (priority, lane, session))| Head {
                    session: session.map(|name| name.to_string()),
                    ..head(number, *priority, *lane)
                })
                .collect();
            let bindings = plan(&heads, &mut seats, &lanes, &mut cursor, NOW);
            let mut used = vec![0u32; seats.len()];
            let mut bound = vec![false; heads.len()];
            for Binding { head, seat, .. } in &bindings {
                prop_assert!(lanes[heads[*head].lane].seats.contains(seat));
                prop_assert!(!std::mem::replace(&mut bound[*head], true));
                used[*seat] += 1;
            }
            for (seat, used) in seats.iter().zip(&used) {
                prop_assert!(*used <= seat.room());
            }
            for (index, head) in heads.iter().enumerate().filter(|(index, _)| !bound[*index]) {
                let idle = lanes[head.lane]
                    .seats
                    .iter()
                    .any(|seat| *seat < seats.len() && used[*seat] < seats[*seat].room());
                prop_assert!(!idle, "job {index} waits beside a free slot");
            }
        }
    }

    #[test]
    fn weighted_comes_out_in_the_ratio_of_the_weights(
        weights in prop::collection::vec(1u32..20, 1..8),
        batches in prop::collection::vec(1usize..40, 1..30),
    ) {
        let mut seats: Vec<Seat> = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| Seat { weight: *weight, ..seat(index, 10_000) })
            .collect();
        let all: Vec<usize> = (0..seats.len()).collect();
        let lanes = [lane(&all, Strategy::Weighted)];
        let mut cursor = Cursor::default();
        let (mut taken, mut jobs) = (vec![0_u32; seats.len()], 0_usize);
        for batch in batches {
            let heads: Vec<Head> = (jobs..jobs + batch).map(|number| head(number, 0, 0)).collect();
            jobs += batch;
            for binding in plan(&heads, &mut seats, &lanes, &mut cursor, NOW) {
                taken[binding.seat] += 1;
            }
            let sum: u32 = weights.iter().sum();
            for (taken, weight) in taken.iter().zip(&weights) {
                let due = jobs as f64 * f64::from(*weight) / f64::from(sum);
                let off = (f64::from(*taken) - due).abs();
                prop_assert!(off < weights.len() as f64, "{taken} instead of {due} of {jobs}");
            }
        }
    }

    #[test]
    fn least_connections_is_never_more_than_one_off(
        accounts in 1usize..8,
        slots in 1u32..30,
        batches in prop::collection::vec(0usize..20, 1..20),
    ) {
        let mut seats: Vec<Seat> = (0..accounts).map(|index| seat(index, slots)).collect();
        let all: Vec<usize> = (0..accounts).collect();
        let lanes = [lane(&all, Strategy::LeastConnections)];
        let mut cursor = Cursor::default();
        for batch in batches {
            let heads: Vec<Head> = (0..batch).map(|number| head(number, 0, 0)).collect();
            for binding in plan(&heads, &mut seats, &lanes, &mut cursor, NOW) {
                seats[binding.seat].in_flight += 1;
                seats[binding.seat].free_slots -= 1;
            }
            let in_flight = seats.iter().map(|seat| seat.in_flight);
            let (least, most) = (in_flight.clone().min().unwrap(), in_flight.max().unwrap());
            prop_assert!(most - least <= 1, "{least} and {most}");
        }
    }
}
