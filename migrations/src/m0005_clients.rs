//! Clients: their weights and quotas, what they used, and their places in fair queueing.
//!
//! A client is the name of its API keys. What is not in `clients` has weight 1 and no quota.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const UP: [&str; 8] = [
    "CREATE TABLE clients (name TEXT PRIMARY KEY, \
     weight BIGINT NOT NULL DEFAULT 1 CHECK (weight >= 1), \
     requests_per_minute BIGINT, max_waiting BIGINT, max_running BIGINT, \
     tokens_per_day BIGINT, tokens_per_month BIGINT, \
     cost_per_day BIGINT, cost_per_month BIGINT)",
    // What attempts used, by the day in UTC on which they ended, written with their ends. Spread
    // over a few slots, so that API processes do not wait for each other's rows.
    "CREATE TABLE client_usage (client TEXT NOT NULL, day BIGINT NOT NULL, slot BIGINT NOT NULL, \
     jobs BIGINT NOT NULL, tokens BIGINT NOT NULL, cost_microusd BIGINT NOT NULL, \
     PRIMARY KEY (client, day, slot))",
    // For each client of a lane and priority: the tag that its next job would get at the
    // earliest, and the virtual time at which it last asked for one.
    "CREATE TABLE fair_tags (lane TEXT NOT NULL, priority BIGINT NOT NULL, client TEXT NOT NULL, \
     next BIGINT NOT NULL, step BIGINT NOT NULL, virtual_time BIGINT NOT NULL, \
     PRIMARY KEY (lane, priority, client))",
    // The highest tag that was dispatched, which is the virtual time; in slots as above.
    "CREATE TABLE fair_clocks (lane TEXT NOT NULL, priority BIGINT NOT NULL, \
     slot BIGINT NOT NULL, tag BIGINT NOT NULL, PRIMARY KEY (lane, priority, slot))",
    "CREATE INDEX fair_clocks_priority ON fair_clocks (priority, tag)",
    // One client's waiting jobs: how many there are, and its first ones when those of others
    // must not be waited for.
    "CREATE INDEX jobs_of_client ON jobs (client, lane, priority DESC, fair_tag, id) \
     WHERE state = 'queued' AND ready",
    "CREATE INDEX jobs_of_client_later ON jobs (client) WHERE state = 'queued' AND NOT ready",
    "CREATE INDEX jobs_running_of_client ON jobs (client) \
     WHERE state IN ('dispatched', 'running')",
];

const DOWN: [&str; 7] = [
    "DROP INDEX jobs_running_of_client",
    "DROP INDEX jobs_of_client_later",
    "DROP INDEX jobs_of_client",
    "DROP TABLE fair_clocks",
    "DROP TABLE fair_tags",
    "DROP TABLE client_usage",
    "DROP TABLE clients",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for statement in UP {
            db.execute_unprepared(statement).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            // Few rows that change with every batch.
            for table in ["fair_tags", "fair_clocks", "client_usage"] {
                db.execute_unprepared(&format!(
                    "ALTER TABLE {table} SET (fillfactor = 20, \
                     autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500)"
                ))
                .await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for statement in DOWN {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}
