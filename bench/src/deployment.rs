//! A Sluice to measure: real processes of the release binary, with data and configuration of
//! their own.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use hyper::{Method, StatusCode, Uri};
use tempfile::TempDir;
use tokio::time::sleep;
use url::Url;

use crate::{http::Target, process::Process, services::Services};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Accounts of one Sluice here, at most.
pub(crate) const MAX_ACCOUNTS: usize = 1_000;

/// The names of the first accounts. They are always the same, so that what they leave in the
/// broker can be found and removed later.
pub(crate) fn account_names(accounts: usize) -> impl Iterator<Item = String> {
    (1..=accounts).map(|number| format!("bench-{number}"))
}

/// In which form Sluice runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `sluice up`: one process with SQLite.
    Embedded,
    /// `sluice api` and `sluice worker` with Postgres, RabbitMQ and Redis.
    Distributed,
}

/// What to start.
pub(crate) struct Plan<'a> {
    /// The `sluice` program.
    pub(crate) bin: &'a Path,
    /// Where data, configuration and logs go while it runs. It must be on a disk.
    pub(crate) dir: &'a Path,
    /// The services, which only the distributed mode uses.
    pub(crate) services: Option<&'a Services>,
    /// How many simulated accounts there are.
    pub(crate) accounts: usize,
    /// Prompts that each account runs at once.
    pub(crate) max_concurrency: usize,
    /// How long each prompt takes.
    pub(crate) latency: Duration,
    /// Further accounts, as configuration.
    pub(crate) more: &'a str,
}

impl Plan<'_> {
    /// Every setting that is not the default.
    fn configuration(&self) -> String {
        let mut text = format!("{}\n", self.more);
        for name in account_names(self.accounts) {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "[accounts.{name}]\nprovider = \"simulated\"\nlatency = \"{}ms\"\ntokens = 0\n\
                 max_concurrency = {}\n",
                self.latency.as_millis(),
                self.max_concurrency,
            );
        }
        text
    }

    fn services(&self) -> Result<&Services> {
        self.services.context("the distributed mode needs services")
    }
}

/// A running Sluice. Dropping it kills its processes and then removes its data.
pub(crate) struct Deployment {
    server: Process,
    worker: Option<Process>,
    target: Target,
    config: PathBuf,
    database: Option<Url>,
    home: TempDir,
}

impl Deployment {
    /// Starts one with nothing in it, in services with nothing of an earlier one in them.
    pub(crate) async fn fresh(mode: Mode, plan: &Plan<'_>) -> Result<Self> {
        if mode == Mode::Distributed {
            plan.services()?.clean().await?;
        }
        if let Some(services) = plan.services {
            services.settle().await?;
        }
        Self::start(mode, plan).await
    }

    /// Starts it and returns when it serves. A distributed one has no worker yet, so it accepts
    /// jobs and runs none.
    async fn start(mode: Mode, plan: &Plan<'_>) -> Result<Self> {
        fs::create_dir_all(plan.dir)?;
        // Absolute, since the processes get it as their environment.
        let home = TempDir::with_prefix_in("sluice-", plan.dir.canonicalize()?)?;
        let config = home.path().join("sluice.toml");
        fs::write(&config, plan.configuration())?;
        let database = match mode {
            Mode::Embedded => None,
            Mode::Distributed => Some(plan.services()?.create_database().await?),
        };
        let start = |name, role: &[&str]| {
            start_role(name, role, plan, database.as_ref(), home.path(), &config)
        };
        let address = free_address()?;
        let listen = address.to_string();
        let server = match mode {
            Mode::Embedded => start("up", &["up", "--listen", &listen])?,
            Mode::Distributed => {
                start("migrate", &["migrate"])?
                    .finish(START_TIMEOUT)
                    .await?;
                start("api", &["api", "--listen", &listen])?
            }
        };
        let target = Target {
            address,
            key: String::new(),
        };
        let mut deployment = Self {
            server,
            worker: None,
            target,
            config,
            database,
            home,
        };
        deployment.wait_until_ready().await?;
        Ok(deployment)
    }

    /// Starts the worker of a distributed Sluice.
    pub(crate) fn start_worker(&mut self, plan: &Plan<'_>) -> Result<()> {
        let database = self.database.as_ref();
        let (home, config) = (self.home.path(), &self.config);
        self.worker = Some(start_role(
            "worker",
            &["worker"],
            plan,
            database,
            home,
            config,
        )?);
        Ok(())
    }

    /// Where it serves.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The process that serves HTTP; embedded, it is the only one.
    pub(crate) fn server(&self) -> &Process {
        &self.server
    }

    /// The worker, if it is a process of its own.
    pub(crate) fn worker(&self) -> Option<&Process> {
        self.worker.as_ref()
    }

    /// Adds to a failure what the processes had to say.
    pub(crate) fn explain<T>(&mut self, measured: Result<T>) -> Result<T> {
        measured.map_err(|error| {
            let processes = [Some(&mut self.server), self.worker.as_mut()];
            let told: Vec<String> = processes.into_iter().flatten().map(Process::tell).collect();
            anyhow!("{error:#}\n{}", told.join("\n"))
        })
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Stops it as an operator would.
    pub(crate) async fn stop(self) {
        if let Some(worker) = self.worker {
            worker.stop().await;
        }
        self.server.stop().await;
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if !self.server.is_running()? {
                bail!("not ready:\n{}", self.server.tell());
            }
            if self.is_ready().await
                && let Ok(key) = fs::read_to_string(self.home.path().join("admin.key"))
            {
                key.trim().clone_into(&mut self.target.key);
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not ready after {START_TIMEOUT:?}:\n{}", self.server.tell());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let ready = async {
            let mut client = self.target.connect().await?;
            client
                .send(
                    Method::GET,
                    Uri::from_static("/health/ready"),
                    bytes::Bytes::new(),
                )
                .await
        };
        matches!(ready.await, Ok((StatusCode::OK, _)))
    }
}

fn start_role(
    name: &'static str,
    role: &[&str],
    plan: &Plan<'_>,
    database: Option<&Url>,
    home: &Path,
    config: &Path,
) -> Result<Process> {
    let mut arguments: Vec<&OsStr> = role.iter().map(OsStr::new).collect();
    arguments.extend([OsStr::new("--config"), config.as_os_str()]);
    let mut environment = vec![("SLUICE_HOME", home.as_os_str())];
    if let (Some(services), Some(database)) = (plan.services, database) {
        environment.extend([
            ("SLUICE_POSTGRES__URL", OsStr::new(database.as_str())),
            (
                "SLUICE_RABBITMQ__URL",
                OsStr::new(services.rabbitmq.as_str()),
            ),
            ("SLUICE_REDIS__URL", OsStr::new(services.redis.as_str())),
        ]);
    }
    Process::start(name, plan.bin, &arguments, &environment, home)
}

/// An address nobody listens on at this moment.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_account_is_configured() {
        let plan = Plan {
            bin: Path::new("sluice"),
            dir: Path::new("."),
            services: None,
            accounts: 2,
            max_concurrency: 512,
            latency: Duration::from_secs(5),
            more: "[accounts.other]",
        };
        let text = plan.configuration();
        assert!(text.contains("[accounts.other]"));
        assert!(text.contains("[accounts.bench-1]") && text.contains("[accounts.bench-2]"));
        assert!(text.contains("latency = \"5000ms\"") && text.contains("max_concurrency = 512"));
    }
}
