//! A lane beside a blocked one: thousands of jobs wait for an account that is full. How long does a
//! job of another lane wait for its start?

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use sluice_shared::api::JobView;

use crate::{
    deployment::{Deployment, Mode, Plan},
    http::{Client, Target},
    load::ARRAY,
    measure::bounded,
    payload::prompt,
    report::{Bar, Report, new_table, thousands},
    run::{Common, Start},
    stats::Latency,
};

/// What 99 in 100 of the free lane's jobs must stay under.
const BAR_MS: f64 = 50.0;
/// Slots of the full account.
const SLOTS: usize = 16;
/// How long its prompts take: longer than this measures.
const BLOCKED: Duration = Duration::from_secs(3_600);
/// The account of the other lane.
const FREE: &str = "free";

/// The arguments of `lanes`.
#[derive(Args)]
pub(crate) struct LanesArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) start: Start,
    /// Jobs that wait for the account that is full.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    waiting: usize,
    /// Jobs of the other lane, one at a time.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    jobs: usize,
}

/// From submit to start, in each mode.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Lanes {
    embedded: Latency,
    distributed: Latency,
}

/// Measures both modes.
pub(crate) async fn lanes(args: &LanesArgs) -> Result<Report<Lanes>> {
    let found = Lanes {
        embedded: one_mode(args, Mode::Embedded).await?,
        distributed: one_mode(args, Mode::Distributed).await?,
    };
    let mut table = new_table();
    table.set_header(["submit to start, ms", "p50", "p99", "bar"]);
    let mut bars = Vec::new();
    for (name, latency) in [
        ("embedded", found.embedded),
        ("distributed", found.distributed),
    ] {
        let bar = Bar::below(&format!("{name}, p99, ms"), BAR_MS, latency.p99_ms);
        table.add_row([
            name,
            &thousands(latency.p50_ms, 1),
            &thousands(latency.p99_ms, 1),
            &bar.verdict(),
        ]);
        bars.push(bar);
    }
    Ok(Report::new(found, bars, table))
}

async fn one_mode(args: &LanesArgs, mode: Mode) -> Result<Latency> {
    let services = args.common.services.required()?;
    let bin = args.start.bin()?;
    let more =
        format!("[accounts.{FREE}]\nprovider = \"simulated\"\nlatency = \"0ms\"\ntokens = 0\n");
    let plan = Plan {
        bin: &bin,
        dir: &args.start.dir,
        services: Some(&services),
        accounts: 1,
        max_concurrency: SLOTS,
        latency: BLOCKED,
        more: &more,
    };
    crate::say(&format!(
        "{} jobs wait beside another lane, {mode:?}",
        args.waiting
    ));
    let mut sluice = Deployment::fresh(mode, &plan).await?;
    if mode == Mode::Distributed {
        sluice.start_worker(&plan)?;
    }
    let measured = bounded(args.common.deadline(), measure(sluice.target(), args)).await;
    let latency = sluice.explain(measured)?;
    sluice.kill();
    services.clean().await?;
    Ok(latency)
}

async fn measure(target: &Target, args: &LanesArgs) -> Result<Latency> {
    let mut client = target.connect().await?;
    let blocked = json!({ "prompt": prompt(0), "account": "bench-1" });
    let array = serde_json::to_vec(&vec![blocked; ARRAY])?;
    for _ in 0..args.waiting.div_ceil(ARRAY) {
        client.submit(Bytes::from(array.clone())).await?;
    }
    let body = serde_json::to_vec(&json!({ "prompt": prompt(0), "account": FREE }))?;
    let body = Bytes::from(body);
    // The first one waits for what was submitted before it to be looked at.
    start_of(&mut client, &body).await?;
    let mut samples = Vec::with_capacity(args.jobs);
    for _ in 0..args.jobs {
        samples.push(start_of(&mut client, &body).await?);
    }
    Latency::of(samples)
}

/// How long one job waited for its start, by the clock of this machine.
async fn start_of(client: &mut Client, body: &Bytes) -> Result<Duration> {
    let receipt: serde_json::Value = serde_json::from_slice(&client.submit(body.clone()).await?)?;
    let id = receipt["id"].as_str().context("no id in the receipt")?;
    let job: JobView = client.get(&format!("/api/jobs/{id}?wait=30s")).await?;
    ensure!(
        job.state.as_str() == "succeeded",
        "job {id} is {}",
        job.state.as_str()
    );
    let started_at = job.started_at.context("it succeeded and did not start")?;
    Ok(started_at.since(job.created_at))
}
