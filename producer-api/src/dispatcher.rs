//! The dispatcher: it binds waiting jobs to accounts and publishes them, woken by a submit, by a
//! freed slot, or by a time that has come.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    api::JobChange,
    broker::{Broker, BrokerError},
    clock,
    domain::{
        Account, AccountId, Lane, State, Time,
        route::{Refusal, Routing, Strategy},
    },
    live::{Live, Wake},
    message::Dispatch,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::App,
    decisions::Round,
    store::{Choice, Claim, Claimed, LaneDemand, Verdict},
};

/// Batches that may be on their way to the broker while the next one is claimed.
const IN_FLIGHT_BATCHES: usize = 4;

/// How long to rest when the database or the broker does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// Batches on their way to the broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Publishing {
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Default for Publishing {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(IN_FLIGHT_BATCHES)),
            tasks: TaskTracker::new(),
        }
    }
}

impl Publishing {
    /// Room for a batch now, if there is any.
    pub(crate) fn try_room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    /// Publishes attempts that are bound, and keeps `room` until that is done.
    pub(crate) async fn publish(
        &self,
        app: &Arc<App>,
        claimed: Claimed,
        room: OwnedSemaphorePermit,
    ) {
        // In this process it takes less than the task would.
        if matches!(app.broker, Broker::InProcess(_)) {
            return publish(app, claimed.dispatches).await;
        }
        let app = app.clone();
        self.tasks.spawn(async move {
            let homes = new_homes(&claimed);
            tokio::join!(tell_homes(&app, homes), publish(&app, claimed.dispatches));
            drop(room);
        });
    }

    /// Waits until all is published.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The lanes that may have jobs waiting, and the bell of the dispatcher; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lanes: Mutex<BTreeSet<Lane>>,
    bell: Notify,
}

impl Backlog {
    fn lanes(&self) -> std::sync::MutexGuard<'_, BTreeSet<Lane>> {
        self.inner
            .lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether jobs are known to wait in any of these lanes.
    pub(crate) fn waits_in(&self, lanes: &[LaneDemand]) -> bool {
        let waiting = self.lanes();
        !waiting.is_empty() && lanes.iter().any(|demand| waiting.contains(&demand.lane))
    }

    /// A job waits in this lane; [`Backlog::wake`] follows when all are added.
    pub fn add(&self, lane: Lane) {
        self.lanes().insert(lane);
    }

    /// Jobs wait in the lanes with these keys.
    pub fn add_keys<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        for key in keys {
            match Lane::parse(key) {
                Ok(lane) => self.add(lane),
                Err(error) => tracing::error!(%error, "a job waits in a lane that nobody can read"),
            }
        }
    }

    /// Something has changed: look again.
    pub fn wake(&self) {
        self.inner.bell.notify_one();
    }

    fn take(&self) -> Vec<Lane> {
        std::mem::take(&mut *self.lanes()).into_iter().collect()
    }
}

/// Dispatches until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let poll = app.config.dispatch.poll.0;
    let mut scan_due = Time::EPOCH;
    loop {
        let now = clock::now();
        if now >= scan_due {
            scan(&app, now).await;
            scan_due = now + poll;
        }
        let pass = match app.broker.ready().await {
            Ok(()) => pass(&app).await,
            // Nothing is bound that cannot be sent.
            Err(error) => {
                tracing::debug!(%error, "dispatching waits for the broker");
                Pass {
                    rest: PAUSE,
                    ..Pass::default()
                }
            }
        };
        if pass.again {
            if shutdown.is_cancelled() {
                break;
            }
            continue;
        }
        let rest = pass
            .rest
            .min(scan_due.since(clock::now()))
            .max(Duration::from_millis(1));
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = app.backlog.inner.bell.notified() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// Lets times come, and finds lanes that nobody rang for.
async fn scan(app: &App, now: Time) {
    match app.store.sweep(now).await {
        Ok(swept) => {
            app.backlog
                .add_keys(swept.ready_lanes.iter().map(String::as_str));
            app.ended(
                swept
                    .expired
                    .iter()
                    .map(|job| (*job, sluice_shared::domain::State::Expired)),
            );
        }
        Err(error) => tracing::warn!(%error, "the backlog could not be swept"),
    }
    match app.store.fall_back(now).await {
        Ok(lanes) => app.backlog.add_keys(lanes.iter().map(String::as_str)),
        Err(error) => tracing::warn!(%error, "jobs could not fall back"),
    }
    match app.store.waiting_lanes().await {
        Ok(keys) => app.backlog.add_keys(keys.iter().map(String::as_str)),
        Err(error) => tracing::warn!(%error, "the backlog could not be looked at"),
    }
}

/// What one pass found.
#[derive(Debug)]
struct Pass {
    /// Jobs were bound and more may wait: go on at once.
    again: bool,
    /// Otherwise, the longest to rest without a bell.
    rest: Duration,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            again: false,
            rest: Duration::MAX,
        }
    }
}

/// What a claim is made of in this process.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Accounts with a live worker.
    accounts: Vec<Account>,
    /// Accounts without.
    unserved: Vec<Account>,
    routing: Arc<Routing>,
    speeds: HashMap<AccountId, Duration>,
}

impl Ground {
    pub(crate) fn survey(app: &App) -> Self {
        let (accounts, unserved) = app
            .roster
            .accounts()
            .iter()
            .cloned()
            .partition(|account| app.workers.may_serve(&account.id));
        let routing = app.routes.routing();
        let speeds = if routing.uses(Strategy::ResponseTime) {
            app.routes.speeds()
        } else {
            HashMap::new()
        };
        Self {
            accounts,
            unserved,
            routing,
            speeds,
        }
    }

    pub(crate) fn claim<'a>(&'a self, lanes: &'a [LaneDemand], most: usize) -> Claim<'a> {
        Claim {
            lanes,
            accounts: &self.accounts,
            routing: &self.routing,
            speeds: &self.speeds,
            most,
        }
    }

    /// Notes how the dispatches came about, for those who ask later, and tells those who watch.
    pub(crate) fn note(&self, app: &App, lanes: &[LaneDemand], claimed: &mut Claimed, now: Time) {
        if claimed.dispatches.is_empty() {
            return;
        }
        app.feed
            .tell(|| claimed.dispatches.iter().map(dispatched).collect());
        let round = decided(lanes, claimed, &self.unserved, now);
        let attempts = claimed.dispatches.iter();
        app.decisions.note(
            round,
            attempts
                .map(|dispatch| (dispatch.job, dispatch.attempt))
                .zip(claimed.choices.iter().copied()),
        );
    }
}

async fn pass(app: &Arc<App>) -> Pass {
    let Ok(room) = app.publishing.room.clone().acquire_owned().await else {
        return Pass::default();
    };
    let lanes: Vec<LaneDemand> = app
        .backlog
        .take()
        .into_iter()
        .map(|lane| LaneDemand {
            key: lane.key(),
            lane,
        })
        .collect();
    if lanes.is_empty() {
        return Pass::default();
    }
    let ground = Ground::survey(app);
    let claim = ground.claim(&lanes, app.config.dispatch.batch);
    let now = clock::now();
    let mut claimed = match app.store.claim(&claim, app.routes.cursor(), now).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::warn!(%error, "jobs could not be claimed");
            lanes
                .into_iter()
                .for_each(|demand| app.backlog.add(demand.lane));
            return Pass {
                rest: PAUSE,
                ..Pass::default()
            };
        }
    };
    ground.note(app, &lanes, &mut claimed, now);
    for (demand, waiting) in lanes.into_iter().zip(&claimed.waiting) {
        if *waiting {
            app.backlog.add(demand.lane);
        }
    }
    let again = !claimed.dispatches.is_empty() && claimed.waiting.contains(&true);
    let rest = claimed
        .next_change
        .map_or(Duration::MAX, |until| until.since(now));
    if !claimed.dispatches.is_empty() {
        app.publishing.publish(app, claimed, room).await;
    }
    Pass { again, rest }
}

/// What there was to choose from, for those who ask later.
fn decided(lanes: &[LaneDemand], claimed: &mut Claimed, unserved: &[Account], now: Time) -> Round {
    let mut round = Round {
        at: now,
        seats: std::mem::take(&mut claimed.seats),
        refused: std::mem::take(&mut claimed.refused),
        ..Round::default()
    };
    let unserved = unserved.iter();
    round
        .refused
        .extend(unserved.map(|account| (account.id.clone(), Refusal::NoWorker)));
    for Choice { lane, .. } in &claimed.choices {
        round.lanes.entry(*lane).or_insert_with(|| {
            let seats = std::mem::take(&mut claimed.lanes[*lane]);
            (lanes[*lane].lane.clone(), seats)
        });
    }
    round
}

/// The sessions that now prefer another account than before, or one for the first time.
fn new_homes(claimed: &Claimed) -> Vec<(String, AccountId)> {
    let bound = claimed.dispatches.iter().zip(&claimed.choices);
    bound
        .filter(|(_, choice)| !choice.by_session)
        .filter_map(|(dispatch, _)| Some((dispatch.session.clone()?, dispatch.account.clone())))
        .collect()
}

/// Tells other API processes where sessions are at home.
async fn tell_homes(app: &App, sessions: Vec<(String, AccountId)>) {
    if sessions.is_empty() || !matches!(app.live, Live::Redis(_)) {
        return;
    }
    if let Err(error) = app.live.wake(&Wake::Homes { sessions }).await {
        tracing::debug!(%error, "where sessions are at home could not be told");
    }
}

fn dispatched(attempt: &Dispatch) -> JobChange {
    JobChange {
        job: attempt.job,
        state: State::Dispatched,
        attempt: Some(attempt.attempt),
        account: Some(attempt.account.clone()),
    }
}

/// Publishes bound attempts. One that surely was not sent goes back to the backlog; one of which
/// it is unknown stays, and the reaper finds out.
async fn publish(app: &App, attempts: Vec<Dispatch>) {
    metrics::counter!("sluice_attempts_dispatched_total").increment(attempts.len() as u64);
    let results = app.broker.dispatch(&attempts).await;
    let mut unpublished = Vec::new();
    for (attempt, result) in attempts.iter().zip(results) {
        match result {
            Ok(()) => {}
            Err(BrokerError::NotConfirmed(reason)) => {
                tracing::debug!(job = %attempt.job, reason, "whether it was published is unknown");
            }
            Err(error) => {
                if matches!(error, BrokerError::Unroutable(_))
                    && let Err(error) = app.broker.declare(&attempt.account).await
                {
                    tracing::warn!(account = %attempt.account, %error, "its queue is missing");
                }
                unpublished.push(Verdict::Unpublished {
                    job: attempt.job,
                    attempt: attempt.attempt,
                });
            }
        }
    }
    if !unpublished.is_empty() {
        app.settle(&unpublished).await;
    }
}
