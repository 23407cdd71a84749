//! What the Claude CLI costs a prompt: with a process of its own for each, and with one that is
//! kept. The model is in here and answers at once, so that all the time is overhead.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use sluice_shared::{api::JobView, domain::State};

use crate::{
    deployment::{Deployment, Mode, Plan},
    http::Target,
    measure::bounded,
    report::{Bar, Report, new_table, thousands},
    run::{Common, Start},
    stats::Latency,
    upstream::Upstream,
};

/// What half of the prompts of a kept process must stay under.
const BAR_MS: f64 = 60.0;

/// The arguments of `warm`.
#[derive(Args)]
pub(crate) struct WarmArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) start: Start,
    /// The Claude CLI.
    #[arg(long, value_name = "PATH", env = "SLUICE_TEST_CLAUDE_BIN")]
    claude: PathBuf,
    /// Prompts of a kept process.
    #[arg(long, value_name = "N", default_value_t = 500)]
    jobs: usize,
    /// Prompts with a process each.
    #[arg(long, value_name = "N", default_value_t = 20)]
    cold: usize,
}

/// From submit to result.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Warm {
    cold: Latency,
    warm: Latency,
}

/// Measures both.
pub(crate) async fn warm(args: &WarmArgs) -> Result<Report<Warm>> {
    let found = Warm {
        cold: one_way(args, 0, args.cold).await?,
        warm: one_way(args, 1, args.jobs).await?,
    };
    let bar = Bar::below("a kept process, p50, ms", BAR_MS, found.warm.p50_ms);
    let mut table = new_table();
    table.set_header(["submit to result, ms", "p50", "p99", "bar"]);
    let rows = [
        ("a process for each prompt", found.cold, String::new()),
        ("a kept process", found.warm, bar.verdict()),
    ];
    for (name, latency, verdict) in rows {
        table.add_row([
            name,
            &thousands(latency.p50_ms, 1),
            &thousands(latency.p99_ms, 1),
            &verdict,
        ]);
    }
    Ok(Report::new(found, vec![bar], table))
}

async fn one_way(args: &WarmArgs, kept: usize, jobs: usize) -> Result<Latency> {
    let upstream = Upstream::start()?;
    let claude = args.claude.canonicalize().context("no Claude CLI there")?;
    let more = format!(
        "[accounts.claude]\nprovider = \"claude-cli\"\nbin = {:?}\napi_key = \"sk-none\"\n\
         base_url = \"http://{}\"\ndefault_model = \"haiku\"\nmax_concurrency = 1\n\
         warm_processes = {kept}\nwarm_turns = 100\n",
        claude, upstream.address
    );
    let bin = args.start.bin()?;
    let plan = Plan {
        bin: &bin,
        dir: &args.start.dir,
        services: None,
        accounts: 0,
        max_concurrency: 1,
        latency: Duration::ZERO,
        more: &more,
    };
    crate::say(&format!("{jobs} prompts, {kept} processes kept"));
    let mut sluice = Deployment::fresh(Mode::Embedded, &plan).await?;
    let target = sluice.target();
    let measured = bounded(args.common.deadline(), one_at_a_time(target, jobs)).await;
    let latency = sluice.explain(measured)?;
    sluice.stop().await;
    never_met(&upstream.take_asked(), jobs)?;
    Ok(latency)
}

fn word(job: usize) -> String {
    format!("secret-{job}-word")
}

async fn one_at_a_time(target: &Target, jobs: usize) -> Result<Latency> {
    let mut client = target.connect().await?;
    let mut samples = Vec::with_capacity(jobs);
    for job in 0..jobs {
        let body = Bytes::from(serde_json::to_vec(&json!({ "prompt": word(job) }))?);
        let begun = Instant::now();
        let receipt: serde_json::Value = serde_json::from_slice(&client.submit(body).await?)?;
        let id = receipt["id"].as_str().context("no id in the receipt")?;
        let done: JobView = client.get(&format!("/api/jobs/{id}?wait=30s")).await?;
        samples.push(begun.elapsed());
        ensure!(done.state == State::Succeeded, "job {id}: {:?}", done.error);
    }
    Latency::of(samples)
}

/// Fails when a prompt was asked twice or not at all, or when a request holds another's words.
fn never_met(asked: &[Bytes], jobs: usize) -> Result<()> {
    let mut seen = HashSet::new();
    for body in asked {
        let body = String::from_utf8_lossy(body);
        let words: HashSet<&str> = body
            .split("secret-")
            .skip(1)
            .filter_map(|rest| rest.split('-').next())
            .collect();
        ensure!(words.len() == 1, "a request holds {} prompts", words.len());
        seen.extend(words.into_iter().map(str::to_owned));
    }
    ensure!(
        asked.len() == jobs && seen.len() == jobs,
        "{} requests of {} prompts for {jobs} jobs",
        asked.len(),
        seen.len()
    );
    Ok(())
}
