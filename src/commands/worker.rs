//! `sluice worker`: a worker of the distributed mode.

use std::{net::SocketAddr, path::Path};

use sluice_shared::{config::Config, domain::AccountId, telemetry};
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
    /// Serve this account; may be given again [default: all of the configuration]
    #[arg(long = "account", short, value_name = "ID")]
    accounts: Vec<AccountId>,

    /// The worker's name, which must be unique [default: the host's name and the process id]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,

    /// Where its own /health and /metrics listen [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    health_listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let mut config = load_config(file, home)?;
    args.apply(&mut config)?;
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

impl Args {
    fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        for id in &self.accounts {
            if !config.accounts.contains_key(id) {
                return Err(Failure::usage(format!(
                    "--account {id}: the configuration has no [accounts.{id}]"
                )));
            }
        }
        if !self.accounts.is_empty() {
            config.worker.accounts = self.accounts.iter().map(ToString::to_string).collect();
        }
        if let Some(id) = &self.id {
            config.worker.id.clone_from(id);
        }
        if let Some(address) = self.health_listen {
            config.worker.health_listen = address.to_string();
        }
        Ok(())
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
        args.apply(&mut config).unwrap();
        assert_eq!(config.worker.accounts, ["a"]);
        assert_eq!(config.worker.id, "w1");
        assert_eq!(config.worker.health_listen, "127.0.0.1:4001");
        args.accounts = vec!["b".parse().unwrap()];
        assert!(matches!(args.apply(&mut config), Err(Failure::Usage(_))));
    }
}
