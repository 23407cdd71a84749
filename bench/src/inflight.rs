//! Many jobs in flight at once on one worker process: do all finish, and what memory does it take?

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    deployment::{Deployment, MAX_ACCOUNTS, Mode, Plan},
    load,
    measure::{ARRAY_CONNECTIONS, bounded},
    process::Process,
    report::{Bar, Report, new_table, thousands},
    run::{Common, Start},
    verify,
};

/// Memory that neither process may reach.
const MEMORY_BAR_MB: f64 = 250.0;

/// The arguments of `inflight`.
#[derive(Args)]
pub(crate) struct InflightArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) start: Start,
    /// Jobs in flight at once.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    jobs: usize,
    /// How long each prompt takes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    latency: u64,
    /// Accounts that share the jobs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = accounts)]
    accounts: usize,
}

fn accounts(text: &str) -> Result<usize> {
    let number = text.parse()?;
    ensure!(
        (1..=MAX_ACCOUNTS).contains(&number),
        "must be from 1 to {MAX_ACCOUNTS}"
    );
    Ok(number)
}

/// What was found.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Inflight {
    /// Jobs submitted; all of them have succeeded.
    pub(crate) jobs: usize,
    /// Prompts that ran at the same moment, at most.
    pub(crate) most_at_once: usize,
    /// From the first submit to the last terminal state, in seconds.
    pub(crate) seconds: f64,
    /// Memory of the API at most, in MB.
    pub(crate) api_peak_mb: f64,
    /// Memory of the worker at most, in MB.
    pub(crate) worker_peak_mb: f64,
}

/// Measures it.
pub(crate) async fn inflight(args: &InflightArgs) -> Result<Report<Inflight>> {
    let services = args.common.services.required()?;
    let bin = args.start.bin()?;
    let plan = Plan {
        bin: &bin,
        dir: &args.start.dir,
        services: Some(&services),
        accounts: args.accounts,
        max_concurrency: args.jobs.div_ceil(args.accounts),
        latency: Duration::from_secs(args.latency),
        more: "",
    };
    crate::say(&format!(
        "{} jobs of {} s on one worker",
        args.jobs, args.latency
    ));
    let mut sluice = Deployment::fresh(Mode::Distributed, &plan).await?;
    sluice.start_worker(&plan)?;
    let found = bounded(args.common.deadline(), measure(args.jobs, &sluice)).await;
    let found = sluice.explain(found)?;
    sluice.stop().await;
    services.clean().await?;
    Ok(report(found))
}

fn report(found: Inflight) -> Report<Inflight> {
    let bars = vec![
        Bar::at_least(
            "prompts that ran at once",
            exact(found.jobs),
            exact(found.most_at_once),
        ),
        Bar::below(
            "memory of the API at most, MB",
            MEMORY_BAR_MB,
            found.api_peak_mb,
        ),
        Bar::below(
            "memory of the worker at most, MB",
            MEMORY_BAR_MB,
            found.worker_peak_mb,
        ),
    ];
    let mut table = new_table();
    table.set_header(["", "found", "bar"]);
    table.add_row(["jobs, all succeeded", &thousands(exact(found.jobs), 0), ""]);
    table.add_row(["time for all, s", &thousands(found.seconds, 1), ""]);
    for bar in &bars {
        table.add_row([
            bar.figure.as_str(),
            &thousands(bar.value, 0),
            &bar.verdict(),
        ]);
    }
    Report::new(found, bars, table)
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn exact(count: usize) -> f64 {
    count as f64
}

async fn measure(jobs: usize, sluice: &Deployment) -> Result<Inflight> {
    let target = sluice.target();
    let start = Instant::now();
    let (_, ids) = load::run_all(target, jobs, ARRAY_CONNECTIONS).await?;
    let seconds = start.elapsed().as_secs_f64();
    // Before the results are read: that is a load of another kind.
    let api = sluice.server().memory()?;
    let worker = sluice.worker().map(Process::memory).transpose()?;
    let attempts = verify::attempts(target, &ids).await?;
    Ok(Inflight {
        jobs,
        most_at_once: verify::most_at_once(&attempts)?,
        seconds,
        api_peak_mb: api.peak_mb,
        worker_peak_mb: worker.map_or(0.0, |memory| memory.peak_mb),
    })
}
