//! `sluice accounts login`: the Claude Code CLI's own login, in an account's config directory.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use sluice_shared::{
    config::{ClaudeCli, Provider},
    domain::AccountId,
};
use tokio::process::Command;

use crate::{Exit, Failure, commands::load_config, home::Home, output};

/// Variables that would stand in the place of a login.
const OTHER_CREDENTIALS: [&str; 3] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The account: one of the configuration, or one made at run time
    #[arg(value_name = "ID")]
    id: AccountId,

    /// Its config directory, if it has one of its own [default: as configured, else
    /// claude/ID in the data folder]
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,

    /// The CLI [default: as configured, else claude]
    #[arg(long, value_name = "PROGRAM")]
    bin: Option<PathBuf>,
}

pub(super) async fn run(args: &Args, file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let config = load_config(file, home)?;
    let id = &args.id;
    let configured: Option<&ClaudeCli> = match config.accounts.get(id).map(|one| &one.provider) {
        Some(Provider::ClaudeCli(cli)) => Some(cli),
        Some(other) => {
            return Err(Failure::usage(format!(
                "`{id}` is an account of {}, which has no login: it needs a key",
                other.name()
            )));
        }
        None => None,
    };
    let bin = args.bin.clone().or_else(|| Some(configured?.bin.clone()));
    let bin = bin.unwrap_or_else(|| "claude".into());
    let dir = args
        .config_dir
        .clone()
        .or_else(|| configured?.config_dir.clone())
        .unwrap_or_else(|| home.path().join("claude").join(id.as_str()));
    let dir = std::path::absolute(&dir).map_err(Failure::io("the config directory"))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|source| Failure::Io {
            what: dir.display().to_string(),
            source,
        })?;
    output::note(&format!(
        "{} auth login, with CLAUDE_CONFIG_DIR={}",
        bin.display(),
        dir.display()
    ));
    let mut login = Command::new(&bin);
    login.args(["auth", "login"]).env("CLAUDE_CONFIG_DIR", &dir);
    for name in OTHER_CREDENTIALS {
        login.env_remove(name);
    }
    let ended = login.status().await.map_err(|source| Failure::Io {
        what: match source.kind() {
            io::ErrorKind::NotFound => format!(
                "{} is not there; install it with `npm install -g @anthropic-ai/claude-code`, or \
                 name it by --bin",
                bin.display()
            ),
            _ => bin.display().to_string(),
        },
        source,
    })?;
    if ended.success() {
        output::note(&format!(
            "{id} is logged in on this machine. `sluice accounts test {id}` tries it, `sluice \
             accounts resume {id}` puts it back to work."
        ));
    }
    Ok(Exit::when(ended.success()))
}
