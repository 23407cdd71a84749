//! What a forecast says, against a simulation of its own that goes job by job.

use super::*;

/// Numbers in `[0, 1)` that are the same in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        // A linear congruential generator with Knuth's constants; its upper bits are good enough.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn server(index: usize, slots: u32, time: f64) -> Server {
    Server {
        account: format!("a{index}").parse().unwrap(),
        slots,
        busy: 0,
        cooldown: Duration::ZERO,
        windows: Vec::new(),
        takes: Takes {
            time: seconds(time),
            input_tokens: 500,
            output_tokens: 200,
            cost_microusd: 1_000,
        },
    }
}

fn limited(mut server: Server, kind: LimitKind, limit: u64, window: u64) -> Server {
    let limit = Limit {
        kind,
        limit,
        window: Span::seconds(window),
    };
    server.windows.push(Window {
        limit,
        used: Vec::new(),
    });
    server
}

fn work(servers: &[usize], jobs: u64) -> Work {
    Work {
        servers: servers.to_vec(),
        priority: 0,
        client: usize::MAX - usize::try_from(jobs).unwrap(),
        weight: 1,
        most_running: None,
        behind: 0,
        jobs,
    }
}

/// A simulation of its own, job by job, each with a duration by chance (half to one and a half
/// times the average) and its own use of tokens. Of those that may go, the client that had least
/// for its weight is served next, on the account with most free slots.
fn finely(servers: &[Server], work: &[Work], seed: u64) -> Duration {
    struct Seat {
        free: u32,
        used: Vec<Vec<(Duration, u64)>>,
    }
    let mut chance = Chance(seed);
    let mut ends: Vec<(Duration, usize, Option<usize>)> = Vec::new();
    let mut seats: Vec<Seat> = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        for _ in 0..server.busy {
            ends.push((server.takes.time.mul_f64(chance.next()), index, None));
        }
        seats.push(Seat {
            free: server.slots - server.busy,
            used: server
                .windows
                .iter()
                .map(|window| window.used.clone())
                .collect(),
        });
    }
    let mut left: Vec<u64> = work.iter().map(|work| work.jobs).collect();
    let mut had = vec![0_f64; work.len()];
    let (mut now, mut last, target) = (Duration::ZERO, Duration::ZERO, work.len() - 1);
    let amount = |takes: &Takes, kind: LimitKind| match kind {
        LimitKind::Requests => 1,
        LimitKind::InputTokens => takes.input_tokens,
        LimitKind::OutputTokens => takes.output_tokens,
        LimitKind::Cost => takes.cost_microusd,
    };
    loop {
        let may = |seat: &Seat, server: &Server| {
            let fits = |(window, used): (&Window, &Vec<(Duration, u64)>)| {
                let sum: u64 = used.iter().map(|(_, amount)| amount).sum();
                sum + amount(&server.takes, window.limit.kind) <= window.limit.limit
            };
            seat.free > 0
                && server.cooldown <= now
                && server.windows.iter().zip(&seat.used).all(fits)
        };
        let next = (0..work.len())
            .filter(|index| left[*index] > 0)
            .filter(|index| {
                let own = |(_, _, client): &&(Duration, usize, Option<usize>)| {
                    *client == Some(work[*index].client)
                };
                let running = ends.iter().filter(own).count();
                work[*index]
                    .most_running
                    .is_none_or(|most| running < most as usize)
            })
            .filter_map(|index| {
                let open = work[index].servers.iter().copied();
                let open = open.filter(|server| may(&seats[*server], &servers[*server]));
                Some((index, open.max_by_key(|server| seats[*server].free)?))
            })
            .min_by(|(one, _), (other, _)| {
                let key = |index: usize| {
                    (
                        -work[index].priority,
                        had[index] + work[index].behind as f64,
                    )
                };
                key(*one).partial_cmp(&key(*other)).unwrap()
            });
        if let Some((index, server)) = next {
            left[index] -= 1;
            had[index] += 1.0 / f64::from(work[index].weight);
            let end = now + servers[server].takes.time.mul_f64(0.5 + chance.next());
            ends.push((end, server, Some(work[index].client)));
            let seat = &mut seats[server];
            seat.free -= 1;
            for (window, used) in servers[server].windows.iter().zip(&mut seat.used) {
                let mean = amount(&servers[server].takes, window.limit.kind);
                let real = if mean > 1 {
                    (mean as f64 * (0.5 + chance.next())) as u64
                } else {
                    mean
                };
                used.push((now + window.limit.window.0, real));
            }
            if index == target {
                last = last.max(end);
            }
            continue;
        }
        if left[target] == 0 {
            return last;
        }
        let leaves = seats
            .iter()
            .flat_map(|seat| seat.used.iter().flatten())
            .map(|(at, _)| *at);
        let cools = servers.iter().map(|server| server.cooldown);
        let times = ends.iter().map(|(at, ..)| *at).chain(leaves).chain(cools);
        now = times.filter(|at| *at > now).min().unwrap();
        ends.retain(|(end, server, _)| {
            if *end <= now {
                seats[*server].free += 1;
            }
            *end > now
        });
        for used in seats.iter_mut().flat_map(|seat| &mut seat.used) {
            used.retain(|(leaves, _)| *leaves > now);
        }
    }
}

/// Servers, work of which the last is asked about, and a name.
type Scenario = (&'static str, Vec<Server>, Vec<Work>);

fn scenarios() -> Vec<Scenario> {
    use LimitKind::{Cost, InputTokens, OutputTokens, Requests};
    let busy = |mut server: Server, busy: u32| {
        server.busy = busy;
        server
    };
    let cooling = |mut server: Server, for_seconds: f64| {
        server.cooldown = seconds(for_seconds);
        server
    };
    let half_used = |mut server: Server| {
        for window in &mut server.windows {
            let (limit, length) = (window.limit.limit, window.limit.window.0);
            window.used = (1..=8)
                .map(|part| (length * part / 8, limit / 16))
                .collect();
        }
        server
    };
    let weighing = |mut work: Work, weight: u32| {
        work.weight = weight;
        work
    };
    let urgent = |mut work: Work| {
        work.priority = 1;
        work
    };
    let at_most = |mut work: Work, most: u32| {
        work.most_running = Some(most);
        work
    };
    let after = |mut work: Work, behind: u64| {
        work.behind = behind;
        work
    };
    vec![
        ("one slot", vec![server(0, 1, 2.0)], vec![work(&[0], 200)]),
        (
            "many slots",
            vec![server(0, 16, 3.0)],
            vec![work(&[0], 2_000)],
        ),
        (
            "unequal speed",
            vec![server(0, 4, 1.0), server(1, 4, 4.0)],
            vec![work(&[0, 1], 1_000)],
        ),
        (
            "three speeds",
            vec![server(0, 8, 1.0), server(1, 8, 2.0), server(2, 8, 4.0)],
            vec![work(&[0, 1, 2], 3_000)],
        ),
        (
            "requests a minute",
            vec![limited(server(0, 10, 1.0), Requests, 60, 60)],
            vec![work(&[0], 600)],
        ),
        (
            "requests an hour",
            vec![limited(server(0, 8, 5.0), Requests, 100, 3_600)],
            vec![work(&[0], 1_000)],
        ),
        (
            "two windows",
            vec![limited(
                limited(server(0, 8, 2.0), Requests, 40, 60),
                Requests,
                500,
                3_600,
            )],
            vec![work(&[0], 2_000)],
        ),
        (
            "tokens read",
            vec![limited(server(0, 20, 2.0), InputTokens, 40_000, 60)],
            vec![work(&[0], 1_500)],
        ),
        (
            "tokens written",
            vec![limited(server(0, 20, 2.0), OutputTokens, 16_000, 60)],
            vec![work(&[0], 1_500)],
        ),
        (
            "cost",
            vec![limited(server(0, 20, 2.0), Cost, 200_000, 600)],
            vec![work(&[0], 1_500)],
        ),
        (
            "one limited, one not",
            vec![
                limited(server(0, 8, 1.0), Requests, 30, 60),
                server(1, 2, 3.0),
            ],
            vec![work(&[0, 1], 800)],
        ),
        (
            "busy at first",
            vec![busy(server(0, 8, 30.0), 8)],
            vec![work(&[0], 80)],
        ),
        (
            "cooling at first",
            vec![cooling(server(0, 4, 2.0), 120.0), server(1, 4, 2.0)],
            vec![work(&[0, 1], 600)],
        ),
        (
            "all cool",
            vec![cooling(server(0, 4, 2.0), 300.0)],
            vec![work(&[0], 400)],
        ),
        (
            "half used",
            vec![half_used(limited(server(0, 8, 1.0), Requests, 320, 600))],
            vec![work(&[0], 900)],
        ),
        (
            "beside another client",
            vec![server(0, 8, 2.0)],
            vec![work(&[0], 5_000), work(&[0], 500)],
        ),
        (
            "three times the weight",
            vec![server(0, 8, 2.0)],
            vec![work(&[0], 5_000), weighing(work(&[0], 600), 3)],
        ),
        (
            "behind the urgent",
            vec![server(0, 8, 2.0)],
            vec![urgent(work(&[0], 1_000)), work(&[0], 300)],
        ),
        (
            "behind its own",
            vec![server(0, 8, 2.0)],
            vec![
                work(&[0], 700),
                work(&[0], 2_000),
                after(work(&[0], 300), 700),
            ],
        ),
        (
            "a client's quota",
            vec![server(0, 8, 2.0), server(1, 8, 2.0)],
            vec![work(&[0, 1], 3_000), at_most(work(&[0, 1], 400), 2)],
        ),
        (
            "another client's quota",
            vec![server(0, 8, 2.0)],
            vec![at_most(work(&[0], 3_000), 3), work(&[0], 900)],
        ),
        (
            "lanes that overlap",
            vec![
                server(0, 4, 2.0),
                limited(server(1, 8, 1.0), Requests, 120, 60),
                server(2, 2, 5.0),
            ],
            vec![work(&[0], 900), work(&[1, 2], 1_500), work(&[0, 1], 800)],
        ),
        (
            "a hundred thousand",
            vec![server(0, 50, 3.0), server(1, 50, 6.0)],
            vec![work(&[0, 1], 100_000)],
        ),
    ]
}

#[test]
fn the_end_of_a_batch_is_within_15_percent_of_a_finer_simulation() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 20);
    for (name, servers, work) in scenarios {
        let estimate = forecast(&servers, &work, Strategy::default(), 10_000)
            .end
            .unwrap();
        let real = finely(&servers, &work, 7);
        let off = estimate.as_secs_f64() / real.as_secs_f64() - 1.0;
        assert!(off.abs() <= 0.15, "{name}: {estimate:?} and then {real:?}");
    }
}

#[test]
fn the_bottleneck_is_named() {
    let bottleneck = |server: Server, jobs: u64| {
        forecast(&[server], &[work(&[0], jobs)], Strategy::default(), 1_000).bottleneck
    };
    assert_eq!(bottleneck(server(0, 2, 1.0), 100), Some((0, Cause::Slots)));
    let tight = limited(
        limited(server(0, 50, 1.0), LimitKind::Requests, 1_000, 60),
        LimitKind::Cost,
        5_000,
        60,
    );
    assert_eq!(bottleneck(tight, 100), Some((0, Cause::Limit(1))));
    let mut cools = server(0, 50, 1.0);
    cools.cooldown = seconds(600.0);
    assert_eq!(bottleneck(cools, 100), Some((0, Cause::Cooldown)));
    assert_eq!(bottleneck(server(0, 50, 1.0), 10), None);
    let mut few = work(&[0], 100);
    few.most_running = Some(2);
    let held = forecast(&[server(0, 50, 1.0)], &[few], Strategy::default(), 1_000);
    assert_eq!(held.bottleneck, Some((0, Cause::Quota)));
    assert_eq!(held.end, Some(seconds(50.0)));
}

#[test]
fn what_nobody_can_run_has_no_end() {
    let out = server(0, 0, 1.0);
    let outlook = forecast(&[out], &[work(&[0], 5)], Strategy::default(), 100);
    assert_eq!((outlook.first_start, outlook.end), (None, None));
    assert_eq!(
        forecast(&[], &[work(&[], 1)], Strategy::default(), 100).end,
        None
    );
    assert_eq!(
        forecast(&[], &[], Strategy::default(), 100),
        Outlook::default()
    );
    // A limit that is smaller than what one job takes.
    let never = limited(server(0, 1, 1.0), LimitKind::InputTokens, 100, 60);
    assert_eq!(
        forecast(&[never], &[work(&[0], 5)], Strategy::default(), 100).end,
        None
    );
}

#[test]
fn a_huge_backlog_is_bounded_work() {
    let tight = limited(server(0, 4, 1.0), LimitKind::Requests, 20, 60);
    let outlook = forecast(
        &[tight],
        &[work(&[0], 1_000_000)],
        Strategy::default(),
        1_000,
    );
    let hours = outlook.end.unwrap().as_secs_f64() / 3_600.0;
    // 20 a minute.
    assert!(
        (hours / (1_000_000.0 / 1_200.0) - 1.0).abs() < 0.02,
        "{hours} hours"
    );
    assert_eq!(outlook.by_server, [1_000_000]);
}

#[test]
fn as_many_accounts_as_the_rate_takes() {
    let needed =
        |server: &Server, per_hour| accounts_needed(server, per_hour, Strategy::default(), 1_000);
    // Four slots of one minute each are 240 an hour.
    let slots = server(0, 4, 60.0);
    assert_eq!(needed(&slots, 240), Some(1));
    assert_eq!(needed(&slots, 1_000), Some(5));
    assert_eq!(needed(&slots, 1_000_000), None);
    // A hundred in five hours are twenty an hour, however fast they go at first.
    let window = limited(server(0, 8, 10.0), LimitKind::Requests, 100, 5 * 3_600);
    assert_eq!(needed(&window, 20), Some(1));
    assert_eq!(needed(&window, 100), Some(5));
    let never = limited(server(0, 1, 1.0), LimitKind::Cost, 10, 60);
    assert_eq!(needed(&never, 1), None);
}
