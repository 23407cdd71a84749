//! Jobs that come after others. Apart from `jobs`: a job that comes after none costs nothing here.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const UP: [&str; 4] = [
    "CREATE TABLE job_parents (job UUID NOT NULL, place BIGINT NOT NULL, parent UUID NOT NULL, \
     PRIMARY KEY (job, place))",
    "CREATE INDEX job_parents_children ON job_parents (parent)",
    // Those that still wait, with what if a parent does not succeed, and their own `run_at`.
    "CREATE TABLE job_waits (job UUID PRIMARY KEY, on_failure TEXT NOT NULL, \
     run_at BIGINT NOT NULL)",
    "ALTER TABLE jobs ADD COLUMN has_children BOOLEAN NOT NULL DEFAULT FALSE",
];

const DOWN: [&str; 3] = [
    "ALTER TABLE jobs DROP COLUMN has_children",
    "DROP TABLE job_waits",
    "DROP TABLE job_parents",
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
        for statement in DOWN {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}
