//! `sluice api`: the API of the distributed mode.

use std::{net::SocketAddr, path::Path};

use sluice_shared::{config::Config, telemetry};
use tokio_util::sync::CancellationToken;

use super::load_config;
use crate::{Exit, Failure, home::Home, roles, signals};

/// Run the API of a distributed Sluice
///
/// HTTP, dispatcher and intake; any number of them may run. It needs Postgres (migrated by `sluice migrate`), RabbitMQ and Redis, by sluice.toml or the
/// environment.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  export SLUICE_POSTGRES__URL=postgres://sluice:secret@db/sluice
  export SLUICE_RABBITMQ__URL=amqp://sluice:secret@mq:5672/%2f
  export SLUICE_REDIS__URL=redis://cache:6379/
  sluice migrate && sluice api --listen 0.0.0.0:3000 --config sluice.toml")]
pub(crate) struct Args {
    /// Where the API listens [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let mut config = load_config(file, home)?;
    if let Some(listen) = args.listen {
        config.api.listen = listen;
    }
    Config::required_url("postgres.url", &config.postgres.url)?;
    Config::required_url("rabbitmq.url", &config.rabbitmq.url)?;
    Config::required_url("redis.url", &config.redis.url)?;
    let guard = telemetry::start(&config.log, &config.telemetry, "api")?;
    let metrics = telemetry::metrics()?;
    home.create()?;
    let shutdown = CancellationToken::new();
    let work = roles::api(config, home, metrics, shutdown.clone());
    let ended = signals::until_done(Box::pin(work), &shutdown).await?;
    guard.shutdown();
    ended?;
    Ok(Exit::Done)
}
