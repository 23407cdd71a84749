//! The API role as a whole: what its parts share, and how they start and stop.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use sluice_shared::{
    api::JobChange,
    broker::Broker,
    clock,
    config::Config,
    domain::{Account, AccountId, Egress, JobId, State},
    live::{Live, Wake},
    seal::MasterKey,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::Keys,
    batches::{self, Batches},
    cooling::{self, Cooling},
    decisions::Decisions,
    dependents::{self, Dependents},
    dispatcher::{self, Backlog, Publishing},
    feed::{Feed, Outbox},
    forecast::Measures,
    http, intake,
    pulse::Pulse,
    reaper,
    roster::{self, Roster},
    routes::Routes,
    schedules,
    store::{Store, StoreError, Verdict},
    submitter::{Groups, Submitter},
    waiters::Waiters,
    webhooks,
    workers::Workers,
};

/// What the parts of the API role share.
#[derive(Debug)]
pub struct App {
    /// Every setting.
    pub config: Config,
    /// The accounts.
    pub roster: Roster,
    /// What accounts made at run time are sealed with, if this process has it.
    pub master_key: Option<MasterKey>,
    /// The account that is there only to try things out.
    pub trial: Option<AccountId>,
    /// The truth plane.
    pub store: Store,
    /// The work plane.
    pub broker: Broker,
    /// The live plane.
    pub live: Live,
    /// The group commit.
    pub submitter: Submitter,
    /// The lanes with jobs waiting, and the dispatcher's bell.
    pub backlog: Backlog,
    /// Attempts on their way to the broker.
    pub publishing: Publishing,
    /// Which strategies are in force, and what they know.
    pub routes: Routes,
    /// What this process decided of late.
    pub decisions: Decisions,
    /// The bell of what is done about batches.
    pub batches: Batches,
    /// Jobs that have ended with others behind them.
    pub dependents: Dependents,
    /// Who waits for which job.
    pub waiters: Waiters,
    /// Which workers are there.
    pub workers: Workers,
    /// API keys.
    pub keys: Keys,
    /// How long jobs took lately.
    pub measures: Measures,
    /// State changes, for whoever watches.
    pub feed: Feed,
    /// What happened lately.
    pub pulse: Pulse,
    /// This process's metrics.
    pub metrics: PrometheusHandle,
    /// Cooldowns that workers and other accounts must hear of.
    pub cooling: Cooling,
    /// Where webhooks may go.
    pub egress: Egress,
    /// The bell of what sends webhooks.
    pub webhooks: webhooks::Bell,
    /// Ends that other API processes must hear of.
    ends: mpsc::UnboundedSender<Vec<JobId>>,
}

/// How long to rest before a settlement that failed is tried again; doubles up to 16 times it.
const RETRY: Duration = Duration::from_millis(100);

/// Ends told in one wake-up, at most.
const ENDS: usize = 1000;

impl App {
    /// Brings the accounts of the configuration into the truth plane, and takes all from there.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn take_accounts(&self) -> Result<(), StoreError> {
        let accounts: Vec<Account> = self
            .config
            .accounts
            .iter()
            .map(|(id, account)| account.account(id))
            .collect();
        self.store.sync_accounts(&accounts).await?;
        self.roster
            .refresh(&self.store, self.master_key.as_ref())
            .await?;
        Ok(())
    }

    /// Applies verdicts, and lets everyone know who waits for what they bring about. Whether the
    /// truth plane took them; it is logged when not.
    pub async fn settle(&self, verdicts: &[Verdict]) -> bool {
        if verdicts.is_empty() {
            return true;
        }
        match self
            .store
            .settle(verdicts, clock::now(), clock::chance)
            .await
        {
            Ok(settled) => {
                self.routes.learn(verdicts, clock::now());
                for (account, outcome) in &settled.attempts {
                    metrics::counter!(
                        "sluice_attempts_total", "account" => account.clone(), "outcome" => *outcome
                    )
                    .increment(1);
                }
                if settled.refused > 0 {
                    metrics::counter!("sluice_replies_refused_total")
                        .increment(settled.refused as u64);
                }
                self.backlog
                    .add_keys(settled.requeued.iter().map(String::as_str));
                self.pulse.settled(verdicts, clock::now());
                self.tell(settled.moved);
                self.waiters.answered(verdicts, &settled.ended);
                self.ended(settled.ended.into_iter());
                self.dependents.add(settled.parents);
                if !settled.batches.is_empty() {
                    self.batches.wake();
                }
                if settled.freed > 0 {
                    self.backlog.wake();
                }
                if settled.webhooks > 0 {
                    self.webhooks.ring();
                }
                self.cooling.tell(settled.cooling, verdicts);
                true
            }
            Err(error) => {
                tracing::warn!(%error, verdicts = verdicts.len(), "replies could not be settled");
                false
            }
        }
    }

    /// Applies verdicts, again and again until they are taken. Whether they were: only `shutdown`
    /// ends it otherwise.
    pub async fn settle_until(&self, verdicts: &[Verdict], shutdown: &CancellationToken) -> bool {
        let mut pause = RETRY;
        while !self.settle(verdicts).await {
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY * 16);
        }
        true
    }

    /// Tells whoever watches that these jobs have come into these states.
    pub fn tell(&self, jobs: Vec<(JobId, State)>) {
        self.feed.tell(|| {
            let change = |(job, state)| JobChange {
                job,
                state,
                attempt: None,
                account: None,
            };
            jobs.into_iter().map(change).collect()
        });
    }

    /// These jobs have reached a terminal state: counts them and wakes who waits for them.
    pub fn ended(&self, jobs: impl Iterator<Item = (JobId, State)>) {
        let jobs: Vec<(JobId, State)> = jobs.collect();
        let mut counts = [0_u64; State::ALL.len()];
        for (_, state) in &jobs {
            counts[*state as usize] += 1;
        }
        let ids: Vec<JobId> = jobs.iter().map(|(job, _)| *job).collect();
        self.tell(jobs);
        for (state, count) in State::ALL
            .into_iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
        {
            metrics::counter!("sluice_jobs_finished_total", "state" => state.as_str())
                .increment(count);
            self.pulse.ended(state, count, clock::now());
        }
        if ids.is_empty() {
            return;
        }
        self.waiters.ended(ids.iter().copied());
        if matches!(self.live, Live::Redis(_)) {
            drop(self.ends.send(ids));
        }
    }
}

/// Tells other API processes about ends, many in one message; a live plane that is away costs
/// them a look at the truth plane, no more.
async fn tell_ends(live: Live, mut ends: mpsc::UnboundedReceiver<Vec<JobId>>) {
    let mut batches = Vec::new();
    while ends.recv_many(&mut batches, ENDS).await > 0 {
        let jobs: Vec<JobId> = batches.drain(..).flatten().collect();
        for chunk in jobs.chunks(ENDS) {
            if let Err(error) = live
                .wake(&Wake::Ended {
                    jobs: chunk.to_vec(),
                })
                .await
            {
                tracing::debug!(%error, "ends could not be told");
            }
        }
    }
}

/// What an API process is made of.
#[derive(Debug)]
pub struct Parts {
    /// Every setting.
    pub config: Config,
    /// The truth plane, migrated.
    pub store: Store,
    /// The work plane.
    pub broker: Broker,
    /// The live plane.
    pub live: Live,
    /// This process's metrics.
    pub metrics: PrometheusHandle,
    /// What accounts made at run time are sealed with, if this process has it.
    pub master_key: Option<MasterKey>,
    /// The account that is there only to try things out.
    pub trial: Option<AccountId>,
}

/// Runs the API role on `listener` until `shutdown`.
///
/// # Errors
/// When the accounts cannot be brought into the truth plane, or the listener fails.
pub async fn serve(
    parts: Parts,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Assembled {
        app,
        groups,
        told,
        outbox,
        cooled,
    } = assemble(parts);
    let (store, live) = (app.store.clone(), app.live.clone());
    app.take_accounts().await?;
    if matches!(app.broker, Broker::InProcess(_)) {
        recover(&app).await?;
    }
    // Background loops end when the last request has been answered, not before: a submit that is
    // under way still needs its group commit.
    let loops = TaskTracker::new();
    let stop = CancellationToken::new();
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        loops.spawn(task);
    };
    spawn(Box::pin(groups.run(app.clone(), stop.clone())));
    spawn(Box::pin(tell_ends(live.clone(), told)));
    let roster = app.roster.clone();
    spawn(Box::pin(cooling::run(app.clone(), cooled, stop.clone())));
    spawn(Box::pin(app.waiters.clone().run(
        store.clone(),
        live.clone(),
        move || roster.wake(),
        stop.clone(),
    )));
    spawn(Box::pin(app.routes.clone().run(
        store.clone(),
        live.clone(),
        stop.clone(),
    )));
    spawn(Box::pin(roster::run(app.clone(), stop.clone())));
    spawn(Box::pin(app.feed.clone().run(
        live.clone(),
        outbox,
        stop.clone(),
    )));
    let backlog = app.backlog.clone();
    spawn(Box::pin(app.workers.clone().run(
        live,
        move || backlog.wake(),
        stop.clone(),
    )));
    spawn(Box::pin(declare_queues(app.clone(), stop.clone())));
    spawn(Box::pin(dispatcher::run(app.clone(), stop.clone())));
    spawn(Box::pin(intake::run(app.clone(), stop.clone())));
    spawn(Box::pin(intake::run_dead(app.clone(), stop.clone())));
    spawn(Box::pin(reaper::run(app.clone(), stop.clone())));
    spawn(Box::pin(webhooks::run(app.clone(), stop.clone())));
    spawn(Box::pin(batches::run(app.clone(), stop.clone())));
    spawn(Box::pin(dependents::run(app.clone(), stop.clone())));
    spawn(Box::pin(schedules::run(app.clone(), stop.clone())));
    let served = http::serve(app.clone(), listener, shutdown).await;
    stop.cancel();
    let publishing = app.publishing.clone();
    drop(app);
    loops.close();
    loops.wait().await;
    publishing.finish().await;
    served
}

/// The parts together, and what is to be run for them.
pub(crate) struct Assembled {
    pub(crate) app: Arc<App>,
    pub(crate) groups: Groups,
    /// Jobs that have ended.
    told: mpsc::UnboundedReceiver<Vec<JobId>>,
    outbox: Outbox,
    /// Accounts that cool.
    cooled: mpsc::UnboundedReceiver<cooling::News>,
}

/// Puts the parts together; nothing runs yet.
pub(crate) fn assemble(parts: Parts) -> Assembled {
    let Parts {
        config,
        store,
        broker,
        live,
        metrics,
        master_key,
        trial,
    } = parts;
    let (submitter, groups) = Submitter::new();
    let (ends, told) = mpsc::unbounded_channel();
    let (feed, outbox) = Feed::new();
    let (cooling, cooled) = Cooling::new();
    let app = App {
        roster: Roster::default(),
        master_key,
        trial,
        store,
        broker,
        live,
        submitter,
        backlog: Backlog::default(),
        publishing: Publishing::default(),
        routes: Routes::new(config.dispatch.strategy),
        decisions: Decisions::default(),
        batches: Batches::default(),
        dependents: Dependents::default(),
        waiters: Waiters::default(),
        workers: Workers::default(),
        keys: Keys::default(),
        measures: Measures::default(),
        feed,
        pulse: Pulse::default(),
        metrics,
        cooling,
        egress: config.webhooks.egress(),
        webhooks: webhooks::Bell::default(),
        ends,
        config,
    };
    Assembled {
        app: Arc::new(app),
        groups,
        told,
        outbox,
        cooled,
    }
}

/// In the embedded mode the work plane dies with its process: what was in flight is in nobody's
/// hands now, and that is certain.
async fn recover(app: &App) -> anyhow::Result<()> {
    loop {
        let now = clock::now();
        let attempts = app
            .store
            .in_flight(now + Duration::from_secs(86_400), 1000)
            .await?;
        if attempts.is_empty() {
            return Ok(());
        }
        tracing::info!(
            attempts = attempts.len(),
            "attempts of the last run are put back"
        );
        let verdicts: Vec<Verdict> = attempts
            .into_iter()
            .map(|attempt| Verdict::Lost {
                job: attempt.job,
                attempt: attempt.attempt,
                // A `started` on its way through the in-process broker died with it.
                began: true,
            })
            .collect();
        let settled = app.store.settle(&verdicts, now, clock::chance).await?;
        anyhow::ensure!(
            settled.refused == 0,
            "attempts of the last run cannot be put back"
        );
    }
}

/// Makes sure of the accounts' queues, as soon as the broker is there.
async fn declare_queues(app: Arc<App>, shutdown: CancellationToken) {
    for account in app.roster.accounts().iter() {
        while let Err(error) = app.broker.declare(&account.id).await {
            tracing::debug!(account = %account.id, %error, "its queue cannot be declared yet");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
    app.backlog.wake();
}

/// Where the first admin key lies.
#[must_use]
pub fn admin_key_file(home: &Path) -> std::path::PathBuf {
    home.join("admin.key")
}
