//! Jobs, their payloads and attempts; accounts and what is counted for them; API keys;
//! idempotency keys.
//!
//! Times are milliseconds since the Unix epoch. `jobs` is narrow: payloads and answers stand
//! apart, and the hot indexes are partial, so that finished jobs cost the dispatcher nothing.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

fn id(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name));
    column.uuid().not_null();
    column
}

fn text(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name));
    column.text().not_null();
    column
}

fn number(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name));
    column.big_integer().not_null();
    column
}

fn flag(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name));
    column.boolean().not_null().default(false);
    column
}

fn optional(mut column: ColumnDef) -> ColumnDef {
    column.null();
    column
}

/// A nullable column of the given kind.
fn null_text(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name));
    optional(column.text().to_owned())
}

fn null_number(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name));
    optional(column.big_integer().to_owned())
}

fn table(name: &'static str, columns: Vec<ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(Alias::new(name));
    for column in columns {
        table.col(column);
    }
    table
}

fn primary(columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create();
    for column in columns {
        index.col(Alias::new(*column));
    }
    index.primary();
    index
}

const TABLES: [&str; 7] = [
    "idempotency_keys",
    "api_keys",
    "account_state",
    "accounts",
    "attempts",
    "job_payloads",
    "jobs",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let states = "state IN ('queued','dispatched','running','succeeded','failed','cancelled',\
                      'expired')";
        let jobs = table(
            "jobs",
            vec![
                id("id"),
                text("state"),
                text("client"),
                text("lane"),
                null_text("model"),
                number("priority"),
                number("fair_tag"),
                // Whether its time has come. Kept apart from `run_at`, so that an index can be
                // partial on it.
                flag("ready"),
                number("run_at"),
                null_number("expires_at"),
                number("timeout_ms"),
                number("attempt"),
                number("failures"),
                number("losses"),
                number("max_attempts"),
                flag("at_most_once"),
                flag("cancel_requested"),
                null_text("account"),
                null_text("worker"),
                null_text("session"),
                text("metadata"),
                optional(id("retry_of")),
                null_text("error_code"),
                null_text("error_message"),
                number("created_at"),
                null_number("dispatched_at"),
                null_number("started_at"),
                null_number("lease_until"),
                null_number("finished_at"),
            ],
        )
        .primary_key(&mut primary(&["id"]))
        .check(Expr::cust(states))
        .check(Expr::cust(
            "(finished_at IS NULL) = (state IN ('queued','dispatched','running'))",
        ))
        .check(Expr::cust(
            "state NOT IN ('dispatched','running') OR account IS NOT NULL",
        ))
        .check(Expr::cust("state <> 'queued' OR account IS NULL"))
        .to_owned();
        manager.create_table(jobs).await?;

        let payloads = table(
            "job_payloads",
            vec![id("job"), text("request"), null_text("traceparent")],
        )
        .primary_key(&mut primary(&["job"]))
        .to_owned();
        manager.create_table(payloads).await?;

        let attempts = table(
            "attempts",
            vec![
                id("job"),
                number("number"),
                text("account"),
                null_text("worker"),
                text("outcome"),
                null_text("error_code"),
                null_text("error_message"),
                number("dispatched_at"),
                null_number("started_at"),
                number("finished_at"),
                number("input_tokens"),
                number("output_tokens"),
                null_number("cost_microusd"),
                null_text("answer"),
            ],
        )
        .primary_key(&mut primary(&["job", "number"]))
        .to_owned();
        manager.create_table(attempts).await?;

        let accounts = table(
            "accounts",
            vec![
                text("id"),
                text("provider"),
                text("models"),
                text("tags"),
                number("max_concurrency"),
                number("weight"),
                flag("removed"),
            ],
        )
        .primary_key(&mut primary(&["id"]))
        .to_owned();
        manager.create_table(accounts).await?;

        // Apart from `accounts`: its rows change with every batch and must stay small.
        let account_state = table(
            "account_state",
            vec![
                text("account"),
                number("in_flight"),
                text("standing"),
                null_number("cooldown_until"),
                number("throttle_streak"),
                null_text("reason"),
            ],
        )
        .primary_key(&mut primary(&["account"]))
        .check(Expr::cust("in_flight >= 0"))
        .to_owned();
        manager.create_table(account_state).await?;

        let api_keys = table(
            "api_keys",
            vec![
                id("id"),
                text("name"),
                text("prefix"),
                text("hash"),
                text("scopes"),
                number("created_at"),
                null_number("revoked_at"),
            ],
        )
        .primary_key(&mut primary(&["id"]))
        .to_owned();
        manager.create_table(api_keys).await?;

        let idempotency = table(
            "idempotency_keys",
            vec![
                text("client"),
                text("idempotency_key"),
                text("fingerprint"),
                text("jobs"),
                number("created_at"),
            ],
        )
        .primary_key(&mut primary(&["client", "idempotency_key"]))
        .to_owned();
        manager.create_table(idempotency).await?;

        let db = manager.get_connection();
        for statement in [
            "CREATE INDEX jobs_backlog ON jobs (lane, priority DESC, fair_tag, id) \
             WHERE state = 'queued' AND ready",
            "CREATE INDEX jobs_scheduled ON jobs (run_at) WHERE state = 'queued' AND NOT ready",
            "CREATE INDEX jobs_in_flight ON jobs (account, dispatched_at) \
             WHERE state IN ('dispatched', 'running')",
            "CREATE INDEX jobs_expiring ON jobs (expires_at) \
             WHERE state = 'queued' AND expires_at IS NOT NULL",
            "CREATE INDEX jobs_unhappy ON jobs (state, id) \
             WHERE state IN ('failed', 'cancelled', 'expired')",
            "CREATE UNIQUE INDEX api_keys_hash ON api_keys (hash)",
            "CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at)",
        ] {
            db.execute_unprepared(statement).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            for statement in [
                // Rows change twice in their life; room on the page keeps them where they are.
                "ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)",
                "ALTER TABLE account_state SET (fillfactor = 20, \
                 autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)",
                // Answers are read whole and seldom: what is gained by compressing them is lost
                // in the time it takes.
                "ALTER TABLE job_payloads ALTER COLUMN request SET STORAGE EXTERNAL",
                "ALTER TABLE attempts ALTER COLUMN answer SET STORAGE EXTERNAL",
            ] {
                db.execute_unprepared(statement).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in TABLES {
            manager
                .drop_table(Table::drop().table(Alias::new(name)).if_exists().to_owned())
                .await?;
        }
        Ok(())
    }
}
