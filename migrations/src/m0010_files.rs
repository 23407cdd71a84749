//! Files that were uploaded to make batches of, in pieces.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const UP: [&str; 3] = [
    // An upload is no file until `accepted_at`.
    "CREATE TABLE files (id UUID PRIMARY KEY, client TEXT NOT NULL, name TEXT NOT NULL, \
     purpose TEXT NOT NULL, size BIGINT NOT NULL, created_at BIGINT NOT NULL, accepted_at BIGINT)",
    "CREATE INDEX files_uploading ON files (created_at) WHERE accepted_at IS NULL",
    "CREATE TABLE file_pieces (file UUID NOT NULL, number BIGINT NOT NULL, data BYTES NOT NULL, \
     PRIMARY KEY (file, number))",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let is_postgres = manager.get_database_backend() == DbBackend::Postgres;
        let (uuid, bytes) = match is_postgres {
            true => ("UUID", "BYTEA"),
            false => ("uuid_text", "BLOB"),
        };
        for statement in UP {
            let statement = statement.replace("UUID", uuid).replace("BYTES", bytes);
            manager
                .get_connection()
                .execute_unprepared(&statement)
                .await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for statement in ["DROP TABLE file_pieces", "DROP TABLE files"] {
            manager
                .get_connection()
                .execute_unprepared(statement)
                .await?;
        }
        Ok(())
    }
}
