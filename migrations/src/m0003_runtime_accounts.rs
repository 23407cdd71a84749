//! Accounts made at run time: their settings, and their secrets as they were sealed.

use sea_orm_migration::prelude::*;

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const DEFINITIONS: &str = "account_definitions";
const ROLL: &str = "account_roll";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let text = |name: &'static str| {
            let mut column = ColumnDef::new(Alias::new(name));
            column.text().not_null();
            column
        };
        let number = |name: &'static str| {
            let mut column = ColumnDef::new(Alias::new(name));
            column.big_integer().not_null();
            column
        };
        // An account without a row here is one of the configuration.
        let definitions = Table::create()
            .table(Alias::new(DEFINITIONS))
            .col(text("account").primary_key())
            .col(text("settings"))
            .col(text("secrets"))
            .col(number("revision"))
            .to_owned();
        manager.create_table(definitions).await?;

        // One row: what it counts are the changes to all accounts together. It is also the lock
        // that puts them in order.
        let roll = Table::create()
            .table(Alias::new(ROLL))
            .col(number("id").primary_key())
            .col(number("revision"))
            .check(Expr::cust("id = 1"))
            .to_owned();
        manager.create_table(roll).await?;
        manager
            .get_connection()
            .execute_unprepared("INSERT INTO account_roll (id, revision) VALUES (1, 0)")
            .await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in [ROLL, DEFINITIONS] {
            manager
                .drop_table(Table::drop().table(Alias::new(name)).if_exists().to_owned())
                .await?;
        }
        Ok(())
    }
}
