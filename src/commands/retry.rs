//! `sluice retry`: ended jobs once more.

use sluice_shared::domain::JobId;

use super::{Server, job_id};
use crate::{Exit, Failure, home::Home, output};

/// Submit ended jobs again, as new jobs linked to them
///
/// Prints the new ids.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice retry 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42
  sluice list --state failed --from 1h --all --json | jq -r .id | xargs sluice retry")]
pub(crate) struct Args {
    /// The jobs
    #[arg(value_name = "ID", required = true, value_parser = job_id)]
    ids: Vec<JobId>,

    /// Print JSON, one receipt a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let mut all = true;
    for id in &args.ids {
        match client.retry(*id).await {
            Ok(receipt) if args.json => output::json_line(&receipt)?,
            Ok(receipt) => output::line(&receipt.id.to_string())?,
            Err(error) => {
                all = false;
                super::report_one(&id.to_string(), error)?;
            }
        }
    }
    Ok(Exit::when(all))
}
