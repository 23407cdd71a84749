//! `sluice keys`: who may do what.

use clap::{Subcommand, builder::PossibleValue};
use sluice_shared::{
    api::{KeyChange, NewKey, Scope},
    clock,
    domain::Quota,
};
use uuid::Uuid;

use super::Server;
use crate::{
    Exit, Failure,
    home::Home,
    output::{self, one_line, relative},
};

/// Show, make and revoke API keys
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sluice keys
  sluice keys create ci --scope submit
  sluice keys create nightly --weight 1 --max-running 4 --tokens-per-day 2000000
  sluice keys set 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42 --weight 5 --max-running none
  sluice keys revoke 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42

Scopes, each with what stands before it:
  read     look at everything
  submit   submit jobs, cancel and retry its own
  operate  cancel and retry anyone's jobs, steer accounts
  admin    make and revoke keys"
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
    /// Show every key, without its secret (what `sluice keys` does by itself)
    List,
    /// Make a key; its secret is shown this once
    Create {
        /// Its name: the client that jobs are counted for
        name: String,
        /// What it may do
        #[arg(long = "scope", value_delimiter = ',', default_value = "submit")]
        scopes: Vec<ScopeName>,
        #[command(flatten)]
        limits: Limits,
    },
    /// Change the weight and quota of a key's client; what is not named stays as it is
    Set {
        /// The key's id
        #[arg(value_name = "ID")]
        id: Uuid,
        #[command(flatten)]
        limits: Limits,
    },
    /// Revoke a key, at once and for good
    Revoke {
        /// The key's id
        #[arg(value_name = "ID")]
        id: Uuid,
    },
}

/// What a client may have. Keys of one name are one client and share it.
#[derive(Debug, Default, clap::Args)]
struct Limits {
    /// Its share beside other clients with jobs waiting, 1 to 1000
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Requests to the API in a minute; `none` lifts it, as with all of these
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<Most>,
    /// Jobs waiting; a submit beyond it is refused
    #[arg(long, value_name = "N")]
    max_waiting: Option<Most>,
    /// Jobs running at once; those beyond it wait
    #[arg(long, value_name = "N")]
    max_running: Option<Most>,
    /// Input and output tokens in a day (UTC)
    #[arg(long, value_name = "N")]
    tokens_per_day: Option<Most>,
    /// Input and output tokens in a month (UTC)
    #[arg(long, value_name = "N")]
    tokens_per_month: Option<Most>,
    /// Cost in a day (UTC), in millionths of a US dollar
    #[arg(long, value_name = "N")]
    cost_microusd_per_day: Option<Most>,
    /// Cost in a month (UTC), in millionths of a US dollar
    #[arg(long, value_name = "N")]
    cost_microusd_per_month: Option<Most>,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug)]
struct Most(Option<u64>);

impl std::str::FromStr for Most {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self(None)),
            number => match number.parse() {
                Ok(number) if number > 0 => Ok(Self(Some(number))),
                _ => Err("write a whole number from 1, or `none`"),
            },
        }
    }
}

impl Limits {
    fn change(&self) -> KeyChange {
        let limits = [
            ("requests_per_minute", self.requests_per_minute),
            ("max_waiting", self.max_waiting),
            ("max_running", self.max_running),
            ("tokens_per_day", self.tokens_per_day),
            ("tokens_per_month", self.tokens_per_month),
            ("cost_microusd_per_day", self.cost_microusd_per_day),
            ("cost_microusd_per_month", self.cost_microusd_per_month),
        ];
        let given = limits
            .into_iter()
            .filter_map(|(name, most)| Some((name.to_owned(), most?.0.into())));
        KeyChange {
            weight: self.weight,
            quota: given.collect(),
        }
    }
}

/// A quota in one line: only the limits that there are.
fn in_words(quota: &Quota) -> String {
    let limits = [
        (quota.requests_per_minute.map(u64::from), "requests/min"),
        (quota.max_waiting.map(u64::from), "waiting"),
        (quota.max_running.map(u64::from), "running"),
        (quota.tokens_per_day, "tokens/day"),
        (quota.tokens_per_month, "tokens/month"),
        (quota.cost_microusd_per_day, "µ$/day"),
        (quota.cost_microusd_per_month, "µ$/month"),
    ];
    let words: Vec<String> = limits
        .into_iter()
        .filter_map(|(most, unit)| Some(format!("{} {unit}", most?)))
        .collect();
    words.join(", ")
}

/// A scope as it is written on the command line.
#[derive(Clone, Copy, Debug)]
struct ScopeName(Scope);

impl ScopeName {
    fn name(self) -> &'static str {
        match self.0 {
            Scope::Read => "read",
            Scope::Submit => "submit",
            Scope::Operate => "operate",
            Scope::Admin => "admin",
        }
    }
}

impl clap::ValueEnum for ScopeName {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(Scope::Read),
            Self(Scope::Submit),
            Self(Scope::Operate),
            Self(Scope::Admin),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    match &args.action {
        None | Some(Action::List) => {
            let list = client.keys().await?;
            if args.json {
                output::json(&list)?;
                return Ok(Exit::Done);
            }
            let now = clock::now();
            let mut table =
                output::columns(["ID", "NAME", "KEY", "SCOPES", "WEIGHT", "QUOTA", "MADE", ""]);
            for key in &list.keys {
                let scopes: Vec<&str> = key
                    .scopes
                    .iter()
                    .map(|scope| ScopeName(*scope).name())
                    .collect();
                let revoked = key
                    .revoked_at
                    .map(|at| format!("revoked {}", relative(at, now)));
                table.add_row([
                    key.id.to_string(),
                    one_line(&key.name, 40),
                    format!("{}…", one_line(&key.prefix, 20)),
                    scopes.join(", "),
                    key.weight.to_string(),
                    in_words(&key.quota),
                    relative(key.created_at, now),
                    revoked.unwrap_or_default(),
                ]);
            }
            output::table(&table)?;
        }
        Some(Action::Create {
            name,
            scopes,
            limits,
        }) => {
            let KeyChange { weight, quota } = limits.change();
            let quota = (!quota.is_empty())
                .then(|| serde_json::from_value(quota.into()))
                .transpose()
                .map_err(|error| Failure::usage(format!("a limit: {error}")))?;
            let scopes = scopes.iter().map(|scope| scope.0).collect();
            let created = client
                .create_key(&NewKey {
                    name: name.clone(),
                    scopes,
                    weight,
                    quota,
                })
                .await?;
            if args.json {
                output::json(&created)?;
            } else {
                output::note("The key is shown this once; only its hash is kept.");
                output::line(&created.key)?;
            }
        }
        Some(Action::Set { id, limits }) => {
            let view = client.change_key(*id, &limits.change()).await?;
            if args.json {
                output::json(&view)?;
            } else {
                let quota = in_words(&view.quota);
                let quota = if quota.is_empty() { "no quota" } else { &quota };
                output::note(&format!("{}: weight {}, {quota}", view.name, view.weight));
            }
        }
        Some(Action::Revoke { id }) => {
            client.revoke_key(*id).await?;
            output::note(&format!("{id} is revoked"));
        }
    }
    Ok(Exit::Done)
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
    fn a_new_key_may_submit_unless_said_otherwise() {
        let scopes = |line: &[&str]| match Line::parse_from(line).args.action {
            Some(Action::Create { scopes, .. }) => {
                scopes.into_iter().map(ScopeName::name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(scopes(&["x", "create", "ci"]), ["submit"]);
        assert_eq!(
            scopes(&["x", "create", "ci", "--scope", "read,operate"]),
            ["read", "operate"]
        );
        assert!(Line::try_parse_from(["x", "create", "ci", "--scope", "root"]).is_err());
    }

    #[test]
    fn only_the_limits_that_are_named_change() {
        let id = "0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42";
        let line = [
            "x",
            "set",
            id,
            "--weight",
            "3",
            "--max-running",
            "none",
            "--max-waiting",
            "9",
        ];
        let Some(Action::Set { limits, .. }) = Line::parse_from(line).args.action else {
            panic!("it is no change");
        };
        let change = limits.change();
        assert_eq!(change.weight, Some(3));
        let quota = serde_json::Value::Object(change.quota);
        assert_eq!(
            quota,
            serde_json::json!({ "max_running": null, "max_waiting": 9 })
        );
        assert!(Line::try_parse_from(["x", "set", id, "--max-running", "0"]).is_err());
    }
}
