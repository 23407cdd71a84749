//! Batches: jobs that were uploaded together, the lines that wait to become jobs, and the lines
//! that could not.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const UP: [&str; 9] = [
    // An upload is no batch until `accepted_at`. `fed` is the last line that has become a job.
    "CREATE TABLE batches (id UUID PRIMARY KEY, client TEXT NOT NULL, kind TEXT NOT NULL, \
     name TEXT, details TEXT NOT NULL, total BIGINT NOT NULL, rejected BIGINT NOT NULL, \
     fed BIGINT NOT NULL, last_line BIGINT NOT NULL, created_at BIGINT NOT NULL, \
     touched_at BIGINT NOT NULL, accepted_at BIGINT, cancel_requested_at BIGINT, ended_at BIGINT, \
     counts TEXT, CHECK (ended_at IS NULL OR accepted_at IS NOT NULL), \
     CHECK ((ended_at IS NULL) = (counts IS NULL)))",
    "CREATE INDEX batches_open ON batches (id) WHERE accepted_at IS NOT NULL AND ended_at IS NULL",
    "CREATE INDEX batches_uploading ON batches (touched_at) WHERE accepted_at IS NULL",
    "CREATE TABLE batch_lines (batch UUID NOT NULL, line BIGINT NOT NULL, job TEXT NOT NULL, \
     PRIMARY KEY (batch, line))",
    "CREATE TABLE batch_rejects (batch UUID NOT NULL, line BIGINT NOT NULL, code TEXT NOT NULL, \
     detail TEXT NOT NULL, PRIMARY KEY (batch, line))",
    // Empty for jobs of no batch, which so are in neither index.
    "ALTER TABLE jobs ADD COLUMN batch UUID",
    "ALTER TABLE jobs ADD COLUMN batch_line BIGINT",
    "CREATE UNIQUE INDEX jobs_of_batch ON jobs (batch, batch_line) WHERE batch IS NOT NULL",
    "CREATE INDEX jobs_of_batch_by_state ON jobs (batch, state) WHERE batch IS NOT NULL",
];

const DOWN: [&str; 7] = [
    "DROP INDEX jobs_of_batch_by_state",
    "DROP INDEX jobs_of_batch",
    "ALTER TABLE jobs DROP COLUMN batch_line",
    "ALTER TABLE jobs DROP COLUMN batch",
    "DROP TABLE batch_rejects",
    "DROP TABLE batch_lines",
    "DROP TABLE batches",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let is_postgres = manager.get_database_backend() == DbBackend::Postgres;
        let uuid = if is_postgres { "UUID" } else { "uuid_text" };
        for statement in UP {
            db.execute_unprepared(&statement.replace("UUID", uuid))
                .await?;
        }
        if is_postgres {
            // Read once and deleted: to compress it is not worth the time.
            db.execute_unprepared("ALTER TABLE batch_lines ALTER COLUMN job SET STORAGE EXTERNAL")
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
