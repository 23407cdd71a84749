//! The server roles, put together out of the two role crates. What differs between the embedded
//! and the distributed mode is decided here and nowhere else.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::SecretString;
use sluice_consumer_worker::Worker;
use sluice_producer_api::{
    app::{Parts, serve},
    auth::{first_key, sign_in_link},
    http::has_dashboard,
    store::{Store, StoreError},
};
use sluice_shared::{
    broker::Broker,
    config::{AccountConfig, Config, Provider, Simulated},
    domain::AccountId,
    live::Live,
    seal::MasterKey,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::home::Home;

/// How often a start waits for a database that is not there yet.
const RETRY: Duration = Duration::from_secs(1);

/// The account that `up` starts with when there is none: it makes its answers up.
pub const TRIAL_ACCOUNT: &str = "demo";

/// The address of the API, taken before anything else is started.
///
/// # Errors
/// When it is taken; the message says how to choose another.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => anyhow::bail!(
            "another process listens on {address}; stop it, or choose another address with \
             --listen ADDR:PORT"
        ),
        Err(error) => Err(error).with_context(|| {
            format!("{address} cannot be listened on; choose another with --listen ADDR:PORT")
        }),
    }
}

/// Adds the trial account when the configuration has no account at all. Gives its name if so.
///
/// # Errors
/// Never, as long as its name is one.
pub fn add_trial_account(config: &mut Config) -> anyhow::Result<Option<AccountId>> {
    if !config.accounts.is_empty() {
        return Ok(None);
    }
    let account = AccountConfig {
        models: Vec::new(),
        default_model: None,
        tags: Vec::new(),
        max_concurrency: 64,
        weight: 1,
        limits: Vec::new(),
        provider: Provider::Simulated(Simulated::default()),
    };
    let id: AccountId = TRIAL_ACCOUNT.parse()?;
    config.accounts.insert(id.clone(), account);
    Ok(Some(id))
}

/// The embedded mode: everything in one process, the data in one folder.
#[derive(Debug)]
pub struct Embedded {
    config: Config,
    home: Home,
    store: Store,
    master_key: MasterKey,
    trial: Option<AccountId>,
    /// The first admin key, when it was made just now: to be shown once.
    pub first_key: Option<SecretString>,
    /// The token of a link that signs in to the dashboard once; `None` when there is no dashboard
    /// in this binary, or no admin key in the folder.
    pub link: Option<String>,
}

impl Embedded {
    /// Opens the data folder, which must be locked, and makes the first admin key and the master
    /// key. When there is no account at all, a trial one is added.
    ///
    /// # Errors
    /// When the database or a key cannot be opened or made.
    pub async fn open(mut config: Config, home: &Home) -> anyhow::Result<Self> {
        let master_key = MasterKey::find_or_make(home.path())?;
        let path = home.database()?;
        let store = Store::sqlite(&path)
            .await
            .with_context(|| path.display().to_string())?;
        let first_key = first_key(&store, home.path()).await?;
        let link = if has_dashboard() {
            sign_in_link(&store, home.path()).await?
        } else {
            None
        };
        let made_at_run_time = store.accounts().await?;
        let made_at_run_time = made_at_run_time.iter().any(|row| row.definition.is_some());
        let trial = if made_at_run_time {
            None
        } else {
            add_trial_account(&mut config)?
        };
        Ok(Self {
            config,
            home: home.clone(),
            store,
            master_key,
            trial,
            first_key,
            link,
        })
    }

    /// The configuration, with the trial account if there is one.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether there is only a made-up account, to try things out.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Runs the API and a worker until `shutdown`. The worker ends first: what it still sends is
    /// settled by the API.
    ///
    /// # Errors
    /// When one of the two cannot go on; the other is stopped.
    pub async fn run(
        self,
        listener: TcpListener,
        metrics: PrometheusHandle,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self {
            config,
            home,
            store,
            master_key,
            trial,
            first_key: _,
            link: _,
        } = self;
        let broker = Broker::in_process();
        let live = Live::memory();
        let stop_worker = shutdown.child_token();
        let stop_api = CancellationToken::new();
        let worker = Worker {
            config: &config,
            home: home.path(),
            broker: broker.clone(),
            live: live.clone(),
            metrics: None,
            master_key: Some(master_key.clone()),
        };
        let worker = async {
            let ended = worker.run(stop_worker.clone()).await;
            stop_api.cancel();
            ended
        };
        let parts = Parts {
            config: config.clone(),
            store,
            broker: broker.clone(),
            live,
            metrics,
            master_key: Some(master_key),
            trial,
        };
        let api = async {
            let ended = Box::pin(serve(parts, listener, stop_api.clone())).await;
            stop_worker.cancel();
            ended
        };
        let (worker, api) = tokio::join!(Box::pin(worker), api);
        broker.close().await;
        worker?;
        api
    }
}

/// The API of the distributed mode, until `shutdown`.
///
/// # Errors
/// When the configuration cannot work or the API cannot go on.
pub async fn api(
    config: Config,
    home: &Home,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let master_key = MasterKey::find(home.path())?;
    let broker = Broker::connect(&config.rabbitmq, "sluice-api").await?;
    let live = Live::connect(&config.redis)?;
    let Some(store) = or_stopped(&shutdown, migrated(&config)).await.transpose()? else {
        return Ok(());
    };
    if first_key(&store, home.path()).await?.is_some() {
        tracing::info!(file = %home.admin_key_file().display(), "the first admin key was made");
    }
    // Only now: who connects earlier is better refused than kept waiting.
    let listener = listen(config.api.listen).await?;
    tracing::info!(address = %listener.local_addr()?, "the API listens");
    let parts = Parts {
        config,
        store,
        broker: broker.clone(),
        live,
        metrics,
        master_key,
        trial: None,
    };
    let ended = Box::pin(serve(parts, listener, shutdown)).await;
    broker.close().await;
    ended
}

/// A worker of the distributed mode, until `shutdown`.
///
/// # Errors
/// When the configuration cannot work or the worker cannot go on.
pub async fn worker(
    config: &Config,
    home: &Home,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let master_key = MasterKey::find(home.path())?;
    let broker = Broker::connect(&config.rabbitmq, "sluice-worker").await?;
    let live = Live::connect(&config.redis)?;
    let worker = Worker {
        config,
        home: home.path(),
        broker: broker.clone(),
        live,
        metrics: Some(metrics),
        master_key,
    };
    let ended = Box::pin(worker.run(shutdown)).await;
    broker.close().await;
    Ok(ended?)
}

/// Brings the distributed database up to date, and makes the first admin key when there is none.
///
/// # Errors
/// When the database cannot be reached or a migration fails.
pub async fn migrate(config: &Config, home: &Home) -> anyhow::Result<Option<SecretString>> {
    let store = Store::postgres(&config.postgres).await?;
    store.migrate().await?;
    Ok(first_key(&store, home.path()).await?)
}

/// The distributed database, once it is there and up to date. Waits for both: after a power cut
/// the API may well be back before the database is.
async fn migrated(config: &Config) -> anyhow::Result<Store> {
    let mut said = String::new();
    loop {
        let trouble = match Store::postgres(&config.postgres).await {
            Ok(store) => match store.is_migrated().await {
                Ok(true) => return Ok(store),
                Ok(false) => "it is not up to date: run `sluice migrate`".to_owned(),
                Err(StoreError::Unavailable(trouble)) => trouble,
                Err(error) => return Err(error.into()),
            },
            Err(StoreError::Unavailable(trouble)) => trouble,
            Err(error) => return Err(error.into()),
        };
        if trouble != said {
            tracing::warn!(trouble, "waiting for the database");
            said = trouble;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn or_stopped<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        done = work => Some(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_account_comes_only_when_there_is_no_other() {
        let mut config = Config::from_toml("").unwrap();
        assert!(add_trial_account(&mut config).unwrap().is_some());
        assert_eq!(
            config
                .accounts
                .keys()
                .map(|id| id.as_str())
                .collect::<Vec<_>>(),
            ["demo"]
        );
        assert!(add_trial_account(&mut config).unwrap().is_none());
        let mut config = Config::from_toml("[accounts.a]\nprovider = \"simulated\"").unwrap();
        assert!(add_trial_account(&mut config).unwrap().is_none());
        assert_eq!(config.accounts.len(), 1);
    }

    #[test]
    fn the_example_shows_an_account_of_each_provider() {
        let example = include_str!("../examples/sluice.toml");
        let as_it_stands = Config::from_toml(example).unwrap();
        assert_eq!(as_it_stands.accounts.len(), 1);
        let is_setting = |line: &&str| !line.starts_with("# ") && *line != "#";
        let all: String = example
            .lines()
            .filter(is_setting)
            .map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line)))
            .collect();
        let config = Config::from_toml(&all).unwrap();
        for name in Provider::NAMES {
            let has = config
                .accounts
                .values()
                .any(|account| account.provider.name() == name);
            assert!(has, "{name}");
        }
    }

    #[tokio::test]
    async fn a_taken_port_names_the_way_out() {
        let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address).await.unwrap_err().to_string();
        assert!(
            error.contains("--listen") && error.contains(&address.to_string()),
            "{error}"
        );
    }
}
