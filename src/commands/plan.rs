//! `sluice plan`: when a batch would be done, and how many accounts a rate takes.

use comfy_table::Table;
use sluice_shared::{
    api::{Bottleneck, Forecast},
    clock,
    domain::{AccountId, Time},
};

use super::Server;
use crate::{
    Exit, Failure,
    client::ForecastQuery,
    home::Home,
    output::{self, relative},
};

/// Say when a batch would be done, and how many accounts a rate takes
///
/// The server's own planner runs ahead in virtual time, over what waits and runs now, with how
/// long the last jobs took. Nothing is submitted.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice plan 500
  sluice plan 500 --model claude-sonnet-5 --tag eu
  sluice plan 1 --per-hour 2000")]
pub(crate) struct Args {
    /// How many jobs
    #[arg(default_value = "1", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    jobs: u64,

    /// The model they ask for
    #[arg(long)]
    model: Option<String>,

    /// The account they are pinned to
    #[arg(long)]
    account: Option<AccountId>,

    /// A tag they ask for; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,

    /// Their priority, from -100 to 100
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i16>,

    /// A rate: how many accounts does it take to keep up with so many jobs an hour?
    #[arg(long, value_name = "JOBS", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    per_hour: Option<u64>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let query = ForecastQuery {
        jobs: args.jobs,
        model: args.model.clone(),
        account: args.account.clone(),
        tags: args.tags.clone(),
        priority: args.priority,
        per_hour: args.per_hour,
    };
    let forecast = client.forecast(&query).await?;
    if args.json {
        output::json(&forecast)?;
        return Ok(Exit::when(forecast.done_at.is_some()));
    }
    output::table(&table(&forecast))?;
    output::line("")?;
    for line in words(&forecast, args.per_hour, clock::now()) {
        output::line(&line)?;
    }
    Ok(Exit::when(forecast.done_at.is_some()))
}

fn table(forecast: &Forecast) -> Table {
    let mut table = output::columns(["ACCOUNT", "JOBS", "TIME PER JOB", "MEASURED"]);
    for account in &forecast.accounts {
        let time = std::time::Duration::from_millis(account.millis_per_job);
        let measured = match account.measured {
            0 => "not yet".to_owned(),
            attempts => format!("{attempts} attempts"),
        };
        table.add_row([
            account.id.to_string(),
            account.jobs.to_string(),
            humantime::format_duration(time).to_string(),
            measured,
        ]);
    }
    table
}

fn words(forecast: &Forecast, per_hour: Option<u64>, now: Time) -> Vec<String> {
    let jobs = match forecast.jobs {
        1 => "1 job".to_owned(),
        jobs => format!("{jobs} jobs"),
    };
    let mut lines = Vec::new();
    match (forecast.starts_at, forecast.done_at) {
        (Some(start), Some(end)) => lines.push(format!(
            "{jobs}, beside {} waiting: start {}, done {} ({end})",
            forecast.waiting,
            relative(start, now),
            relative(end, now)
        )),
        _ => lines.push(format!("{jobs}: no end in sight")),
    }
    let bottleneck = forecast.bottleneck.as_ref().map(bottleneck);
    lines.push(format!(
        "held up by: {}",
        bottleneck.unwrap_or_else(|| "nothing".into())
    ));
    if let Some(per_hour) = per_hour {
        let needed = match forecast.accounts_needed {
            Some(1) => "1 account".to_owned(),
            Some(accounts) => format!("{accounts} accounts"),
            None => "more than 1000 accounts".to_owned(),
        };
        lines.push(format!(
            "{per_hour} jobs an hour take {needed} like the slowest of these"
        ));
    }
    lines
}

fn bottleneck(bottleneck: &Bottleneck) -> String {
    let what = match (
        bottleneck.kind.as_str(),
        bottleneck.limit,
        bottleneck.window,
    ) {
        ("no_account", ..) => return "no account can run them now".into(),
        ("max_running", ..) => return "the client's own max_running".into(),
        ("cooldown", ..) => "the cooldown".to_owned(),
        ("slots", Some(slots), _) => format!("the {slots} slots"),
        (kind, Some(limit), Some(window)) => format!("the limit of {limit} {kind} in {window}"),
        (kind, ..) => kind.to_owned(),
    };
    match &bottleneck.account {
        Some(account) => format!("{what} of {account}"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_says_when_and_why_and_how_many() {
        let forecast: Forecast = serde_json::from_value(json!({
            "jobs": 500, "lane": "any", "waiting": 20,
            "starts_at": "2026-11-23T20:01:00.000Z", "done_at": "2026-11-23T21:00:00.000Z",
            "bottleneck": { "kind": "requests", "account": "main", "limit": 100, "window": "1h" },
            "accounts": [{ "id": "main", "jobs": 500, "millis_per_job": 2500, "measured": 12 }],
            "accounts_needed": 5,
        }))
        .unwrap();
        let now = "2026-11-23T20:00:00.000Z".parse().unwrap();
        let text = format!(
            "{}\n{}",
            table(&forecast),
            words(&forecast, Some(500), now).join("\n")
        );
        for part in [
            "2s 500ms",
            "12 attempts",
            "beside 20 waiting",
            "done in 1h",
            "the limit of 100 requests in 1h of main",
            "500 jobs an hour take 5 accounts",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
