//! The services that the limit program and the distributed mode use, and what is left in them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lapin::{
    Connection, ConnectionProperties, ErrorKind,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbErr};
use tokio::time::sleep;
use url::Url;

use crate::deployment::{MAX_ACCOUNTS, account_names};

/// The database that a distributed Sluice gets, new for each start.
const DATABASE: &str = "sluice_bench";
/// The queue that every Sluice on a broker consumes.
const REPLIES: &str = "sluice.replies";
/// How often and how many times it is looked whether nobody consumes it.
const UNUSED_POLL: Duration = Duration::from_millis(50);
const UNUSED_POLLS: usize = 100;

/// Where the services are. They must be private to the benchmark: see `deploy/dev/bench.sh`.
#[derive(Args, Clone)]
pub(crate) struct ServiceUrls {
    /// Postgres; its user must be allowed to create databases.
    #[arg(long, env = "SLUICE_POSTGRES__URL", hide_env_values = true)]
    postgres: Option<Url>,
    /// RabbitMQ.
    #[arg(long, env = "SLUICE_RABBITMQ__URL", hide_env_values = true)]
    rabbitmq: Option<Url>,
    /// Redis.
    #[arg(long, env = "SLUICE_REDIS__URL", hide_env_values = true)]
    redis: Option<Url>,
}

impl ServiceUrls {
    /// All three, for what cannot do without.
    pub(crate) fn required(&self) -> Result<Services> {
        match (&self.postgres, &self.rabbitmq, &self.redis) {
            (Some(postgres), Some(rabbitmq), Some(redis)) => Ok(Services {
                postgres: postgres.clone(),
                rabbitmq: rabbitmq.clone(),
                redis: redis.clone(),
            }),
            _ => bail!(
                "set SLUICE_POSTGRES__URL, SLUICE_RABBITMQ__URL and SLUICE_REDIS__URL to services \
                 that nothing else uses, or run deploy/dev/bench.sh, which starts its own"
            ),
        }
    }
}

/// Where the services are.
#[derive(Clone)]
pub(crate) struct Services {
    /// Postgres.
    pub(crate) postgres: Url,
    /// RabbitMQ.
    pub(crate) rabbitmq: Url,
    /// Redis.
    pub(crate) redis: Url,
}

impl Services {
    /// Removes what a Sluice of ours has left, its database and its accounts' queues, and refuses
    /// services that another Sluice uses: the two would take each other's replies.
    pub(crate) async fn clean(&self) -> Result<()> {
        let broker = self.connect_broker().await?;
        let mut patience = UNUSED_POLLS;
        while is_in_use(&broker).await? {
            // The broker may not have noticed yet that ours is gone.
            ensure!(
                patience > 0,
                "another Sluice uses this RabbitMQ; the benchmark needs services of its own"
            );
            patience -= 1;
            sleep(UNUSED_POLL).await;
        }
        let channel = broker.create_channel().await?;
        for account in account_names(MAX_ACCOUNTS) {
            let queue = format!("sluice.jobs.{account}");
            channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await?;
        }
        broker.close(200, "done".into()).await?;
        let postgres = self.connect_postgres().await?;
        postgres
            .execute_unprepared(&format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
            .await?;
        Ok(postgres.close().await?)
    }

    /// Makes the database of a distributed Sluice and returns its URL.
    pub(crate) async fn create_database(&self) -> Result<Url> {
        let postgres = self.connect_postgres().await?;
        postgres
            .execute_unprepared(&format!("CREATE DATABASE {DATABASE}"))
            .await?;
        postgres.close().await?;
        let mut url = self.postgres.clone();
        url.set_path(DATABASE);
        Ok(url)
    }

    /// Brings Postgres's disk up to date, so that none pays for what another has written. A user
    /// who may not do that measures without.
    pub(crate) async fn settle(&self) -> Result<()> {
        let postgres = self.connect_postgres().await?;
        match postgres.execute_unprepared("CHECKPOINT").await {
            Ok(_) | Err(DbErr::Exec(_)) => Ok(postgres.close().await?),
            Err(error) => Err(error.into()),
        }
    }

    async fn connect_postgres(&self) -> Result<DatabaseConnection> {
        let mut options = ConnectOptions::new(self.postgres.as_str());
        options
            .max_connections(1)
            .connect_timeout(Duration::from_secs(10))
            .acquire_timeout(Duration::from_secs(10))
            .sqlx_logging(false);
        Database::connect(options)
            .await
            .context("Postgres cannot be reached")
    }

    async fn connect_broker(&self) -> Result<Connection> {
        Connection::connect(self.rabbitmq.as_str(), ConnectionProperties::default())
            .await
            .context("RabbitMQ cannot be reached")
    }
}

/// Whether a Sluice consumes replies there.
async fn is_in_use(broker: &Connection) -> Result<bool> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    // Asking for what does not exist closes the channel, so it has one of its own.
    let channel = broker.create_channel().await?;
    let asked = channel.queue_declare(REPLIES.into(), passive, FieldTable::default());
    match asked.await {
        Ok(queue) => Ok(queue.consumer_count() > 0),
        Err(error) if matches!(error.kind(), ErrorKind::ProtocolError(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
