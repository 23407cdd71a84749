//! A worker from its start to its orderly end.

use std::{collections::HashMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use sluice_shared::{
    broker::Broker, config::Config, domain::AccountId, live::Live, seal::MasterKey,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    account::{Account, describe_metrics},
    attempt::{Cause, STOP_GRACE},
    consume::{self, Ended},
    control,
    engine::Engine,
    health,
    learn::{Change, Learner},
    presence,
    provider::Provider,
    replies::Publisher,
    watch,
};

/// How long the last replies may take when the worker stops. What is not confirmed by then is
/// delivered to another worker, which says so.
const FLUSH: Duration = Duration::from_secs(10);

/// How long the rest may take at the end.
const GOODBYE: Duration = Duration::from_secs(3);

/// How often the metrics are tidied, which a scrape does as well.
const UPKEEP: Duration = Duration::from_secs(5);

/// A worker that is to be run. Several can run in one process, under different names.
#[derive(Debug)]
pub struct Worker<'a> {
    /// What it is to do.
    pub config: &'a Config,
    /// The data folder; accounts keep their state there.
    pub home: &'a Path,
    /// Where jobs come from and replies go to.
    pub broker: Broker,
    /// Where text and heartbeats go to.
    pub live: Live,
    /// This process's metrics, to be shown at `worker.health_listen`.
    pub metrics: Option<PrometheusHandle>,
    /// What opens the accounts that are made at run time; without it none of them is served.
    pub master_key: Option<MasterKey>,
}

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No account at all.
    #[error(
        "this worker has no account to serve: add one to the configuration, mend what was logged \
         above, or give it the API's SLUICE_MASTER_KEY to serve accounts that are made at run time"
    )]
    NothingToServe,
    /// The health server's address cannot be had.
    #[error("worker.health_listen: {address} cannot be listened on: {source}")]
    Health {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// One of its tasks ended that never should.
    #[error("a part of the worker ended unexpectedly: {0}")]
    Crew(JoinError),
}

/// Runs a worker until `shutdown` is cancelled and its orderly end is over.
///
/// # Errors
/// When it cannot serve a single account, or its health server's address cannot be had.
pub async fn run(
    config: &Config,
    home: &Path,
    broker: Broker,
    live: Live,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    Ok(Worker {
        config,
        home,
        broker,
        live,
        metrics: None,
        master_key: None,
    }
    .run(shutdown)
    .await?)
}

impl Worker<'_> {
    /// Runs it until `shutdown` is cancelled: then nothing new is begun, what runs may finish
    /// within `worker.shutdown_grace`, and the rest is stopped and handed back. Dropped instead,
    /// it dies as its process would: what it held is delivered to others.
    ///
    /// # Errors
    /// When it cannot serve a single account, or its health server's address cannot be had.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        describe_metrics();
        let (accounts, troubles) = self.accounts();
        let learns = self.master_key.is_some();
        if accounts.is_empty() && !learns {
            return Err(WorkerError::NothingToServe);
        }
        let health = self.listener().await?;
        let settings = self.config.worker.clone();
        let serves_all = learns && settings.accounts.iter().any(|name| name == "*");
        let name = match settings.id.as_str() {
            "" => format!("{}-{}", presence::host(), std::process::id()),
            id => id.to_owned(),
        };
        let (engine, publisher) = Engine::new(name, settings, accounts, self.broker, self.live);
        for (id, trouble) in troubles {
            engine.services.trouble(&id, trouble);
        }
        let engine = Arc::new(Engine {
            serves_all,
            ..engine
        });
        let (changes, changed) = mpsc::unbounded_channel();
        let learner = Learner::new(
            engine.clone(),
            self.master_key,
            self.home.to_owned(),
            self.config.accounts.keys().cloned().collect(),
            changes,
        );

        let mut crew = JoinSet::new();
        crew.spawn(watch::run(engine.clone()));
        crew.spawn(control::run(engine.clone()));
        crew.spawn(learner.run());
        if let Some(metrics) = self.metrics.clone() {
            crew.spawn(keep_up(metrics));
        }
        // These have something left to do at the very end.
        let stop = CancellationToken::new();
        let mut front = JoinSet::new();
        front.spawn(presence::run(engine.clone(), stop.clone()));
        if let Some(listener) = health {
            front.spawn(health::serve(
                listener,
                engine.clone(),
                self.metrics,
                stop.clone(),
            ));
        }
        let mut shift = Shift::begin(engine.clone(), publisher, changed, learns);
        tracing::info!(
            worker = engine.name,
            accounts = engine.services.all().len(),
            "worker started"
        );

        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = shift.ended() => ended,
            error = failure(&mut crew) => Err(error),
            error = failure(&mut front) => Err(error),
        };
        shift.end().await;
        stop.cancel();
        drop(timeout(GOODBYE, all(&mut front)).await);
        tracing::info!(worker = engine.name, "worker stopped");
        result
    }

    /// The accounts of the configuration that it can serve, and why it cannot serve the others.
    fn accounts(&self) -> (Vec<Arc<Account>>, Vec<(AccountId, String)>) {
        let config = self.config;
        let wanted = &config.worker.accounts;
        let (mut accounts, mut troubles) = (Vec::new(), Vec::new());
        for (id, account) in &config.accounts {
            if !wanted.iter().any(|name| name == "*" || name == id.as_str()) {
                continue;
            }
            match Provider::build(id, account, self.home, config.worker.max_output_bytes) {
                Ok(provider) => {
                    let account = Account::new(id.clone(), account, provider);
                    accounts.push(Arc::new(account));
                }
                Err(error) => {
                    tracing::error!(account = %id, %error, "this account is not served");
                    troubles.push((id.clone(), error.to_string()));
                }
            }
        }
        (accounts, troubles)
    }

    async fn listener(&self) -> Result<Option<TcpListener>, WorkerError> {
        let Ok(address) = self.config.worker.health_listen.parse::<SocketAddr>() else {
            // Empty: the configuration refuses what is no address.
            return Ok(None);
        };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| WorkerError::Health { address, source })?;
        tracing::info!(%address, "the worker's health server listens");
        Ok(Some(listener))
    }
}

/// The consumers and what sends their replies.
struct Shift {
    engine: Arc<Engine>,
    consumers: JoinSet<Ended>,
    /// What ends the consumption of each account's queue.
    leave: HashMap<AccountId, CancellationToken>,
    changes: mpsc::UnboundedReceiver<Change>,
    /// Accounts may still come.
    learns: bool,
    publishing: JoinSet<()>,
    drain: CancellationToken,
    flush: CancellationToken,
    /// Some consumer was open.
    served: bool,
    /// The broker was closed.
    closed: bool,
}

impl Shift {
    fn begin(
        engine: Arc<Engine>,
        publisher: Publisher,
        changes: mpsc::UnboundedReceiver<Change>,
        learns: bool,
    ) -> Self {
        let flush = CancellationToken::new();
        let mut publishing = JoinSet::new();
        publishing.spawn(publisher.run(flush.clone()));
        let mut shift = Self {
            engine,
            consumers: JoinSet::new(),
            leave: HashMap::new(),
            changes,
            learns,
            publishing,
            drain: CancellationToken::new(),
            flush,
            served: false,
            closed: false,
        };
        for account in shift.engine.services.all() {
            shift.serve(account);
        }
        shift
    }

    /// Consumes the account's queue. The consumer of one of the same name that was there before
    /// ends only then, so that there is no gap.
    fn serve(&mut self, account: Arc<Account>) {
        let leave = self.drain.child_token();
        let before = self.leave.insert(account.id.clone(), leave.clone());
        let consumer = consume::run(self.engine.clone(), account, leave);
        self.consumers.spawn(consumer);
        if let Some(before) = before {
            before.cancel();
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Serve(account) => self.serve(account),
            Change::Leave(id) => {
                if let Some(leave) = self.leave.remove(&id) {
                    leave.cancel();
                }
            }
        }
    }

    /// Serves until the last consumer has ended and none can come: an error when the broker
    /// refused every one.
    async fn ended(&mut self) -> Result<(), WorkerError> {
        loop {
            if self.consumers.is_empty() && (self.closed || !self.learns) {
                return if self.served {
                    Ok(())
                } else {
                    Err(WorkerError::NothingToServe)
                };
            }
            tokio::select! {
                Some(ended) = self.consumers.join_next() => match ended {
                    Ok(ended) => {
                        self.served |= ended != Ended::Refused;
                        self.closed |= ended == Ended::Closed;
                    }
                    Err(error) => return Err(WorkerError::Crew(error)),
                },
                Some(change) = self.changes.recv() => self.change(change),
                Some(Err(error)) = self.publishing.join_next() => {
                    return Err(WorkerError::Crew(error));
                }
                // Nothing of it can happen any more: the end of the worker is waited for.
                else => std::future::pending().await,
            }
        }
    }

    /// Begins nothing new, lets what runs finish, stops the rest, and sends the last replies.
    async fn end(mut self) {
        let engine = &self.engine;
        engine.hands.drain();
        self.drain.cancel();
        let grace = engine.settings.shutdown_grace.0;
        if timeout(grace, all(&mut self.consumers)).await.is_err() {
            tracing::info!(
                in_flight = engine.hands.count(),
                "stopping what still runs after its grace"
            );
            engine.hands.stop_all(Cause::Shutdown);
            drop(timeout(STOP_GRACE * 2, all(&mut self.consumers)).await);
            self.consumers.shutdown().await;
        }
        self.flush.cancel();
        if timeout(FLUSH, all(&mut self.publishing)).await.is_err() {
            tracing::warn!(
                replies = engine.replies.pending(),
                "the last replies could not be sent; what they are about is delivered again"
            );
        }
        engine.hands.release();
    }
}

async fn all<T: 'static>(tasks: &mut JoinSet<T>) {
    while tasks.join_next().await.is_some() {}
}

/// Waits for a task that ends badly; one that ends well, as the control task does with the broker,
/// is no failure.
async fn failure(tasks: &mut JoinSet<()>) -> WorkerError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return WorkerError::Crew(error),
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

async fn keep_up(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        metrics.run_upkeep();
    }
}

#[cfg(test)]
mod tests;
