//! Sign-ins of the dashboard. Only the hashes of their tokens are kept.

use sea_orm_migration::prelude::*;

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let column = |name: &'static str| ColumnDef::new(Alias::new(name));
        let sessions = Table::create()
            .table(Alias::new("sessions"))
            .col(column("hash").text().not_null())
            .col(column("key").uuid().not_null())
            // A link signs in once and is gone; it is no session yet.
            .col(column("is_link").boolean().not_null())
            .col(column("created_at").big_integer().not_null())
            .col(column("expires_at").big_integer().not_null())
            .primary_key(Index::create().col(Alias::new("hash")).primary())
            .to_owned();
        manager.create_table(sessions).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let drop = Table::drop()
            .table(Alias::new("sessions"))
            .if_exists()
            .to_owned();
        manager.drop_table(drop).await
    }
}
