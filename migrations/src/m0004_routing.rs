//! Strategies that were chosen at run time: one row for the deployment, with an empty lane, and
//! one for each lane with a strategy of its own.

use sea_orm_migration::prelude::*;

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

fn table() -> Alias {
    Alias::new("routing")
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let text = |name: &'static str| {
            let mut column = ColumnDef::new(Alias::new(name));
            column.text().not_null();
            column
        };
        manager
            .create_table(
                Table::create()
                    .table(table())
                    .col(text("lane").primary_key())
                    .col(text("strategy"))
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .drop_table(Table::drop().table(table()).if_exists().to_owned())
            .await
    }
}
