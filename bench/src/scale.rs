//! Many accounts and a large backlog: how fast are jobs dispatched then, beside few accounts and a
//! small backlog?

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    deployment::{Deployment, MAX_ACCOUNTS, Mode, Plan},
    load,
    measure::{ARRAY_CONNECTIONS, bounded},
    report::{Bar, Report, new_table, thousands},
    run::{Common, Start},
};

/// Accounts of the small one.
const FEW_ACCOUNTS: usize = 10;
/// Slots of all accounts together, the same in both.
const SLOTS: usize = 4_000;
/// What part of the small one's rate the large one's must reach.
const BAR: f64 = 0.8;

/// The arguments of `scale`.
#[derive(Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) start: Start,
    /// Accounts of the large one.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = accounts)]
    accounts: usize,
    /// Jobs that wait in the large one.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    waiting: usize,
    /// Dispatches that are measured.
    #[arg(long, value_name = "N", default_value_t = 40_000)]
    jobs: usize,
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
pub(crate) struct Scale {
    /// Dispatches a second of 10 accounts with nothing else in the backlog.
    pub(crate) small: f64,
    /// Dispatches a second of many accounts and a large backlog.
    pub(crate) large: f64,
}

/// Measures both.
pub(crate) async fn scale(args: &ScaleArgs) -> Result<Report<Scale>> {
    let small = rate(args, FEW_ACCOUNTS, args.jobs * 5 / 4).await?;
    let large = rate(args, args.accounts, args.waiting.max(args.jobs * 5 / 4)).await?;
    let ratio = large / small;
    let bars = vec![Bar::share(
        "dispatch rate, of that of 10 accounts and an empty backlog",
        BAR,
        ratio,
    )];
    let mut table = new_table();
    table.set_header(["", "dispatches/s", "bar"]);
    table.add_row([
        &format!("{FEW_ACCOUNTS} accounts, {} waiting", args.jobs * 5 / 4),
        &thousands(small, 0),
        "",
    ]);
    table.add_row([
        &format!("{} accounts, {} waiting", args.accounts, args.waiting),
        &thousands(large, 0),
        &bars[0].verdict(),
    ]);
    table.add_row(["ratio", &format!("{ratio:.2}"), ""]);
    Ok(Report::new(Scale { small, large }, bars, table))
}

async fn rate(args: &ScaleArgs, accounts: usize, waiting: usize) -> Result<f64> {
    let services = args.common.services.required()?;
    let bin = args.start.bin()?;
    let plan = Plan {
        bin: &bin,
        dir: &args.start.dir,
        services: Some(&services),
        accounts,
        max_concurrency: SLOTS.div_ceil(accounts),
        latency: std::time::Duration::ZERO,
        more: "",
    };
    crate::say(&format!("{accounts} accounts, {waiting} jobs waiting"));
    let mut sluice = Deployment::fresh(Mode::Distributed, &plan).await?;
    // Without a worker nothing is dispatched, so that the backlog is there when it begins.
    let filled = bounded(
        args.common.deadline(),
        load::fill(sluice.target(), waiting, ARRAY_CONNECTIONS),
    )
    .await;
    sluice.explain(filled)?;
    services.settle().await?;
    sluice.start_worker(&plan)?;
    let measured = bounded(
        args.common.deadline(),
        load::dispatch_rate(sluice.target(), args.jobs / 10, args.jobs),
    )
    .await;
    let rate = sluice.explain(measured)?;
    sluice.stop().await;
    services.clean().await?;
    Ok(rate)
}
