//! A worker from its start to its orderly end.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use sluice_shared::{broker::Broker, config::Config, live::Live};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    account::{Account, describe_metrics},
    attempt::{Cause, STOP_GRACE},
    consume, control,
    engine::Engine,
    health, presence,
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
}

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No account at all.
    #[error(
        "this worker has no account to serve: add one to the configuration, or mend what was \
         logged above"
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
        let accounts = self.accounts()?;
        let health = self.listener().await?;
        let settings = self.config.worker.clone();
        let name = match settings.id.as_str() {
            "" => format!("{}-{}", presence::host(), std::process::id()),
            id => id.to_owned(),
        };
        let (engine, publisher) = Engine::new(name, settings, accounts, self.broker, self.live);
        let engine = Arc::new(engine);

        let mut crew = JoinSet::new();
        crew.spawn(watch::run(engine.clone()));
        crew.spawn(control::run(engine.clone()));
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
        let mut shift = Shift::begin(engine.clone(), publisher);
        tracing::info!(
            worker = engine.name,
            accounts = engine.accounts.len(),
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

    /// The accounts that it can serve; says why of those that it cannot.
    fn accounts(&self) -> Result<Vec<Arc<Account>>, WorkerError> {
        let config = self.config;
        let wanted = &config.worker.accounts;
        let mut accounts = Vec::new();
        for (id, account) in &config.accounts {
            if !wanted.iter().any(|name| name == "*" || name == id.as_str()) {
                continue;
            }
            let kind = account.provider.name();
            match Provider::build(id, account, self.home, config.worker.max_output_bytes) {
                Ok(provider) => {
                    let concurrency = u16::try_from(account.max_concurrency).unwrap_or(u16::MAX);
                    let account = Account::new(id.clone(), kind, provider, concurrency);
                    accounts.push(Arc::new(account));
                }
                Err(error) => {
                    tracing::error!(account = %id, %error, "this account is not served");
                }
            }
        }
        if accounts.is_empty() {
            Err(WorkerError::NothingToServe)
        } else {
            Ok(accounts)
        }
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
    consumers: JoinSet<bool>,
    publishing: JoinSet<()>,
    drain: CancellationToken,
    flush: CancellationToken,
    /// Some consumer was open.
    served: bool,
}

impl Shift {
    fn begin(engine: Arc<Engine>, publisher: Publisher) -> Self {
        let drain = CancellationToken::new();
        let flush = CancellationToken::new();
        let mut publishing = JoinSet::new();
        publishing.spawn(publisher.run(flush.clone()));
        let mut consumers = JoinSet::new();
        for account in &engine.accounts {
            consumers.spawn(consume::run(engine.clone(), account.clone(), drain.clone()));
        }
        Self {
            engine,
            consumers,
            publishing,
            drain,
            flush,
            served: false,
        }
    }

    /// Waits for the end of the last consumer: an error when the broker refused every one.
    async fn ended(&mut self) -> Result<(), WorkerError> {
        loop {
            tokio::select! {
                ended = self.consumers.join_next() => match ended {
                    None if self.served => return Ok(()),
                    None => return Err(WorkerError::NothingToServe),
                    Some(Ok(served)) => self.served |= served,
                    Some(Err(error)) => return Err(WorkerError::Crew(error)),
                },
                Some(Err(error)) = self.publishing.join_next() => {
                    return Err(WorkerError::Crew(error));
                }
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
