//! Schedules: jobs that recur, and what became of their times.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const UP: [&str; 3] = [
    "CREATE TABLE schedules (id UUID PRIMARY KEY, client TEXT NOT NULL, name TEXT NOT NULL, \
     cron TEXT NOT NULL, timezone TEXT NOT NULL, job TEXT NOT NULL, missed TEXT NOT NULL, \
     paused BOOLEAN NOT NULL, next_at BIGINT, created_at BIGINT NOT NULL, \
     updated_at BIGINT NOT NULL)",
    "CREATE INDEX schedules_due ON schedules (next_at) WHERE NOT paused AND next_at IS NOT NULL",
    "CREATE TABLE schedule_runs (schedule UUID NOT NULL, due_at BIGINT NOT NULL, \
     fired_at BIGINT NOT NULL, job UUID, error TEXT, PRIMARY KEY (schedule, due_at))",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let is_postgres = manager.get_database_backend() == DbBackend::Postgres;
        let uuid = if is_postgres { "UUID" } else { "uuid_text" };
        for statement in UP {
            let statement = statement.replace("UUID", uuid);
            manager
                .get_connection()
                .execute_unprepared(&statement)
                .await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for statement in ["DROP TABLE schedule_runs", "DROP TABLE schedules"] {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}
