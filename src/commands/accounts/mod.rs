//! `sluice accounts`: what there is to run prompts on.

mod login;
mod settings;

use std::{path::Path, time::Duration};

use clap::Subcommand;
use comfy_table::Table;
use serde_json::Value;
use sluice_shared::{
    api::{AccountChange, AccountList, AccountSource, AccountTest, AccountView, NewAccount},
    clock,
    domain::{AccountId, Standing, Time},
};

use self::settings::Settings;
use super::Server;
use crate::{
    Exit, Failure,
    client::{Client, ClientError},
    home::Home,
    output::{self, one_line, relative},
};

/// Show, add, change, steer, test and remove accounts
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sluice accounts
  sluice accounts add main anthropic --secret-env api_key=ANTHROPIC_API_KEY
  sluice accounts add gpu openai --set base_url=http://gpu:8000 --tag local --max-concurrency 64
  sluice accounts edit gpu --max-concurrency 128
  sluice accounts test main      # one tiny real call
  sluice accounts pause main     # takes no new jobs; what runs goes on
  sluice accounts resume main    # also after its credential was mended or its credit topped up
  sluice accounts remove gpu     # waits until it is empty"
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
    /// Add an account while everything runs; it takes waiting jobs at once
    Add {
        /// Its name
        #[arg(value_name = "ID")]
        id: AccountId,
        /// anthropic, openai, claude-cli, command or simulated
        #[arg(value_name = "PROVIDER")]
        provider: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Change an account that was added so; what is not named stays, secrets included
    Edit {
        /// The account
        #[arg(value_name = "ID")]
        id: AccountId,
        #[command(flatten)]
        settings: Settings,
        /// Take a setting away; may be given again
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
    },
    /// Remove accounts that were added so, when what runs on them has ended
    Remove {
        /// The accounts
        #[arg(value_name = "ID", required = true)]
        ids: Vec<AccountId>,
    },
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
    /// Let accounts run empty, and say when they are
    Drain {
        /// The accounts
        #[arg(value_name = "ID", required = true)]
        ids: Vec<AccountId>,
        /// Do not wait until they are empty
        #[arg(long)]
        no_wait: bool,
    },
    /// Make one tiny real call on accounts, whatever their standing
    Test {
        /// The accounts
        #[arg(value_name = "ID", required = true)]
        ids: Vec<AccountId>,
    },
    /// Log in to an account of the Claude Code CLI, by the CLI itself, on this machine
    Login(login::Args),
}

/// How long one look at an account that drains waits.
const DRAIN_LOOK: Duration = Duration::from_secs(20);

pub(crate) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let action = args.action.as_ref().unwrap_or(&Action::List);
    if let Action::Login(args) = action {
        return login::run(args, file, home).await;
    }
    let client = args.server.client(home)?;
    let ids = match action {
        Action::List => {
            list(&client.accounts().await?, args.json)?;
            return Ok(Exit::Done);
        }
        Action::Add {
            id,
            provider,
            settings,
        } => {
            let made = client
                .add_account(&NewAccount {
                    id: id.clone(),
                    provider: provider.clone(),
                    settings: settings.read()?,
                })
                .await?;
            return said(args.json, &made, "is there");
        }
        Action::Edit {
            id,
            settings,
            unset,
        } => {
            let mut change = settings.read()?;
            change.extend(unset.iter().map(|key| (key.clone(), Value::Null)));
            if change.is_empty() {
                return Err(Failure::usage(
                    "name what is to change, such as --weight 2 or --set KEY=VALUE",
                ));
            }
            let changed = client.change_account(id, &AccountChange(change)).await?;
            return said(args.json, &changed, "is changed");
        }
        Action::Login(_) => return Ok(Exit::Done),
        Action::Remove { ids }
        | Action::Pause { ids }
        | Action::Resume { ids }
        | Action::Drain { ids, .. }
        | Action::Test { ids } => ids,
    };
    let mut all = true;
    for id in ids {
        match one(&client, action, id, args.json).await {
            Ok(well) => all &= well,
            Err(Failure::Client(error)) => {
                all = false;
                super::report_one(id.as_str(), error)?;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(Exit::when(all))
}

/// Does it to one account. Whether all is well.
async fn one(
    client: &Client,
    action: &Action,
    id: &AccountId,
    json: bool,
) -> Result<bool, Failure> {
    let account = match action {
        Action::Pause { .. } => client.pause(id).await?,
        Action::Resume { .. } => client.resume(id).await?,
        Action::Drain { no_wait: true, .. } => client.drain(id, None).await?,
        Action::Drain { .. } => emptied(client, id).await?,
        Action::Test { .. } => {
            let test = client.try_account(id).await?;
            tell(&test, json)?;
            return Ok(test.outcome == "completed");
        }
        Action::Remove { .. } => {
            let account = client.account(id).await?;
            // The API says why it is not to be removed here, and then it must not be drained.
            if account.source == AccountSource::Api && account.in_flight > 0 {
                emptied(client, id).await?;
            }
            client.remove_account(id).await?;
            output::note(&format!("{id} is removed"));
            return Ok(true);
        }
        Action::List | Action::Add { .. } | Action::Edit { .. } | Action::Login(_) => {
            return Ok(true);
        }
    };
    if json {
        output::json_line(&account)?;
    } else if account.standing == Standing::Draining && account.in_flight == 0 {
        output::line(&format!("{id} is empty"))?;
    } else {
        output::line(&format!("{id} is {}", account.standing.as_str()))?;
    }
    Ok(true)
}

/// Drains an account until nothing of it is in flight, however long that takes.
async fn emptied(client: &Client, id: &AccountId) -> Result<AccountView, ClientError> {
    let mut account = client.drain(id, None).await?;
    while account.in_flight > 0 {
        output::note(&format!("{id}: {} in flight", account.in_flight));
        account = client.drain(id, Some(DRAIN_LOOK)).await?;
    }
    Ok(account)
}

fn list(list: &AccountList, json: bool) -> Result<(), Failure> {
    if json {
        output::json(list)?;
    } else if list.accounts.is_empty() {
        output::note(
            "no accounts; add one by `sluice accounts add`, or to sluice.toml as [accounts.NAME]",
        );
    } else {
        output::table(&table(&list.accounts, clock::now()))?;
        for account in &list.accounts {
            for trouble in &account.troubles {
                output::note(&format!(
                    "{}: the worker {} cannot serve it: {}",
                    account.id,
                    one_line(&trouble.worker, 80),
                    one_line(&trouble.problem, 300)
                ));
            }
        }
    }
    Ok(())
}

fn said(json: bool, account: &AccountView, what: &str) -> Result<Exit, Failure> {
    if json {
        output::json(account)?;
    } else {
        output::line(&format!("{} {what}", account.id))?;
    }
    Ok(Exit::Done)
}

fn tell(test: &AccountTest, json: bool) -> Result<(), Failure> {
    if json {
        return output::json_line(test);
    }
    let answer = test.text.as_deref().or(test.detail.as_deref());
    output::line(&format!(
        "{}: {} in {} by {}{}",
        test.account,
        one_line(&test.outcome, 40),
        test.took,
        one_line(&test.worker, 80),
        answer
            .map(|text| format!(": {}", one_line(text, 300)))
            .unwrap_or_default()
    ))
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
