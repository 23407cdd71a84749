//! What accounts are limited to, how far they have used it, what each attempt was charged for it,
//! why accounts cool, and what their providers have said about their limits.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let uuid = match manager.get_database_backend() {
            DbBackend::Postgres => "uuid",
            _ => "uuid_text",
        };
        for statement in [
            // JSON, as `models` is.
            "ALTER TABLE accounts ADD COLUMN limits text NOT NULL DEFAULT '[]'".to_owned(),
            // JSON; NULL when nothing cools.
            "ALTER TABLE account_state ADD COLUMN cooldowns text".to_owned(),
            // One row a limit, changed with every batch: small. `landed` is JSON.
            "CREATE TABLE account_windows (account text NOT NULL, kind text NOT NULL, \
             window_ms bigint NOT NULL, held bigint NOT NULL CHECK (held >= 0), \
             landed text NOT NULL, mean bigint NOT NULL, \
             PRIMARY KEY (account, kind, window_ms))"
                .to_owned(),
            // One row for each attempt in flight on an account with limits.
            format!(
                "CREATE TABLE charges (job {uuid} NOT NULL, attempt bigint NOT NULL, \
                 account text NOT NULL, dispatched_at bigint NOT NULL, started_by bigint, \
                 input_tokens bigint NOT NULL, output_tokens bigint NOT NULL, \
                 cost_microusd bigint NOT NULL, PRIMARY KEY (job, attempt))"
            ),
            "CREATE INDEX charges_account ON charges (account)".to_owned(),
            "CREATE TABLE account_learned (account text NOT NULL PRIMARY KEY, \
             figures text NOT NULL)"
                .to_owned(),
        ] {
            db.execute_unprepared(&statement).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            for table in ["account_windows", "account_learned"] {
                db.execute_unprepared(&format!(
                    "ALTER TABLE {table} SET (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, \
                     autovacuum_vacuum_threshold = 500)"
                ))
                .await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for statement in [
            "DROP TABLE account_learned",
            "DROP TABLE charges",
            "DROP TABLE account_windows",
            "ALTER TABLE account_state DROP COLUMN cooldowns",
            "ALTER TABLE accounts DROP COLUMN limits",
        ] {
            db.execute_unprepared(statement).await?;
        }
        Ok(())
    }
}
