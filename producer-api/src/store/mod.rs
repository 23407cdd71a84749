//! The truth plane: jobs, attempts, accounts, keys, on Postgres or SQLite through sea-orm.
//!
//! The statements that carry every job (submit, claim, settle) are written by hand, work on many
//! rows at once and run on both databases; all else is sea-orm's query builder. A state is
//! computed by `domain::job` and written here, in the transaction that locked the row.

mod accounts;
mod at_once;
mod batches;
mod bulk;
mod caps;
mod claim;
mod clients;
mod cooling;
mod definitions;
mod dependencies;
mod entity;
mod explain;
mod fair;
mod fallback;
mod files;
mod forecast;
mod history;
mod keys;
mod learned;
mod limits;
mod mend;
mod overview;
mod query;
mod routing;
mod schedules;
mod seats;
mod sessions;
mod settle;
mod submit;
mod sweep;
mod table;
mod webhooks;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend,
    DbErr, RuntimeErr, SqliteTransactionMode, TransactionOptions, TransactionTrait,
    sqlx::{self, sqlite::SqliteSynchronous},
};
use sluice_migrations::{Migrator, MigratorTrait};
use sluice_shared::{
    config::{self, Config, ConfigError},
    domain::Steady,
};

pub use accounts::AccountRow;
pub use batches::{Accepted, BatchRow, Cancelled, EndedBatch, Fed, Line, LineOutcome, NewBatch};
pub use claim::{Choice, Claim, Claimed, LaneDemand};
pub use clients::ClientRow;
pub use definitions::{DefinitionRow, Removed};
pub use dependencies::Released;
pub use explain::{Backlogs, Counted, LaneBacklog};
pub use fallback::Way;
pub use files::FileRow;
pub use forecast::{MOST_AHEAD, Measure, Place, Waiting};
pub use keys::{KeyRow, Revoked};
pub use overview::Standing;
pub use query::{Filter, Page};
pub use schedules::ScheduleRow;
pub use settle::{Settled, Verdict};
pub use submit::{Idempotency, NewRow, Submission, Submitted, Taken};
pub use sweep::{InFlight, Swept};
pub use webhooks::{
    ClaimedDelivery, DeliveryFilter, DeliveryRow, EndpointRow, Receiver, SealedSecret, Then, Tried,
};

/// The truth plane.
#[derive(Clone, Debug)]
pub struct Store {
    write: DatabaseConnection,
    read: DatabaseConnection,
    /// Where this process counts what others count, too, without waiting for them.
    slot: i64,
    /// The database's clock, as far as it is to be trusted.
    steady: Arc<Mutex<Steady>>,
    /// Some account has limits, so that attempts may be charged.
    charges: Arc<AtomicBool>,
}

/// Why the truth plane did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached now; the same call may work later.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// It is there and refuses: a fault of ours.
    #[error("the database refused: {0}")]
    Internal(String),
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        let unavailable = match &error {
            DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => true,
            DbErr::Exec(RuntimeErr::SqlxError(cause))
            | DbErr::Query(RuntimeErr::SqlxError(cause)) => match cause.as_ref() {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => true,
                // Class 08 is a lost connection, 57 a server that shuts down or recovers, 53 one
                // without room (https://www.postgresql.org/docs/current/errcodes-appendix.html).
                sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                    ["08", "57", "53"]
                        .iter()
                        .any(|class| code.starts_with(class))
                }),
                _ => false,
            },
            _ => false,
        };
        if unavailable {
            Self::Unavailable(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}

/// Planner settings for a queue: its tables grow and shrink faster than their statistics, and no
/// query here is better off reading a table from end to end.
const POSTGRES_OPTIONS: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

impl Store {
    /// Connects to Postgres. The schema must be there: see [`Store::migrate`].
    ///
    /// # Errors
    /// When the URL is missing or the database cannot be reached.
    pub async fn postgres(config: &config::Postgres) -> Result<Self, StoreError> {
        let url = Config::required_url("postgres.url", &config.url)?;
        let mut options = ConnectOptions::new(url);
        options
            .max_connections(config.max_connections)
            .min_connections(1)
            .connect_timeout(Duration::from_secs(5))
            .acquire_timeout(Duration::from_secs(5))
            .test_before_acquire_if_idle_for(Duration::from_secs(5))
            .sqlx_logging(false)
            .record_stmt_in_spans(false)
            .map_sqlx_postgres_opts(|options| options.options(POSTGRES_OPTIONS));
        let pool = Database::connect(options).await?;
        Ok(Self::over(pool.clone(), pool))
    }

    /// Opens or makes the SQLite database of the embedded mode, and brings its schema up to date.
    /// A commit is on disk before it is reported, as with Postgres.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn sqlite(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_str().ok_or_else(|| {
            ConfigError::value("SLUICE_HOME", "must be a path in UTF-8 for SQLite to open")
        })?;
        // Each connection has a cache of its own, in KiB. Readers look at little at a time.
        let write = Self::open_sqlite(path, 1, 65_536).await?;
        let read = Self::open_sqlite(path, 4, 16_384).await?;
        let store = Self::over(write, read);
        store.migrate().await?;
        Ok(store)
    }

    fn over(write: DatabaseConnection, read: DatabaseConnection) -> Self {
        Self {
            write,
            read,
            slot: fair::slot(),
            steady: Arc::default(),
            charges: Arc::default(),
        }
    }

    /// Whether attempts may be charged.
    fn may_charge(&self) -> bool {
        self.charges.load(Ordering::Relaxed)
    }

    async fn open_sqlite(
        path: &str,
        connections: u32,
        cache: u32,
    ) -> Result<DatabaseConnection, StoreError> {
        let path = path.to_owned();
        // The file is named below, where any character may be in it.
        let mut options = ConnectOptions::new("sqlite::memory:");
        options
            .max_connections(connections)
            .min_connections(1)
            .acquire_timeout(Duration::from_secs(30))
            .idle_timeout(None::<Duration>)
            .max_lifetime(None::<Duration>)
            .test_before_acquire(false)
            .sqlx_logging(false)
            .record_stmt_in_spans(false)
            .map_sqlx_sqlite_opts(move |options| {
                options
                    .filename(&path)
                    .in_memory(false)
                    .shared_cache(false)
                    .create_if_missing(true)
                    .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(Duration::from_secs(20))
                    .statement_cache_capacity(200)
                    // A whole batch, or its thread and its reader would wait for each other.
                    .row_buffer_size(1024)
                    .pragma("cache_size", format!("-{cache}"))
                    .pragma("temp_store", "memory")
                    .pragma("wal_autocheckpoint", "4000")
            });
        Ok(Database::connect(options).await?)
    }

    /// Brings the schema up to date. Idempotent.
    ///
    /// # Errors
    /// When the database cannot be reached or a migration fails.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        Ok(Migrator::up(&self.write, None).await?)
    }

    /// Whether every migration has been applied.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        Ok(Migrator::get_pending_migrations(&self.write)
            .await?
            .is_empty())
    }

    /// Whether it can be used now.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), StoreError> {
        Ok(self.read.ping().await?)
    }

    /// `postgres` or `sqlite`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.write.get_database_backend() {
            DbBackend::Postgres => "postgres",
            _ => "sqlite",
        }
    }

    async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        match self.write.get_database_backend() {
            DbBackend::Sqlite => {
                // The write lock at once: a transaction that reads first and writes later fails
                // when another has written in between.
                let options = TransactionOptions {
                    sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                    ..TransactionOptions::default()
                };
                self.write.begin_with_options(options).await
            }
            _ => self.write.begin().await,
        }
    }
}

/// The clause that locks rows; SQLite locks the whole database, so it has none.
fn for_update(db: &impl ConnectionTrait, clause: &'static str) -> &'static str {
    if db.get_database_backend() == DbBackend::Postgres {
        clause
    } else {
        ""
    }
}

/// A text that must hold JSON of our own making.
fn parse_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Internal(format!("{what}: {error}")))
}

fn to_json<T: serde::Serialize>(what: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Internal(format!("{what}: {error}")))
}

/// A count of ours that the database keeps as a signed number.
fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX })
}
