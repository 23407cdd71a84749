//! The services that the runner gives, and sets of a test's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use reqwest::Method;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use serde_json::json;
use url::Url;

use super::{
    process::{processes_of, signal_all},
    unique,
};

/// A service that Sluice uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Postgres,
    RabbitMq,
    Redis,
}

impl Service {
    pub(crate) const ALL: [Service; 3] = [Service::Postgres, Service::RabbitMq, Service::Redis];

    /// Its name in `services.sh`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
        }
    }
}

/// Where the three services are.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) postgres: Url,
    pub(crate) rabbitmq: Url,
    pub(crate) management: Url,
    pub(crate) redis: Url,
}

/// A variable that the runner sets.
pub(crate) fn given(name: &str) -> String {
    match env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run the tests by `make test`, which sets it"),
    }
}

impl Addresses {
    /// The services that all tests share.
    pub(crate) fn shared() -> Self {
        Self::from(given)
    }

    fn from(value: impl Fn(&str) -> String) -> Self {
        let url = |name: &str| -> Url {
            value(name)
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        Self {
            postgres: url("SLUICE_POSTGRES__URL"),
            rabbitmq: url("SLUICE_RABBITMQ__URL"),
            management: url("SLUICE_RABBITMQ__MANAGEMENT_URL"),
            redis: url("SLUICE_REDIS__URL"),
        }
    }

    /// Makes a new database and gives its name.
    pub(crate) async fn create_database(&self) -> String {
        let name = unique("it").replace('-', "_");
        let postgres = connect(&self.postgres).await;
        postgres
            .execute_unprepared(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        postgres.close().await.unwrap();
        name
    }

    pub(crate) async fn drop_database(&self, name: &str) {
        let postgres = connect(&self.postgres).await;
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        postgres.execute_unprepared(&sql).await.unwrap();
        postgres.close().await.unwrap();
    }

    /// Makes a new virtual host in RabbitMQ and gives its name.
    pub(crate) async fn create_vhost(&self) -> String {
        let name = unique("it");
        self.manage(Method::PUT, &format!("api/vhosts/{name}"), json!({}))
            .await;
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        self.manage(Method::PUT, &format!("api/permissions/{name}/guest"), all)
            .await;
        name
    }

    pub(crate) async fn delete_vhost(&self, name: &str) {
        self.manage(Method::DELETE, &format!("api/vhosts/{name}"), json!({}))
            .await;
    }

    async fn manage(&self, method: Method, path: &str, body: serde_json::Value) {
        let url = self.management.join(path).unwrap();
        let request = super::http()
            .request(method, url)
            .basic_auth("guest", Some("guest"));
        let response = request.json(&body).send().await.unwrap();
        let status = response.status();
        assert!(
            status.is_success(),
            "{path}: {status}: {}",
            response.text().await.unwrap()
        );
    }
}

/// A connection to a database, for looking at it from outside.
pub(crate) async fn connect(url: &Url) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url.as_str());
    options.max_connections(2).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

/// Services of a test's own, which it may kill. They go with this value.
#[derive(Debug)]
pub(crate) struct PrivateSet {
    dir: PathBuf,
    services: Vec<Service>,
}

impl PrivateSet {
    /// Starts `services` beside those of the runner.
    pub(crate) async fn start(services: &[Service]) -> Self {
        let shared = PathBuf::from(given("SLUICE_TEST_SERVICES_DIR"));
        let dir = shared
            .parent()
            .expect("it has a parent")
            .join(unique("set"));
        let set = Self {
            dir,
            services: services.to_vec(),
        };
        let names: Vec<&str> = services.iter().map(|service| service.name()).collect();
        set.run(&[&["start"], names.as_slice()].concat()).await;
        set
    }

    /// Where its services are; `others` says it for those it does not have.
    pub(crate) async fn addresses(&self, others: &Addresses) -> Addresses {
        let printed = self.run(&["env"]).await;
        Addresses::from(|name| {
            let own = printed
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            match (own, name) {
                (Some(own), _) => own.to_owned(),
                (None, "SLUICE_POSTGRES__URL") => others.postgres.to_string(),
                (None, "SLUICE_RABBITMQ__URL") => others.rabbitmq.to_string(),
                (None, "SLUICE_RABBITMQ__MANAGEMENT_URL") => others.management.to_string(),
                (None, _) => others.redis.to_string(),
            }
        })
    }

    /// Whether the service is the test's own.
    pub(crate) fn has(&self, service: Service) -> bool {
        self.services.contains(&service)
    }

    /// Ends a service as a crash does.
    pub(crate) async fn kill9(&self, service: Service) {
        assert!(self.has(service), "{service:?} is shared with other tests");
        self.run(&["kill", service.name()]).await;
    }

    /// Stops every process of a service where it is: it neither answers nor goes away.
    pub(crate) fn freeze(&self, service: Service) {
        signal_all(&self.processes(service), Signal::SIGSTOP);
    }

    /// Lets a service go on.
    pub(crate) fn thaw(&self, service: Service) {
        signal_all(&self.processes(service), Signal::SIGCONT);
    }

    fn processes(&self, service: Service) -> Vec<(i32, String)> {
        assert!(self.has(service), "{service:?} is shared with other tests");
        let dir = self.dir.join(service.name());
        let mut found = processes_of(&dir);
        // Its data may lie elsewhere, behind a link.
        if let Ok(place) = fs::canonicalize(dir.join("cluster")) {
            found.extend(processes_of(&place));
        }
        assert!(!found.is_empty(), "{service:?} does not run");
        found
    }

    /// Brings a service back; returns when it serves.
    pub(crate) async fn start_again(&self, service: Service) {
        self.run(&["start", service.name()]).await;
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::from(script(&self.dir));
        let output = command.args(arguments).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "services.sh {arguments:?}: {stderr}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for PrivateSet {
    fn drop(&mut self) {
        let removed = script(&self.dir)
            .arg("remove")
            .stderr(Stdio::null())
            .status();
        let gone = removed.is_ok_and(|status| status.success()) && fs::metadata(&self.dir).is_err();
        assert!(
            gone || std::thread::panicking(),
            "{} is left behind",
            self.dir.display()
        );
    }
}

fn script(dir: &Path) -> Command {
    let mut command = Command::new(given("SLUICE_TEST_SERVICES_SH"));
    command.arg("--dir").arg(dir).stdin(Stdio::null());
    command
}
