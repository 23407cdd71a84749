//! `sluice health`: how the server is doing.

use sluice_shared::api::HealthStatus;

use super::Server;
use crate::{
    Exit, Failure,
    home::Home,
    output::{self, one_line},
};

/// Show how the server is doing
///
/// Exits with 1 when jobs cannot be accepted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let (health, _) = client.health().await?;
    if args.json {
        output::json(&health)?;
    } else {
        let status = match health.status {
            HealthStatus::Ok => "ok",
            HealthStatus::Degraded => "degraded: jobs are accepted, but something is down",
            HealthStatus::Down => "down: jobs cannot be accepted",
        };
        output::line(&format!(
            "{status} (sluice {} at {})",
            health.version,
            client.url()
        ))?;
        for (name, plane) in &health.planes {
            let state = match (&plane.error, plane.up) {
                (Some(error), false) => format!("down: {}", one_line(error, 200)),
                (None, false) => "down".into(),
                (_, true) => "up".into(),
            };
            output::line(&format!("  {name:<6}{:<11}{state}", plane.kind))?;
        }
    }
    Ok(Exit::when(health.status != HealthStatus::Down))
}
