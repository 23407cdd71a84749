//! The benchmark: rounds of the limit, the embedded and the distributed Sluice in turn.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    deployment::{Mode, Plan},
    limit::{self, LimitFigures},
    measure::{self, Load, ModeFigures},
    report::Report,
    say,
    services::ServiceUrls,
};

/// Accounts, as many as the limit program has queues.
const ACCOUNTS: usize = 4;
/// Prompts that each account runs at once.
const MAX_CONCURRENCY: usize = 512;

/// Which modes to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    Embedded,
    Distributed,
    Both,
}

/// What every command needs.
#[derive(Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) services: ServiceUrls,
    /// Write the figures of every round to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Give up on one measurement after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

impl Common {
    /// How long one measurement may take.
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// What starts a Sluice.
#[derive(Args)]
pub(crate) struct Start {
    /// The release build of `sluice`; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    bin: Option<PathBuf>,
    /// Where data lies while it runs. It must be on the disk that Postgres uses, not in memory.
    #[arg(long, default_value = ".sluice-dev/bench/run")]
    pub(crate) dir: PathBuf,
    /// Fail when a bar is missed.
    #[arg(long)]
    pub(crate) check: bool,
}

impl Start {
    /// The `sluice` program.
    pub(crate) fn bin(&self) -> Result<PathBuf> {
        let bin = match &self.bin {
            Some(bin) => bin.clone(),
            None => std::env::current_exe()?.with_file_name("sluice"),
        };
        let missing = || {
            format!(
                "there is no {}; build it or name it with --bin",
                bin.display()
            )
        };
        bin.canonicalize().with_context(missing)
    }
}

/// The arguments of `limit`.
#[derive(Args)]
pub(crate) struct LimitArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    size: Size,
}

/// The arguments of `run`.
#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) start: Start,
    #[command(flatten)]
    size: Size,
    /// Which form of Sluice.
    #[arg(long, value_enum, default_value_t = Modes::Both)]
    mode: Modes,
    /// Jobs of the single submits.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    singles: usize,
    /// Leave the limit out, and with it all ratios to it.
    #[arg(long)]
    no_limit: bool,
}

/// How much of everything.
#[derive(Args)]
struct Size {
    /// Rounds; the table shows the median.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    repeat: usize,
    /// Jobs of the end-to-end load and of the array submits.
    #[arg(long, value_name = "N", default_value_t = 60_000, value_parser = at_least_one)]
    jobs: usize,
    /// Jobs run one at a time for the idle latency.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = at_least_one)]
    idle_jobs: usize,
}

fn at_least_one(text: &str) -> Result<usize> {
    let number = text.parse()?;
    ensure!(number > 0, "must be at least 1");
    Ok(number)
}

/// What one round found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Round {
    /// The limit.
    pub(crate) limit: Option<LimitFigures>,
    /// `sluice up`.
    pub(crate) embedded: Option<ModeFigures>,
    /// `sluice api` and `sluice worker`.
    pub(crate) distributed: Option<ModeFigures>,
}

/// Measures the limit alone.
pub(crate) async fn limit(args: &LimitArgs) -> Result<Report<Vec<Round>>> {
    let services = args.common.services.required()?;
    let mut rounds = Vec::new();
    for number in 1..=args.size.repeat {
        say(&format!(
            "round {number} of {}: the limit",
            args.size.repeat
        ));
        services.settle().await?;
        let Size {
            jobs, idle_jobs, ..
        } = args.size;
        let limit = limit::measure(&services, jobs, idle_jobs, args.common.deadline()).await?;
        rounds.push(Round {
            limit: Some(limit),
            ..Round::default()
        });
    }
    Ok(Report::of_rounds(rounds))
}

/// Measures Sluice and the limit.
pub(crate) async fn run(args: &RunArgs) -> Result<Report<Vec<Round>>> {
    let wants = |mode| match args.mode {
        Modes::Embedded => mode == Mode::Embedded,
        Modes::Distributed => mode == Mode::Distributed,
        Modes::Both => true,
    };
    let needs_services = !args.no_limit || wants(Mode::Distributed);
    let services = needs_services
        .then(|| args.common.services.required())
        .transpose()?;
    let bin = args.start.bin()?;
    let plan = Plan {
        bin: &bin,
        dir: &args.start.dir,
        services: services.as_ref(),
        accounts: ACCOUNTS,
        max_concurrency: MAX_CONCURRENCY,
        latency: Duration::ZERO,
        more: "",
    };
    let load = Load {
        jobs: args.size.jobs,
        singles: args.singles,
        idle_jobs: args.size.idle_jobs,
        deadline: args.common.deadline(),
    };
    let mut rounds = Vec::new();
    for number in 1..=args.size.repeat {
        let progress = |what: &str| say(&format!("round {number} of {}: {what}", args.size.repeat));
        // In turn, so that a machine that drifts from hour to hour does so for all of them.
        let mut round = Round::default();
        if let (false, Some(services)) = (args.no_limit, &services) {
            progress("the limit");
            services.settle().await?;
            let limit = limit::measure(services, load.jobs, load.idle_jobs, load.deadline).await?;
            round.limit = Some(limit);
        }
        if wants(Mode::Embedded) {
            progress("embedded");
            let figures = measure::mode(Mode::Embedded, load, &plan).await;
            round.embedded = Some(figures.context("the embedded mode")?);
        }
        if wants(Mode::Distributed) {
            progress("distributed");
            let figures = measure::mode(Mode::Distributed, load, &plan).await;
            round.distributed = Some(figures.context("the distributed mode")?);
        }
        rounds.push(round);
    }
    if let Some(services) = &services {
        services.clean().await?;
    }
    Ok(Report::of_rounds(rounds))
}
