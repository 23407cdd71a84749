//! What will happen to jobs that wait, by letting the real planner run ahead in virtual time.
//!
//! Pure: accounts, limits, measured durations and waiting jobs come as plain data, and every time
//! is a span from now. The work is bounded whatever the backlog: jobs are taken in lumps of equal
//! size when there are many, each lump taking one slot for as long as its jobs would one after
//! the other.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    AccountId, Allowance, JobId, Needs, Span, Time,
    fair::{self, Tags},
    route::{self, Cursor, Head, LaneSeats, Mark, Seat, Strategy},
};

/// What a limit counts.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Calls.
    Requests,
    /// Tokens read.
    InputTokens,
    /// Tokens written.
    OutputTokens,
    /// Millionths of a US dollar.
    Cost,
}

/// So much of something in any window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// What is counted.
    pub kind: LimitKind,
    /// The most of it in a window.
    pub limit: u64,
    /// How long the window is.
    pub window: Span,
}

/// A limit and what of it is used now.
#[derive(Clone, Debug)]
pub struct Window {
    /// The limit.
    pub limit: Limit,
    /// What is used, each with the time from now at which it leaves the window; earliest first.
    pub used: Vec<(Duration, u64)>,
}

/// What a job takes of an account, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// How long it has a slot.
    pub time: Duration,
    /// Tokens it reads.
    pub input_tokens: u64,
    /// Tokens it writes.
    pub output_tokens: u64,
    /// Millionths of a US dollar it costs.
    pub cost_microusd: u64,
}

impl Takes {
    fn of(&self, kind: LimitKind) -> u64 {
        match kind {
            LimitKind::Requests => 1,
            LimitKind::InputTokens => self.input_tokens,
            LimitKind::OutputTokens => self.output_tokens,
            LimitKind::Cost => self.cost_microusd,
        }
    }
}

/// An account as it is now.
#[derive(Clone, Debug)]
pub struct Server {
    /// Which account.
    pub account: AccountId,
    /// Jobs it runs at once, at most; 0 for one that is out.
    pub slots: u32,
    /// Of these, how many are taken now.
    pub busy: u32,
    /// How long it takes no new job.
    pub cooldown: Duration,
    /// Its limits.
    pub windows: Vec<Window>,
    /// What a job takes of it.
    pub takes: Takes,
}

/// Jobs that are alike: of one client, in one lane, with one priority.
#[derive(Clone, Debug)]
pub struct Work {
    /// The accounts of its lane, as indices of the servers.
    pub servers: Vec<usize>,
    /// Higher goes first.
    pub priority: i16,
    /// Whose they are: work of one number is of one client.
    pub client: usize,
    /// The client's weight.
    pub weight: u32,
    /// Jobs that the client may have in flight.
    pub most_running: Option<u32>,
    /// Jobs of the same client that wait in the same place before these.
    pub behind: u64,
    /// How many there are.
    pub jobs: u64,
}

/// What holds jobs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// All slots are taken.
    Slots,
    /// It cools.
    Cooldown,
    /// The limit with this index is used up.
    Limit(usize),
    /// The client has as many in flight as it may, wherever they are.
    Quota,
}

/// What will become of some work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// When its first job starts; `None` when none ever does.
    pub first_start: Option<Duration>,
    /// When its last job starts.
    pub last_start: Option<Duration>,
    /// When its last job ends.
    pub end: Option<Duration>,
    /// Its jobs by server.
    pub by_server: Vec<u64>,
    /// The server and cause that held it up for longest, if anything did.
    pub bottleneck: Option<(usize, Cause)>,
}

/// Lumps that are started before the rest is taken to go on as it went so far.
const MOST_STARTS: u64 = 40_000;

/// A window is filled by at least so many lumps, or a lump would not fit where its jobs do.
const LUMPS_IN_WINDOW: u64 = 16;

const HOUR: Duration = Duration::from_secs(3600);

/// Slots are filled at least so often, or the last round would weigh too much.
const ROUNDS: u64 = 64;

/// Runs ahead until the last of `work` is done, and says what became of it; all else of `work` is
/// what it shares the servers with. `detail` is how many lumps the work is to be cut into.
#[must_use]
pub fn forecast(servers: &[Server], work: &[Work], strategy: Strategy, detail: u64) -> Outlook {
    let mut run = Run::new(servers, work, strategy, detail);
    run.finish();
    run.outlook
}

/// How many accounts like `like` it takes for `per_hour` jobs an hour, for good; `None` when
/// `most` are not enough. Its present state is left out of account.
#[must_use]
pub fn accounts_needed(like: &Server, per_hour: u64, strategy: Strategy, most: u32) -> Option<u32> {
    let mut fresh = like.clone();
    fresh.busy = 0;
    fresh.cooldown = Duration::ZERO;
    for window in &mut fresh.windows {
        window.used.clear();
    }
    // As long as the longest window, so that what it lets through at once is not taken for a rate.
    let windows = fresh.windows.iter().map(|window| window.limit.window.0);
    let horizon = windows
        .chain([HOUR, fresh.takes.time.saturating_mul(20)])
        .max()
        .unwrap_or(HOUR);
    let jobs = u128::from(per_hour) * horizon.as_millis() / 3_600_000;
    let jobs = u64::try_from(jobs).unwrap_or(u64::MAX).max(1);
    let is_enough = |accounts: u32| {
        let servers = vec![fresh.clone(); usize::try_from(accounts).unwrap_or(usize::MAX)];
        let work = Work {
            servers: (0..servers.len()).collect(),
            priority: 0,
            client: 0,
            weight: 1,
            most_running: None,
            behind: 0,
            jobs,
        };
        let end = forecast(&servers, &[work], strategy, 10_000).end;
        end.is_some_and(|end| end <= horizon)
    };
    let mut enough = 1;
    while !is_enough(enough) {
        if enough >= most {
            return None;
        }
        enough = enough.saturating_mul(2).min(most);
    }
    let mut too_few = enough / 2;
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if is_enough(middle) {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Some(enough)
}

/// What leaves a window when, and how much is in it.
type InWindow = (VecDeque<(Duration, u64)>, u64);

struct Run<'a> {
    servers: &'a [Server],
    work: &'a [Work],
    lanes: Vec<LaneSeats>,
    cursor: Cursor,
    /// Jobs in a lump.
    lump: u64,
    /// Whether any client may have only so many in flight.
    has_quotas: bool,
    now: Duration,
    free: Vec<u32>,
    /// Of each server, what is in each window.
    windows: Vec<Vec<InWindow>>,
    /// When slots become free: of which server, and of which client where that is known.
    ends: BinaryHeap<Reverse<(Duration, usize, Option<usize>)>>,
    /// Jobs in flight by client.
    running: BTreeMap<usize, u32>,
    left: Vec<u64>,
    tags: Vec<Tags>,
    held_up: BTreeMap<(usize, Cause), Duration>,
    outlook: Outlook,
}

impl<'a> Run<'a> {
    fn new(servers: &'a [Server], work: &'a [Work], strategy: Strategy, detail: u64) -> Self {
        let lump = lump(servers, work, detail);
        let mut ends = BinaryHeap::new();
        let mut free = Vec::with_capacity(servers.len());
        for (index, server) in servers.iter().enumerate() {
            let busy = server.busy.min(server.slots);
            free.push(server.slots - busy);
            for slot in 0..busy {
                // When each began is not known; they are taken to be evenly on their way.
                let through = server.takes.time * (slot + 1) / (busy + 1);
                ends.push(Reverse((through, index, None)));
            }
        }
        let windows = servers
            .iter()
            .map(|server| {
                let state = |window: &Window| {
                    let used: VecDeque<(Duration, u64)> = window.used.iter().copied().collect();
                    let sum = used.iter().map(|(_, amount)| amount).sum();
                    (used, sum)
                };
                server.windows.iter().map(state).collect()
            })
            .collect();
        let tags = work
            .iter()
            .map(|work| {
                let step = fair::step(work.weight).saturating_mul(i64::try_from(lump).unwrap_or(1));
                let behind = i64::try_from(work.behind / lump).unwrap_or(i64::MAX);
                let lumps = u32::try_from(work.jobs.div_ceil(lump)).unwrap_or(u32::MAX);
                Tags::reserve(None, step.saturating_mul(behind), step, lumps)
            })
            .collect();
        Self {
            servers,
            work,
            lanes: work
                .iter()
                .map(|work| LaneSeats {
                    seats: work.servers.clone(),
                    strategy,
                })
                .collect(),
            cursor: Cursor::default(),
            lump,
            has_quotas: work.iter().any(|work| work.most_running.is_some()),
            now: Duration::ZERO,
            free,
            windows,
            ends,
            running: BTreeMap::new(),
            left: work.iter().map(|work| work.jobs).collect(),
            tags,
            held_up: BTreeMap::new(),
            outlook: Outlook {
                by_server: vec![0; servers.len()],
                ..Outlook::default()
            },
        }
    }

    fn finish(&mut self) {
        let Some(target) = self.work.len().checked_sub(1) else {
            return;
        };
        let mut starts = 0;
        while self.left[target] > 0 {
            loop {
                let begun = self.start();
                starts += begun;
                if begun == 0 || !self.has_quotas {
                    break;
                }
            }
            if self.left[target] == 0 {
                break;
            }
            if starts >= MOST_STARTS {
                self.extrapolate(target);
                break;
            }
            if !self.advance(target) {
                // Nothing is under way and nothing will come: it never ends.
                self.outlook.last_start = None;
                self.outlook.end = None;
                break;
            }
        }
        let longest = self.held_up.iter().max_by_key(|(_, time)| **time);
        self.outlook.bottleneck = longest.map(|(held_up, _)| *held_up);
    }

    /// Starts what the planner binds now. Gives how many lumps that were. A slot that it gave to a
    /// client beyond its quota is given to another the next time.
    fn start(&mut self) -> u64 {
        let mut seats: Vec<Seat> = (0..self.servers.len())
            .map(|server| self.seat(server))
            .collect();
        let mut heads = Vec::new();
        let mut owners = Vec::new();
        for (index, lane) in self
            .lanes
            .iter()
            .enumerate()
            .filter(|(index, _)| self.left[*index] > 0)
        {
            let room: u64 = lane
                .seats
                .iter()
                .map(|seat| u64::from(seats[*seat].room()))
                .sum();
            let most = room.min(self.quota_left(index).into());
            let lumps = self.left[index].div_ceil(self.lump).min(most);
            let mut tags = self.tags[index];
            for tag in (0..lumps).map_while(|_| tags.next()) {
                heads.push(Head {
                    job: JobId(Uuid::from_u128(index as u128)),
                    priority: self.work[index].priority,
                    fair_tag: tag,
                    lane: index,
                    session: None,
                    needs: Needs::default(),
                });
                owners.push(index);
            }
        }
        let bindings = route::plan(
            &heads,
            &mut seats,
            &self.lanes,
            &mut self.cursor,
            Time::EPOCH + self.now,
        );
        let mut begun = 0;
        for binding in &bindings {
            let work = owners[binding.head];
            if self.quota_left(work) > 0 {
                self.begin(work, binding.seat);
                begun += 1;
            }
        }
        begun
    }

    /// Jobs that the client of some work may still have in flight.
    fn quota_left(&self, work: usize) -> u32 {
        let Work {
            client,
            most_running,
            ..
        } = self.work[work];
        let running = self.running.get(&client).copied().unwrap_or_default();
        most_running.map_or(u32::MAX, |most| most.saturating_sub(running))
    }

    fn begin(&mut self, work: usize, server: usize) {
        let jobs = self.left[work].min(self.lump);
        self.left[work] -= jobs;
        self.tags[work].next();
        let takes = self.servers[server].takes;
        let time = takes
            .time
            .saturating_mul(u32::try_from(jobs).unwrap_or(u32::MAX));
        let end = self.now.saturating_add(time);
        self.free[server] = self.free[server].saturating_sub(1);
        let client = self.work[work].client;
        self.ends.push(Reverse((end, server, Some(client))));
        *self.running.entry(client).or_default() += 1;
        for (window, (used, sum)) in self.servers[server]
            .windows
            .iter()
            .zip(&mut self.windows[server])
        {
            let amount = takes.of(window.limit.kind).saturating_mul(jobs);
            if amount > 0 {
                // A charge counts from its dispatch to one window after its call began; a lump's
                // calls begin one after the other, half of them later than its middle.
                let begun = time / 2 * u32::from(jobs > 1);
                used.push_back((self.now + begun + window.limit.window.0, amount));
                *sum = sum.saturating_add(amount);
            }
        }
        if work + 1 == self.work.len() {
            let outlook = &mut self.outlook;
            outlook.first_start.get_or_insert(self.now);
            // A lump's last job starts when the others of the lump are done.
            let last = end.saturating_sub(takes.time);
            outlook.last_start = outlook.last_start.max(Some(last));
            outlook.end = outlook.end.max(Some(end));
            outlook.by_server[server] += jobs;
        }
    }

    /// What a server can take now, in lumps.
    fn seat(&self, server: usize) -> Seat {
        let room = (0..self.servers[server].windows.len())
            .filter_map(|window| self.window_room(server, window))
            .min();
        let cools = self.servers[server].cooldown > self.now;
        Seat {
            account: self.servers[server].account.clone(),
            free_slots: if cools { 0 } else { self.free[server] },
            allowance: room.map(|lumps| Allowance::of_jobs(lumps, lumps)),
            in_flight: self.servers[server].slots.saturating_sub(self.free[server]),
            weight: 1,
            time_to_result: Some(self.servers[server].takes.time),
            windows: Vec::new(),
            mark: Mark::default(),
        }
    }

    /// Lumps that a window has room for; `None` when jobs take nothing of it.
    fn window_room(&self, server: usize, window: usize) -> Option<u32> {
        let limit = self.servers[server].windows[window].limit;
        let amount = self.servers[server]
            .takes
            .of(limit.kind)
            .saturating_mul(self.lump);
        let left = limit.limit.saturating_sub(self.windows[server][window].1);
        let room = left.checked_div(amount)?;
        Some(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// Goes on to the next time at which anything may start. Whether there is one.
    fn advance(&mut self, target: usize) -> bool {
        let mut next = self.ends.peek().map(|Reverse((end, ..))| *end);
        let mut causes = Vec::new();
        for (index, server) in self
            .servers
            .iter()
            .enumerate()
            .filter(|(_, server)| server.slots > 0)
        {
            let mut cause = Cause::Slots;
            if server.cooldown > self.now {
                next = Some(next.map_or(server.cooldown, |next| next.min(server.cooldown)));
                cause = Cause::Cooldown;
            }
            for window in 0..server.windows.len() {
                if self.window_room(index, window) == Some(0)
                    && let Some((leaves, _)) = self.windows[index][window].0.front()
                {
                    next = Some(next.map_or(*leaves, |next| next.min(*leaves)));
                    // Slots that are taken, too, will be free before a window is.
                    if self.free[index] > 0 || cause == Cause::Slots {
                        cause = Cause::Limit(window);
                    }
                }
            }
            causes.push((index, cause));
        }
        let Some(next) = next else { return false };
        let next = next.max(self.now);
        if self.quota_left(target) == 0 {
            *self.held_up.entry((0, Cause::Quota)).or_default() += next - self.now;
            causes.clear();
        }
        for (server, cause) in causes {
            if self.work[target].servers.contains(&server) {
                *self.held_up.entry((server, cause)).or_default() += next - self.now;
            }
        }
        self.now = next;
        while let Some(Reverse((end, server, client))) = self.ends.peek().copied()
            && end <= next
        {
            self.ends.pop();
            self.free[server] += 1;
            if let Some(running) = client.and_then(|client| self.running.get_mut(&client)) {
                *running -= 1;
            }
        }
        for (used, sum) in self.windows.iter_mut().flatten() {
            while let Some((_, amount)) = used.pop_front_if(|(leaves, _)| *leaves <= next) {
                *sum = sum.saturating_sub(amount);
            }
        }
        true
    }

    /// The rest goes on as it went so far.
    fn extrapolate(&mut self, target: usize) {
        let done = self.work[target].jobs - self.left[target];
        let outlook = &mut self.outlook;
        let (Some(first), Some(end)) = (outlook.first_start, outlook.end) else {
            return;
        };
        let so_far = end.saturating_sub(first).as_secs_f64();
        let rest = so_far * self.left[target] as f64 / done.max(1) as f64;
        let rest = Duration::try_from_secs_f64(rest).unwrap_or(Duration::MAX);
        outlook.last_start = outlook.last_start.map(|last| last.saturating_add(rest));
        outlook.end = outlook.end.map(|end| end.saturating_add(rest));
        let scale = |jobs: &u64| {
            let all =
                u128::from(*jobs) * u128::from(self.work[target].jobs) / u128::from(done.max(1));
            u64::try_from(all).unwrap_or(u64::MAX)
        };
        outlook.by_server = outlook.by_server.iter().map(scale).collect();
    }
}

/// How many jobs to take together.
fn lump(servers: &[Server], work: &[Work], detail: u64) -> u64 {
    let jobs: u64 = work.iter().map(|work| work.jobs).sum();
    let slots: u64 = servers.iter().map(|server| u64::from(server.slots)).sum();
    let mut lump = (jobs / detail.max(1)).min(jobs / (slots * ROUNDS).max(1));
    for server in servers {
        for window in &server.windows {
            let jobs = window
                .limit
                .limit
                .checked_div(server.takes.of(window.limit.kind));
            lump = lump.min(jobs.map_or(u64::MAX, |jobs| jobs / LUMPS_IN_WINDOW));
        }
    }
    lump.max(1)
}

#[cfg(test)]
mod tests;
