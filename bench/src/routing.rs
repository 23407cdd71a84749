//! The strategies side by side: the real planner in virtual time, over accounts of unequal speed
//! and limits. Nothing is started, and the same seed gives the same table on every machine.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    time::Duration,
};

use clap::Args;
use comfy_table::{Table, presets};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sluice_shared::domain::{
    Allowance, JobId, Needs, Time,
    route::{Cursor, Head, LaneSeats, Mark, Seat, Share, Speed, Strategy, plan},
};
use uuid::Uuid;

/// Compare the strategies in virtual time, and print one table.
#[derive(Args)]
pub(crate) struct RoutingArgs {
    /// Jobs of each run.
    #[arg(long, default_value_t = 20_000)]
    jobs: u32,
    /// Where chance begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A quota of requests that is full again at each multiple of its span, as plans have it.
#[derive(Clone, Copy)]
struct Quota {
    requests: u32,
    span: Duration,
}

#[derive(Clone, Copy)]
struct Account {
    name: &'static str,
    /// What a job takes, on average.
    job: Duration,
    slots: u32,
    weight: u32,
    quota: Option<Quota>,
}

struct Scenario {
    name: &'static str,
    accounts: [Account; 3],
    /// Jobs a second.
    rate: f64,
}

/// One job in ten has this priority, the others 0.
const HIGH: i16 = 10;

const fn account(name: &'static str, seconds: u64, weight: u32, quota: Option<Quota>) -> Account {
    Account {
        name,
        job: Duration::from_secs(seconds),
        slots: 8,
        weight,
        quota,
    }
}

const fn per_minutes(requests: u32, minutes: u64) -> Option<Quota> {
    Some(Quota {
        requests,
        span: Duration::from_secs(60 * minutes),
    })
}

/// Three accounts of 8 slots each, of the speeds 1, 2 and 4: 7 jobs a second together.
const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "half full",
        accounts: [
            account("1x", 8, 1, None),
            account("2x", 4, 2, None),
            account("4x", 2, 4, None),
        ],
        rate: 3.5,
    },
    Scenario {
        name: "nearly full",
        accounts: [
            account("1x", 8, 1, None),
            account("2x", 4, 2, None),
            account("4x", 2, 4, None),
        ],
        rate: 6.3,
    },
    // The fast account could run four jobs a second, and its quota allows one and two thirds.
    Scenario {
        name: "quotas",
        accounts: [
            account("1x, 400 per 5m", 8, 1, per_minutes(400, 5)),
            account("2x, 1500 per 15m", 4, 2, per_minutes(1500, 15)),
            account("4x, 6000 per 1h", 2, 4, per_minutes(6000, 60)),
        ],
        rate: 3.6,
    },
];

/// What a run came to.
struct Figures {
    mean: f64,
    p99: f64,
    p99_high: f64,
    busy: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Finish {
        account: usize,
        job: u32,
        took: Duration,
    },
    Arrive {
        job: u32,
    },
    /// A quota is full again.
    Reset,
}

/// What the table says, as Markdown.
pub(crate) fn table(args: &RoutingArgs) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "accounts",
        "strategy",
        "mean",
        "p99",
        "p99 of high priority",
        "slots in use (1x, 2x, 4x)",
    ]);
    for scenario in &SCENARIOS {
        for strategy in Strategy::ALL {
            let figures = Run::new(scenario, strategy, args.seed).finish(args.jobs.max(1));
            let busy: Vec<String> = figures
                .busy
                .iter()
                .map(|share| format!("{:.0} %", share * 100.0))
                .collect();
            table.add_row([
                scenario.name.to_owned(),
                strategy.to_string(),
                format!("{:.1} s", figures.mean),
                format!("{:.1} s", figures.p99),
                format!("{:.1} s", figures.p99_high),
                busy.join(", "),
            ]);
        }
    }
    let mut text = table.to_string();
    for scenario in &SCENARIOS {
        let names = scenario.accounts.map(|account| account.name).join("; ");
        text += &format!("\n{}: {names}; {} jobs/s", scenario.name, scenario.rate);
    }
    text
}

struct Run<'a> {
    scenario: &'a Scenario,
    strategy: Strategy,
    chance: StdRng,
    now: Time,
    events: BinaryHeap<Reverse<(Time, Event)>>,
    waiting: BTreeSet<(Reverse<i16>, u32)>,
    arrived: Vec<(Time, i16)>,
    in_flight: [u32; 3],
    used: [u32; 3],
    speeds: [Option<Speed>; 3],
    busy: [Duration; 3],
    results: Vec<(f64, i16)>,
    cursor: Cursor,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario, strategy: Strategy, seed: u64) -> Self {
        Self {
            scenario,
            strategy,
            chance: StdRng::seed_from_u64(seed),
            now: Time::EPOCH,
            events: BinaryHeap::new(),
            waiting: BTreeSet::new(),
            arrived: Vec::new(),
            in_flight: [0; 3],
            used: [0; 3],
            speeds: [None; 3],
            busy: [Duration::ZERO; 3],
            results: Vec::new(),
            cursor: Cursor::default(),
        }
    }

    fn finish(mut self, jobs: u32) -> Figures {
        let mut at = self.now;
        for job in 0..jobs {
            let gap = -(1.0 - self.chance.random::<f64>()).ln() / self.scenario.rate;
            at = at + Duration::from_secs_f64(gap);
            let is_high = self.chance.random_bool(0.1);
            self.arrived.push((at, if is_high { HIGH } else { 0 }));
            self.events.push(Reverse((at, Event::Arrive { job })));
        }
        self.events.push(Reverse((self.now, Event::Reset)));
        while self.results.len() < jobs as usize
            && let Some(Reverse((at, event))) = self.events.pop()
        {
            self.now = at;
            self.happen(event);
            self.dispatch();
        }
        self.figures()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { job } => {
                let (_, priority) = self.arrived[job as usize];
                self.waiting.insert((Reverse(priority), job));
            }
            Event::Finish { account, job, took } => {
                self.in_flight[account] -= 1;
                let before = self.speeds[account];
                self.speeds[account] = Some(Speed::after(before, took, true, self.now));
                let (arrived, priority) = self.arrived[job as usize];
                let waited = self.now.since(arrived).as_secs_f64();
                self.results.push((waited, priority));
            }
            Event::Reset => {
                let quotas = self.scenario.accounts.iter().zip(&mut self.used);
                for (account, used) in quotas {
                    if account
                        .quota
                        .is_some_and(|quota| into(quota, self.now).is_zero())
                    {
                        *used = 0;
                    }
                }
                let next = self
                    .scenario
                    .accounts
                    .iter()
                    .filter_map(|account| account.quota);
                if let Some(next) = next.map(|quota| resets_at(quota, self.now)).min() {
                    self.events.push(Reverse((next, Event::Reset)));
                }
            }
        }
    }

    fn seats(&self) -> Vec<Seat> {
        let accounts = self.scenario.accounts.iter().enumerate();
        let seat = |(index, account): (usize, &Account)| Seat {
            account: ["a", "b", "c"][index]
                .parse()
                .unwrap_or_else(|_| unreachable!()),
            free_slots: account.slots - self.in_flight[index],
            allowance: account
                .quota
                .map(|quota| Allowance::of_jobs(quota.requests, quota.requests - self.used[index])),
            in_flight: self.in_flight[index],
            weight: account.weight,
            time_to_result: self.speeds[index].map(|speed| speed.at(self.now)),
            windows: account
                .quota
                .map(|quota| Share {
                    left: f64::from(quota.requests - self.used[index]) / f64::from(quota.requests),
                    one_job: 1.0 / f64::from(quota.requests),
                    resets_at: resets_at(quota, self.now),
                })
                .into_iter()
                .collect(),
            mark: Mark::default(),
        };
        accounts.map(seat).collect()
    }

    fn dispatch(&mut self) {
        let mut seats = self.seats();
        let room: u32 = seats.iter().map(Seat::room).sum();
        let first = self.waiting.iter().take(room as usize);
        let heads: Vec<Head> = first
            .map(|(Reverse(priority), job)| Head {
                job: JobId(Uuid::from_u128(u128::from(*job))),
                priority: *priority,
                fair_tag: 0,
                lane: 0,
                session: None,
                needs: Needs::default(),
            })
            .collect();
        let lanes = [LaneSeats {
            seats: vec![0, 1, 2],
            strategy: self.strategy,
        }];
        let jobs: Vec<(Reverse<i16>, u32)> =
            self.waiting.iter().take(heads.len()).copied().collect();
        for binding in plan(&heads, &mut seats, &lanes, &mut self.cursor, self.now) {
            let (key, account) = (jobs[binding.head], binding.seat);
            self.waiting.remove(&key);
            self.in_flight[account] += 1;
            self.used[account] += 1;
            let usual = self.scenario.accounts[account].job;
            let took = usual.mul_f64(self.chance.random_range(0.5..1.5));
            self.busy[account] += took;
            let finish = Event::Finish {
                account,
                job: key.1,
                took,
            };
            self.events.push(Reverse((self.now + took, finish)));
        }
    }

    fn figures(mut self) -> Figures {
        self.results.sort_by(|one, other| one.0.total_cmp(&other.0));
        let all: Vec<f64> = self.results.iter().map(|(waited, _)| *waited).collect();
        let high = self
            .results
            .iter()
            .filter(|(_, priority)| *priority == HIGH);
        let high: Vec<f64> = high.map(|(waited, _)| *waited).collect();
        let p99 = |sorted: &[f64]| {
            let last = sorted.len().saturating_sub(1);
            sorted.get(last * 99 / 100).copied().unwrap_or_default()
        };
        let passed = self.now.since(Time::EPOCH).as_secs_f64();
        let slots = self.scenario.accounts.iter().zip(&self.busy);
        Figures {
            mean: all.iter().sum::<f64>() / f64::from(u32::try_from(all.len()).unwrap_or(1)),
            p99: p99(&all),
            p99_high: p99(&high),
            busy: slots
                .map(|(account, busy)| busy.as_secs_f64() / (passed * f64::from(account.slots)))
                .collect(),
        }
    }
}

/// How far into the quota's span a time is.
fn into(quota: Quota, at: Time) -> Duration {
    let span = u64::try_from(quota.span.as_millis()).unwrap_or(u64::MAX);
    let millis = u64::try_from(at.as_millis()).unwrap_or(0);
    Duration::from_millis(millis % span.max(1))
}

fn resets_at(quota: Quota, now: Time) -> Time {
    now + (quota.span - into(quota, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(scenario: usize, strategy: Strategy) -> Figures {
        Run::new(&SCENARIOS[scenario], strategy, 7).finish(4000)
    }

    #[test]
    fn the_fastest_is_faster_than_each_in_turn() {
        let mean = |strategy| figures(0, strategy).mean;
        assert!(mean(Strategy::ResponseTime) < 0.7 * mean(Strategy::RoundRobin));
        assert!(mean(Strategy::Weighted) < mean(Strategy::RoundRobin));
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let one = figures(2, Strategy::Expiring);
        let other = figures(2, Strategy::Expiring);
        assert_eq!((one.mean, one.p99), (other.mean, other.p99));
    }
}
