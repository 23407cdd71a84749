//! `sluice accounts`: what there is to run prompts on.

use clap::Subcommand;
use comfy_table::Table;
use sluice_shared::{
    api::AccountView,
    clock,
    domain::{AccountId, Time},
};

use super::Server;
use crate::{
    Exit, Failure,
    home::Home,
    output::{self, one_line, relative},
};

/// Show, pause and resume accounts
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sluice accounts
  sluice accounts pause main     # takes no new jobs; what runs goes on
  sluice accounts resume main    # also after its credential was mended or its credit topped up"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every account (what `sluice accounts` does by itself)
    List,
    /// Let accounts take no new jobs; what runs goes on
    Pause {
        /// The accounts
        #[arg(value_name = "ID", required = true)]
        ids: Vec<AccountId>,
    },
    /// Put accounts back to work
    Resume {
        /// The accounts
        #[arg(value_name = "ID", required = true)]
        ids: Vec<AccountId>,
    },
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let (ids, pause) = match &args.action {
        None | Some(Action::List) => {
            let list = client.accounts().await?;
            if args.json {
                output::json(&list)?;
            } else if list.accounts.is_empty() {
                output::note("no accounts; add one to sluice.toml as [accounts.NAME]");
            } else {
                output::table(&table(&list.accounts, clock::now()))?;
            }
            return Ok(Exit::Done);
        }
        Some(Action::Pause { ids }) => (ids, true),
        Some(Action::Resume { ids }) => (ids, false),
    };
    let mut all = true;
    for id in ids {
        let done = if pause {
            client.pause(id).await
        } else {
            client.resume(id).await
        };
        match done {
            Ok(account) if args.json => output::json_line(&account)?,
            Ok(account) => output::line(&format!("{id} is {}", account.standing.as_str()))?,
            Err(error) => {
                all = false;
                super::report_one(id.as_str(), error)?;
            }
        }
    }
    Ok(Exit::when(all))
}

fn table(accounts: &[AccountView], now: Time) -> Table {
    let mut table = output::columns([
        "ACCOUNT",
        "PROVIDER",
        "STANDING",
        "IN FLIGHT",
        "WORKERS",
        "MODELS",
        "TAGS",
        "",
    ]);
    for account in accounts {
        let cooling = account.cooldown_until.filter(|until| *until > now);
        let standing = match cooling {
            Some(until) => {
                format!(
                    "{}, cooling, back {}",
                    account.standing.as_str(),
                    relative(until, now)
                )
            }
            None => account.standing.as_str().into(),
        };
        let models = if account.models.is_empty() {
            "any".into()
        } else {
            account.models.join(", ")
        };
        table.add_row([
            account.id.to_string(),
            account.provider.clone(),
            standing,
            format!("{}/{}", account.in_flight, account.max_concurrency),
            account
                .workers
                .map_or_else(|| "?".into(), |workers| workers.to_string()),
            one_line(&models, 60),
            one_line(&account.tags.join(", "), 40),
            account
                .reason
                .as_deref()
                .map(|reason| one_line(reason, 80))
                .unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_says_why_an_account_rests() {
        let account: AccountView = serde_json::from_value(json!({
            "id": "main", "provider": "anthropic", "models": [], "tags": ["fast", "eu"],
            "max_concurrency": 8, "weight": 1, "standing": "active", "in_flight": 3,
            "cooldown_until": "2026-11-23T20:01:00.000Z", "reason": "429: slow\ndown",
        }))
        .unwrap();
        let now = "2026-11-23T20:00:00.000Z".parse().unwrap();
        let text = table(&[account], now).to_string();
        for part in [
            "main",
            "cooling, back in 1m 0s",
            "3/8",
            "any",
            "fast, eu",
            "429: slow down",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
