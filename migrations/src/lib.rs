//! The schema of the truth plane. One change a file, for Postgres and SQLite alike.
//!
//! A migration only adds; what is no longer used is removed by a later one, when no running
//! version reads it any more.

pub use sea_orm_migration::prelude::MigratorTrait;
use sea_orm_migration::prelude::*;

mod m0001_spine;
mod m0002_limits;
mod m0002_sessions;
mod m0003_runtime_accounts;
mod m0004_fallbacks;
mod m0004_routing;
mod m0005_clients;
mod m0006_webhooks;
mod m0007_batches;
mod m0008_dependencies;
mod m0009_schedules;
mod m0010_files;

/// Every migration, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_spine::Migration),
            Box::new(m0002_limits::Migration),
            Box::new(m0002_sessions::Migration),
            Box::new(m0003_runtime_accounts::Migration),
            Box::new(m0004_routing::Migration),
            Box::new(m0004_fallbacks::Migration),
            Box::new(m0005_clients::Migration),
            Box::new(m0006_webhooks::Migration),
            Box::new(m0007_batches::Migration),
            Box::new(m0008_dependencies::Migration),
            Box::new(m0009_schedules::Migration),
            Box::new(m0010_files::Migration),
        ]
    }
}
