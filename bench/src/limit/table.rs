//! The limit program's tables: a narrow row for the state, a wide one for payload and answer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use sea_orm::sqlx::{
    self, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

const CREATE: [&str; 3] = [
    "CREATE TABLE bench_limit_jobs (id uuid PRIMARY KEY, state smallint NOT NULL) \
     WITH (fillfactor = 70)",
    "CREATE TABLE bench_limit_payloads (job uuid PRIMARY KEY, payload text NOT NULL)",
    "CREATE TABLE bench_limit_answers (job uuid PRIMARY KEY, answer text NOT NULL)",
];
const REMOVE: &str =
    "DROP TABLE IF EXISTS bench_limit_jobs, bench_limit_payloads, bench_limit_answers";
const INSERT: &str = "\
    WITH v AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::text[]) AS v(id, payload)), \
    stored AS (INSERT INTO bench_limit_payloads SELECT id, payload FROM v) \
    INSERT INTO bench_limit_jobs SELECT id, 0 FROM v";
const SETTLE: &str = "\
    WITH v AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::text[]) AS v(id, answer)), \
    stored AS (INSERT INTO bench_limit_answers SELECT id, answer FROM v) \
    UPDATE bench_limit_jobs SET state = 1 FROM v WHERE bench_limit_jobs.id = v.id";

/// The jobs of the limit program.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pool: PgPool,
}

impl Table {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let options: PgConnectOptions = url.parse().context("the Postgres URL is not one")?;
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(10))
            // Each test before use would be one more round trip than the work itself needs.
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .context("Postgres cannot be reached")?;
        Ok(Self { pool })
    }

    pub(super) async fn create(&self) -> Result<()> {
        for statement in CREATE {
            sqlx::query(statement).execute(&self.pool).await?;
        }
        Ok(())
    }

    pub(super) async fn remove(self) -> Result<()> {
        sqlx::query(REMOVE).execute(&self.pool).await?;
        self.pool.close().await;
        Ok(())
    }

    pub(super) async fn insert(&self, ids: Vec<Uuid>, payloads: Vec<String>) -> Result<()> {
        sqlx::query(INSERT)
            .bind(ids)
            .bind(payloads)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn settle(&self, answers: Vec<(Uuid, Bytes)>) -> Result<()> {
        let (ids, answers): (Vec<Uuid>, Vec<String>) = answers
            .into_iter()
            .map(|(id, answer)| (id, String::from_utf8_lossy(&answer).into_owned()))
            .unzip();
        sqlx::query(SETTLE)
            .bind(ids)
            .bind(answers)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// How many jobs have their answer.
    pub(super) async fn settled(&self) -> Result<usize> {
        let (count,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM bench_limit_jobs JOIN bench_limit_answers ON job = id \
             WHERE state = 1",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(usize::try_from(count)?)
    }
}
