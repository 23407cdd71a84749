//! `sluice keys`: who may do what.

use clap::{Subcommand, builder::PossibleValue};
use sluice_shared::{
    api::{NewKey, Scope},
    clock,
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
    },
    /// Revoke a key, at once and for good
    Revoke {
        /// The key's id
        #[arg(value_name = "ID")]
        id: Uuid,
    },
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
            let mut table = output::columns(["ID", "NAME", "KEY", "SCOPES", "MADE", ""]);
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
                    relative(key.created_at, now),
                    revoked.unwrap_or_default(),
                ]);
            }
            output::table(&table)?;
        }
        Some(Action::Create { name, scopes }) => {
            let scopes = scopes.iter().map(|scope| scope.0).collect();
            let created = client
                .create_key(&NewKey {
                    name: name.clone(),
                    scopes,
                })
                .await?;
            if args.json {
                output::json(&created)?;
            } else {
                output::note("The key is shown this once; only its hash is kept.");
                output::line(&created.key)?;
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
}
