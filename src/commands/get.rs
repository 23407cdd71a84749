//! `sluice get`: one job.

use sluice_shared::{clock, domain::JobId, domain::State};

use super::{Server, job_id, job_view, submit};
use crate::{Exit, Failure, home::Home, output};

/// Show a job: what became of it, and its answer
///
/// With --wait it exits with 1 when the job did not succeed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice get 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42
  sluice get 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42 --wait --text > answer.txt")]
pub(crate) struct Args {
    /// The job
    #[arg(value_parser = job_id)]
    id: JobId,

    /// Wait for its end
    #[arg(long, short)]
    wait: bool,

    /// Print the answer only
    #[arg(long)]
    text: bool,

    /// Print JSON
    #[arg(long, conflicts_with = "text")]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let job = if args.wait {
        match submit::wait(&client, args.id).await? {
            Some(job) => job,
            None => return Ok(Exit::Interrupted),
        }
    } else {
        client.job(args.id, None).await?
    };
    if args.json {
        output::json(&job)?;
    } else if args.text {
        submit::answer(&job)?;
    } else {
        output::print(&job_view::facts(&job, clock::now()))?;
        if let Some(result) = &job.result {
            output::line("")?;
            output::text(&result.text)?;
        }
    }
    let succeeded = job.state == State::Succeeded;
    Ok(Exit::when(succeeded || !(args.wait || args.text)))
}
