//! The ways of jobs with fallbacks. Apart from `jobs`: a job without any costs nothing here.

use sea_orm_migration::prelude::*;

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

fn table() -> Alias {
    Alias::new("job_fallbacks")
}

fn column(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name))
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(table())
                    .col(column("job").uuid().not_null().primary_key())
                    // JSON: every step, the first being the job as it was submitted.
                    .col(column("steps").text().not_null())
                    // The step that it is on, from 0.
                    .col(column("step").big_integer().not_null())
                    // When the next step is taken if it waits then; none when no time brings that.
                    .col(column("due").big_integer().null())
                    .to_owned(),
            )
            .await?;
        let index = "CREATE INDEX job_fallbacks_due ON job_fallbacks (due) WHERE due IS NOT NULL";
        manager.get_connection().execute_unprepared(index).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .drop_table(Table::drop().table(table()).if_exists().to_owned())
            .await
    }
}
