//! A store of its own for each test.

use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use sluice_producer_api::store::Store;
use sluice_shared::config::Config;

/// A store of its own, gone when dropped.
pub(crate) struct Fresh {
    pub(crate) store: Store,
    _folder: Option<tempfile::TempDir>,
    database: Option<(String, String)>,
}

pub(crate) async fn sqlite() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::sqlite(&folder.path().join("sluice.db"))
        .await
        .unwrap();
    Fresh {
        store,
        _folder: Some(folder),
        database: None,
    }
}

pub(crate) async fn postgres() -> Fresh {
    let server = std::env::var("SLUICE_POSTGRES__URL")
        .expect("SLUICE_POSTGRES__URL is not set: run these tests by `make test`");
    let name = format!("store_{}", uuid::Uuid::now_v7().simple());
    admin(&server, &format!("CREATE DATABASE {name}")).await;
    let mut url = url::Url::parse(&server).unwrap();
    url.set_path(&name);
    let config = Config::from_toml(&format!("[postgres]\nurl = \"{url}\"")).unwrap();
    let store = Store::postgres(&config.postgres).await.unwrap();
    store.migrate().await.unwrap();
    Fresh {
        store,
        _folder: None,
        database: Some((server, name)),
    }
}

async fn admin(server: &str, sql: &str) {
    let mut options = ConnectOptions::new(server);
    options.max_connections(1).sqlx_logging(false);
    let db = Database::connect(options).await.unwrap();
    db.execute_unprepared(sql).await.unwrap();
    db.close().await.unwrap();
}

impl Fresh {
    pub(crate) async fn remove(self) {
        drop(self.store);
        if let Some((server, name)) = self.database {
            admin(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }
}
