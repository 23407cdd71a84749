//! What Sluice adds to a call of an SDK: chat completions through an embedded Sluice, each a durable
//! job, beside the same calls to the same upstream without it.
//!
//! The upstream is in here and answers at once, so that all that is measured is the way there and
//! back. Load, Sluice and upstream share the machine.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use futures::future::try_join_all;
use hyper::{Method, StatusCode, Uri};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    deployment::{Deployment, Mode, Plan},
    http::Target,
    report::{Bar, Report, new_table, thousands},
    run::{Common, Start},
    stats::{Latency, Spread, per_second},
    upstream::Upstream,
    usage::Cpu,
};

/// Bars: milliseconds added to the median, and calls a second.
const MOST_ADDED_MS: f64 = 4.0;
const LEAST_RATE: f64 = 3000.0;

const PATH: &str = "/v1/chat/completions";

/// The arguments of `gateway`.
#[derive(Args)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) start: Start,
    /// Rounds; the table shows the median.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Calls of each measurement.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    calls: usize,
    /// Calls under way at once where latency is measured.
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: usize,
    /// Calls under way at once where calls a second are measured.
    #[arg(long, value_name = "N", default_value_t = 128)]
    load: usize,
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Round {
    direct: Figures,
    sluice: Figures,
    /// Under the larger load.
    loaded: Figures,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Figures {
    latency: Latency,
    per_second: f64,
    /// Of Sluice's process, in microseconds a call.
    cpu_us: f64,
}

/// Measures.
pub(crate) async fn gateway(args: &GatewayArgs) -> Result<Report<Vec<Round>>> {
    let upstream = Upstream::start()?;
    let bin = args.start.bin()?;
    let mut rounds = Vec::new();
    for _ in 0..args.repeat {
        let measured = Box::pin(round(args, &bin, upstream.address));
        let round = timeout(args.common.deadline(), measured).await;
        rounds.push(round.context("a round took too long")??);
    }
    Ok(report(args, rounds))
}

async fn round(args: &GatewayArgs, bin: &std::path::Path, upstream: SocketAddr) -> Result<Round> {
    let accounts = format!(
        "[accounts.upstream]\nprovider = \"openai\"\nbase_url = \"http://{upstream}/v1\"\n\
         models = [\"m\"]\nmax_concurrency = 512\n"
    );
    let plan = Plan {
        bin,
        dir: &args.start.dir,
        services: None,
        accounts: 0,
        max_concurrency: 1,
        latency: Duration::ZERO,
        more: &accounts,
    };
    let mut deployment = Deployment::fresh(Mode::Embedded, &plan).await?;
    let measured = Box::pin(measure(args, &deployment, upstream)).await;
    let measured = deployment.explain(measured);
    deployment.stop().await;
    measured
}

async fn measure(
    args: &GatewayArgs,
    deployment: &Deployment,
    upstream: SocketAddr,
) -> Result<Round> {
    let direct = Target {
        address: upstream,
        key: "none".into(),
    };
    let sluice = deployment.target();
    let cpu = || deployment.server().cpu();
    // Connections, statements and caches of both are warm before anything counts.
    calls(&direct, args.concurrency, args.calls / 10).await?;
    calls(sluice, args.load, args.calls / 10).await?;
    let direct = figures(&direct, args.concurrency, args.calls, cpu).await?;
    let through = figures(sluice, args.concurrency, args.calls, cpu).await?;
    let loaded = figures(sluice, args.load, args.calls, cpu).await?;
    Ok(Round {
        direct,
        sluice: through,
        loaded,
    })
}

async fn figures(
    target: &Target,
    concurrency: usize,
    calls_in_all: usize,
    cpu: impl Fn() -> Result<Cpu>,
) -> Result<Figures> {
    let before = cpu()?;
    let begun = Instant::now();
    let samples = calls(target, concurrency, calls_in_all).await?;
    let elapsed = begun.elapsed();
    let count = samples.len();
    Ok(Figures {
        cpu_us: (cpu()? - before).micros_each(count),
        per_second: per_second(count, elapsed),
        latency: Latency::of(samples)?,
    })
}

/// Makes calls, so many at once, each caller the next when it has its answer.
async fn calls(target: &Target, at_once: usize, in_all: usize) -> Result<Vec<Duration>> {
    let body = json!({
        "model": "m",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France? ".repeat(8)},
        ],
        "temperature": 0.2,
    });
    let body = Bytes::from(body.to_string());
    let each = in_all.div_ceil(at_once);
    let callers = (0..at_once).map(|_| {
        let body = body.clone();
        async move {
            let mut client = target.connect().await?;
            let mut samples = Vec::with_capacity(each);
            for _ in 0..each {
                let begun = Instant::now();
                let (status, answer) = client
                    .send(Method::POST, Uri::from_static(PATH), body.clone())
                    .await?;
                samples.push(begun.elapsed());
                ensure!(
                    status == StatusCode::OK,
                    "{status} {}",
                    String::from_utf8_lossy(&answer)
                );
            }
            anyhow::Ok(samples)
        }
    });
    Ok(try_join_all(callers).await?.concat())
}

/// One of a round's figures.
type Pick = fn(&Round) -> Figures;

fn report(args: &GatewayArgs, rounds: Vec<Round>) -> Report<Vec<Round>> {
    let median = |of: &dyn Fn(&Round) -> f64| {
        Spread::of(rounds.iter().map(of)).map_or(f64::NAN, |spread| spread.median)
    };
    let added = median(&|round| round.sluice.latency.p50_ms - round.direct.latency.p50_ms);
    let rate = median(&|round| round.loaded.per_second);
    let bars = vec![
        Bar::below("p50 added, ms", MOST_ADDED_MS, added),
        Bar::at_least("calls a second", LEAST_RATE, rate),
    ];
    let (few, many) = (args.concurrency, args.load);
    let rows: [(String, Pick); 3] = [
        (format!("upstream, {few} at once"), |round| round.direct),
        (format!("Sluice, {few} at once"), |round| round.sluice),
        (format!("Sluice, {many} at once"), |round| round.loaded),
    ];
    let mut table = new_table();
    table.set_header(["", "p50 ms", "p99 ms", "calls/s", "CPU of Sluice, us"]);
    for (name, of) in rows {
        table.add_row([
            name,
            thousands(median(&|round| of(round).latency.p50_ms), 2),
            thousands(median(&|round| of(round).latency.p99_ms), 2),
            thousands(median(&|round| of(round).per_second), 0),
            thousands(median(&|round| of(round).cpu_us), 0),
        ]);
    }
    for bar in &bars {
        let value = thousands(bar.value, 2);
        table.add_row([bar.figure.clone(), value, bar.verdict()]);
    }
    Report::new(rounds, bars, table)
}
