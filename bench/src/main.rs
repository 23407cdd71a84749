//! What Sluice does on this machine, beside what the machine can do.
//!
//! `run` measures Sluice as real processes of its release binary, round by round in turn with the
//! [`limit`] program, and prints one table of figures, ratios and bars. `inflight` holds many jobs
//! in flight at once, and `scale` dispatches for many accounts from a large backlog. `lanes` has
//! one lane beside one that is blocked. `gateway` is what an SDK's call costs,
//! and `warm` what the Claude CLI does. `routing`
//! compares the strategies in virtual time, and starts nothing.
//! `deploy/dev/bench.sh` builds all and starts private services for it. Load
//! goes to this machine only, is bounded in count and in time, and what is started here is stopped
//! on every way out.

mod deployment;
mod gateway;
mod http;
mod inflight;
mod lanes;
mod limit;
mod load;
mod measure;
mod payload;
mod process;
mod report;
mod routing;
mod run;
mod scale;
mod services;
mod stats;
mod upstream;
mod usage;
mod verify;
mod warm;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{report::Report, run::Common};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Sluice on this machine, beside what the machine can do. Linux only.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the machine's limit alone: a bare program that does what any durable queue must.
    Limit(run::LimitArgs),
    /// Measure Sluice, beside the limit, and print one table.
    Run(run::RunArgs),
    /// Hold many jobs in flight at once on one worker process.
    Inflight(inflight::InflightArgs),
    /// Dispatch for many accounts out of a large backlog, beside few accounts and a small one.
    Scale(scale::ScaleArgs),
    /// Start jobs of one lane while thousands wait in another.
    Lanes(lanes::LanesArgs),
    /// Pass chat completions on to an upstream that answers at once, beside the upstream itself.
    Gateway(gateway::GatewayArgs),
    /// Run prompts by the Claude CLI, with a process of its own for each and with one that is kept.
    Warm(warm::WarmArgs),
    Routing(routing::RoutingArgs),
}

/// One thread: the load is meant to cost little, and a second thread would take the CPU from what
/// is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let common = match &cli.command {
        Command::Limit(args) => &args.common,
        Command::Run(args) => &args.common,
        Command::Inflight(args) => &args.common,
        Command::Scale(args) => &args.common,
        Command::Lanes(args) => &args.common,
        Command::Gateway(args) => &args.common,
        Command::Warm(args) => &args.common,
        Command::Routing(args) => {
            return match writeln!(io::stdout(), "{}", routing::table(args)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    let ended = tokio::select! {
        ended = Box::pin(measure(&cli.command)) => ended,
        interrupted = interrupted() => interrupted.and_then(|()| bail!("interrupted")),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            say(&format!("sluice-bench: {error:#}"));
            // The processes are gone with what was measured; the services may still hold data.
            clean_up(common).await;
            ExitCode::FAILURE
        }
    }
}

async fn measure(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Limit(args) => finish(&run::limit(args).await?, &args.common, false),
        Command::Run(args) => finish(&run::run(args).await?, &args.common, args.start.check),
        Command::Inflight(args) => finish(
            &inflight::inflight(args).await?,
            &args.common,
            args.start.check,
        ),
        Command::Scale(args) => finish(&scale::scale(args).await?, &args.common, args.start.check),
        Command::Lanes(args) => finish(&lanes::lanes(args).await?, &args.common, args.start.check),
        Command::Gateway(args) => finish(
            &gateway::gateway(args).await?,
            &args.common,
            args.start.check,
        ),
        Command::Warm(args) => finish(&warm::warm(args).await?, &args.common, args.start.check),
        // It measures nothing of this machine.
        Command::Routing(_) => Ok(ExitCode::SUCCESS),
    }
}

fn finish<F: Serialize>(report: &Report<F>, common: &Common, check: bool) -> Result<ExitCode> {
    writeln!(io::stdout(), "{}", report.table)?;
    if let Some(file) = &common.json {
        std::fs::write(file, serde_json::to_vec_pretty(report)?)?;
    }
    let failed = check && !report.passes();
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns when someone asks this program to end.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

async fn clean_up(common: &Common) {
    let Ok(services) = common.services.required() else {
        return;
    };
    let cleaning = async {
        limit::clean(&services).await?;
        services.clean().await
    };
    match tokio::time::timeout(Duration::from_secs(15), cleaning).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => say(&format!("the services are not clean: {error:#}")),
        Err(_) => say("the services are not clean: they do not answer"),
    }
}

/// Tells on standard error what is going on.
fn say(what: &str) {
    // Nobody to tell is no reason to stop.
    let _ = writeln!(io::stderr(), "{what}");
}
