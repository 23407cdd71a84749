//! Every migration can be applied, undone and applied again, on both databases.

#![expect(clippy::unwrap_used, reason = "tests")]

use sea_orm_migration::sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use sluice_migrations::{Migrator, MigratorTrait};

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

async fn up_down_up(db: &DatabaseConnection) {
    Migrator::up(db, None).await.unwrap();
    Migrator::down(db, None).await.unwrap();
    Migrator::up(db, None).await.unwrap();
    assert!(
        Migrator::get_pending_migrations(db)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn sqlite_goes_up_and_down() {
    up_down_up(&connect("sqlite::memory:").await).await;
}

#[tokio::test]
async fn postgres_goes_up_and_down() {
    let server = std::env::var("SLUICE_POSTGRES__URL")
        .expect("SLUICE_POSTGRES__URL is not set: run these tests by `make test`");
    let name = format!("migrations_{}", std::process::id());
    let admin = connect(&server).await;
    admin
        .execute_unprepared(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    let db = connect(&format!("{base}/{name}")).await;
    up_down_up(&db).await;
    db.close().await.unwrap();
    admin
        .execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)"))
        .await
        .unwrap();
}
