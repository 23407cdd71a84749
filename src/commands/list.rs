//! `sluice list`: jobs by filters.

use comfy_table::Table;
use sluice_shared::{
    api::JobView,
    clock,
    domain::{AccountId, Span, State, Time},
};

use super::{Server, job_view, key_value};
use crate::{
    Exit, Failure,
    client::JobQuery,
    home::Home,
    output::{self, one_line, relative},
};

/// Jobs in a page when all are asked for.
const PAGE: u32 = 200;

/// List jobs, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice list --state queued,running
  sluice list --metadata team=search --from 24h
  sluice list --state failed --all --json | jq -r .id | xargs sluice retry")]
pub(crate) struct Args {
    /// In this state; several by commas or by giving it again
    #[arg(long, short, value_delimiter = ',', value_parser = state)]
    state: Vec<State>,

    /// Bound to this account
    #[arg(long, short, value_name = "ID")]
    account: Option<AccountId>,

    /// Submitted by this client (the name of the API key)
    #[arg(long, short, value_name = "NAME")]
    client: Option<String>,

    /// That asked for this model
    #[arg(long, short)]
    model: Option<String>,

    /// With this note; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,

    /// Submitted at this time or later: RFC 3339, or how long ago, such as 24h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Time>,

    /// Submitted before this time: RFC 3339, or how long ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Time>,

    /// At most this many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: u32,

    /// All of them, page after page
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    all: bool,

    /// Go on where a former list ended
    #[arg(long)]
    cursor: Option<String>,

    /// Print JSON, one job a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let mut query = JobQuery {
        states: args.state.clone(),
        account: args.account.clone(),
        client: args.client.clone(),
        model: args.model.clone(),
        metadata: args.metadata.clone(),
        from: args.from,
        to: args.to,
        limit: Some(if args.all { PAGE } else { args.limit }),
        cursor: args.cursor.clone(),
    };
    loop {
        let page = client.jobs(&query).await?;
        if args.json {
            page.jobs.iter().try_for_each(output::json_line)?;
        } else if !page.jobs.is_empty() {
            output::table(&table(&page.jobs, clock::now()))?;
        } else if query.cursor.is_none() {
            output::note("no jobs");
        }
        match page.next_cursor {
            Some(cursor) if args.all => query.cursor = Some(cursor),
            Some(cursor) => {
                output::note(&format!("more with --cursor {cursor}, or --all"));
                return Ok(Exit::Done);
            }
            None => return Ok(Exit::Done),
        }
    }
}

fn table(jobs: &[JobView], now: Time) -> Table {
    let mut table = output::columns(["ID", "STATE", "ACCOUNT", "CLIENT", "SUBMITTED", "TOOK", ""]);
    for job in jobs {
        let account = job.account.as_ref().map_or("-", AccountId::as_str);
        let took = job
            .finished_at
            .map(|end| output::rough(end.since(job.created_at)));
        let end = match (&job.result, &job.error) {
            (Some(result), _) => one_line(&result.text, 40),
            (None, Some(error)) => one_line(&job_view::describe_error(error), 40),
            (None, None) => String::new(),
        };
        table.add_row([
            job.id.to_string(),
            job.state.to_string(),
            account.to_owned(),
            one_line(&job.client, 20),
            relative(job.created_at, now),
            took.unwrap_or_else(|| "-".into()),
            end,
        ]);
    }
    table
}

fn state(text: &str) -> Result<State, String> {
    State::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
        format!("use one of {}", names.join(", "))
    })
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<Time, String> {
    if let Ok(span) = text.parse::<Span>() {
        return Ok(clock::now() - span.0);
    }
    text.parse()
        .map_err(|_| "write RFC 3339 (2026-11-23T20:00:00Z) or a span (24h)".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn states_come_by_commas_and_again() {
        let line = ["x", "--state", "queued,running", "--state", "failed"];
        let states = Line::parse_from(line).args.state;
        assert_eq!(states, [State::Queued, State::Running, State::Failed]);
        assert!(Line::try_parse_from(["x", "--state", "asleep"]).is_err());
    }

    #[test]
    fn a_span_is_that_long_ago() {
        let day = moment("24h").unwrap();
        assert!(clock::now().since(day).as_secs().abs_diff(86_400) < 60);
        assert_eq!(
            moment("2026-11-23T20:00:00Z").unwrap().to_string(),
            "2026-11-23T20:00:00.000Z"
        );
        assert!(moment("yesterday").is_err());
    }
}
