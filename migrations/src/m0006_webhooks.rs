//! Webhooks: a job's own, registered endpoints, and each notification with its tries.
//!
//! A job's own webhook is a column that is null for most, read by the statement that settles it.

use sea_orm_migration::prelude::*;

/// This migration.
#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

const INDEXES: [&str; 6] = [
    // Looked into by each settlement: empty as long as nobody has an endpoint.
    "CREATE INDEX webhook_endpoints_kept ON webhook_endpoints (id) WHERE state <> 'removed'",
    // What is due, apart by where it goes, so that a slow receiver delays nobody else's.
    "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (target, due_at) \
     WHERE state = 'pending'",
    "CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (endpoint, id)",
    "CREATE INDEX webhook_deliveries_of_job ON webhook_deliveries (job, id)",
    "CREATE INDEX webhook_deliveries_by_state ON webhook_deliveries (state, id)",
    "CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (event_at)",
];

fn column(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name))
}

fn table(name: &'static str) -> TableCreateStatement {
    Table::create().table(Alias::new(name)).to_owned()
}

fn jobs() -> TableAlterStatement {
    Table::alter().table(Alias::new("jobs")).to_owned()
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // JSON: the URL, and which events.
        let own = column("webhook").text().null().to_owned();
        manager
            .alter_table(jobs().add_column(own).to_owned())
            .await?;
        manager
            .create_table(
                table("webhook_endpoints")
                    .col(column("id").uuid().not_null().primary_key())
                    .col(column("url").text().not_null())
                    .col(column("description").text().not_null())
                    // JSON: which types of events; none for all.
                    .col(column("events").text().not_null())
                    // Only events of this client's jobs.
                    .col(column("client").text().null())
                    // JSON: sealed, newest first, each with the end of its validity.
                    .col(column("secrets").text().not_null())
                    .col(column("state").text().not_null().check(
                        Expr::cust("state IN ('enabled', 'disabled', 'removed')"),
                    ))
                    // Why it is disabled.
                    .col(column("reason").text().null())
                    // Since when nothing but failures came of it.
                    .col(column("failing_since").big_integer().null())
                    .col(column("created_at").big_integer().not_null())
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                table("webhook_signers")
                    .col(column("client").text().not_null().primary_key())
                    // As of an endpoint.
                    .col(column("secrets").text().not_null())
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                table("webhook_deliveries")
                    .col(column("id").uuid().not_null().primary_key())
                    .col(column("event").uuid().not_null())
                    .col(column("event_type").text().not_null())
                    .col(column("event_at").big_integer().not_null())
                    // What it is about: a job, or the JSON that is sent.
                    .col(column("job").uuid().null())
                    .col(column("data").text().null())
                    // Where it goes: to an endpoint, or to the URL that a client gave a job.
                    .col(column("endpoint").uuid().null())
                    .col(column("client").text().null())
                    .col(column("url").text().null())
                    .col(column("target").text().not_null())
                    .col(column("state").text().not_null().check(Expr::cust(
                        "state IN ('pending', 'held', 'delivered', 'failed')",
                    )))
                    // The number of its last claim, which fences what came of it.
                    .col(column("claim").big_integer().not_null())
                    // Tries since it was last sent anew, and in all.
                    .col(column("step").big_integer().not_null())
                    .col(column("tries").big_integer().not_null())
                    // When it is to be tried; while it is, when the claim has run out.
                    .col(column("due_at").big_integer().not_null())
                    .col(column("ended_at").big_integer().null())
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                table("webhook_tries")
                    .col(column("delivery").uuid().not_null())
                    .col(column("number").big_integer().not_null())
                    .col(column("began_at").big_integer().not_null())
                    .col(column("took_ms").big_integer().not_null())
                    .col(column("status").big_integer().null())
                    .col(column("error").text().null())
                    .col(column("response").text().null())
                    .primary_key(
                        Index::create()
                            .col(Alias::new("delivery"))
                            .col(Alias::new("number"))
                            .primary(),
                    )
                    .to_owned(),
            )
            .await?;
        for index in INDEXES {
            manager.get_connection().execute_unprepared(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in [
            "webhook_tries",
            "webhook_deliveries",
            "webhook_signers",
            "webhook_endpoints",
        ] {
            let drop = Table::drop().table(Alias::new(name)).if_exists().to_owned();
            manager.drop_table(drop).await?;
        }
        let own = Alias::new("webhook");
        manager
            .alter_table(jobs().drop_column(own).to_owned())
            .await
    }
}
