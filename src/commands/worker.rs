//! `sluice worker`: a worker of the distributed mode.

use std::{net::SocketAddr, path::Path, str::FromStr};

use sluice_shared::{
    config::Config,
    domain::{AccountId, ids::BadAccountId},
    telemetry,
};
use tokio_util::sync::CancellationToken;

use super::load_config;
use crate::{Exit, Failure, home::Home, roles, signals};

/// Run a worker of a distributed Sluice
///
/// One worker may serve one account or many, and any number of workers may serve one account. It
/// needs RabbitMQ, Redis and its accounts' credentials; it has no database.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice worker --config sluice.toml
  sluice worker --account main --account gpu --id worker-1 --health-listen 127.0.0.1:4001")]
pub(crate) struct Args {
    /// Serve this account; may be given again. `*` is every account, those that are made at run
    /// time included [default: *]
    #[arg(long = "account", short, value_name = "ID")]
    accounts: Vec<Wanted>,

    /// The worker's name, which must be unique [default: the host's name and the process id]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,

    /// Where its own /health and /metrics listen [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    health_listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let mut config = load_config(file, home)?;
    args.apply(&mut config);
    Config::required_url("rabbitmq.url", &config.rabbitmq.url)?;
    Config::required_url("redis.url", &config.redis.url)?;
    let guard = telemetry::start(&config.log, &config.telemetry, "worker")?;
    let metrics = telemetry::metrics()?;
    home.create()?;
    let shutdown = CancellationToken::new();
    let work = roles::worker(&config, home, metrics, shutdown.clone());
    let ended = signals::until_done(Box::pin(work), &shutdown).await?;
    guard.shutdown();
    ended?;
    Ok(Exit::Done)
}

/// The name of an account, or `*`.
#[derive(Clone, Debug)]
struct Wanted(String);

impl FromStr for Wanted {
    type Err = BadAccountId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "*" => Ok(Self(text.into())),
            name => Ok(Self(name.parse::<AccountId>()?.to_string())),
        }
    }
}

impl Args {
    fn apply(&self, config: &mut Config) {
        if !self.accounts.is_empty() {
            config.worker.accounts = self.accounts.iter().map(|id| id.0.clone()).collect();
        }
        if let Some(id) = &self.id {
            config.worker.id.clone_from(id);
        }
        if let Some(address) = self.health_listen {
            config.worker.health_listen = address.to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_configuration() {
        let mut config = Config::from_toml("[accounts.a]\nprovider = \"simulated\"").unwrap();
        let mut args = Args {
            accounts: vec!["a".parse().unwrap()],
            id: Some("w1".into()),
            health_listen: Some("127.0.0.1:4001".parse().unwrap()),
        };
        args.apply(&mut config);
        assert_eq!(config.worker.accounts, ["a"]);
        assert_eq!(config.worker.id, "w1");
        assert_eq!(config.worker.health_listen, "127.0.0.1:4001");
        // Not of the configuration: it may be made at run time.
        args.accounts = vec!["b".parse().unwrap(), "*".parse().unwrap()];
        args.apply(&mut config);
        assert_eq!(config.worker.accounts, ["b", "*"]);
        assert!("B!".parse::<Wanted>().is_err());
    }
}
