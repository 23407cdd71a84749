//! `sluice cancel`: the end of jobs that have not ended.

use sluice_shared::domain::JobId;

use super::{Server, job_id};
use crate::{Exit, Failure, home::Home, output};

/// Cancel jobs
///
/// One that waits ends at once; one that runs is stopped where it runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice cancel 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42
  sluice list --state queued --all --json | jq -r .id | xargs sluice cancel")]
pub(crate) struct Args {
    /// The jobs
    #[arg(value_name = "ID", required = true, value_parser = job_id)]
    ids: Vec<JobId>,

    /// Print JSON, one job a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let mut all = true;
    for id in &args.ids {
        match client.cancel(*id).await {
            Ok(job) if args.json => output::json_line(&job)?,
            Ok(job) if job.state.is_terminal() => output::line(&format!("{id} {}", job.state))?,
            Ok(_) => output::line(&format!("{id} is being cancelled"))?,
            Err(error) => {
                all = false;
                super::report_one(&id.to_string(), error)?;
            }
        }
    }
    Ok(Exit::when(all))
}
