//! What the command line looks like.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::{Exit, Failure, commands, home::Home};

/// A distributed job queue for LLM prompts.
///
/// Sluice takes prompts as jobs, runs them on your accounts (an API key, a self-hosted endpoint, a
/// logged-in CLI) inside their limits, and keeps every result.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    max_term_width = 100,
    after_help = "\
Start here:
  sluice up                          Run everything in one process at http://127.0.0.1:3000
  sluice submit --wait 'Say hello.'  Run one prompt and print the answer
  sluice batch prompts.jsonl         Run a file of prompts
  sluice doctor                      Check the set-up and say how to mend it

Environment:
  SLUICE_URL      Where the client finds the API [default: http://127.0.0.1:3000]
  SLUICE_API_KEY  The client's key [default: the first admin key in the data folder]
  SLUICE_HOME     The data folder [default: ~/.local/share/sluice]
  SLUICE_CONFIG   The configuration file
  SLUICE_<SECTION>__<KEY>  Any setting, such as SLUICE_API__LISTEN"
)]
pub struct Cli {
    /// The configuration file of the server and of `doctor` [default: ./sluice.toml, else
    /// sluice.toml in the data folder, else none]
    #[arg(
        long,
        global = true,
        env = "SLUICE_CONFIG",
        hide_env = true,
        value_name = "FILE"
    )]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

// Each command is described where its arguments are.
#[derive(Debug, Subcommand)]
enum Command {
    Up(commands::up::Args),
    Api(commands::api::Args),
    Worker(commands::worker::Args),
    /// Bring the database of a distributed Sluice up to date
    ///
    /// Idempotent. It also makes the first admin key when there is none, and keeps it in the data
    /// folder.
    Migrate,
    Submit(Box<commands::submit::Args>),
    Batch(Box<commands::batch::Args>),
    Get(commands::get::Args),
    List(commands::list::Args),
    Listen(commands::listen::Args),
    Cancel(commands::cancel::Args),
    Retry(commands::retry::Args),
    Plan(commands::plan::Args),
    Accounts(commands::accounts::Args),
    Routing(commands::routing::Args),
    Keys(commands::keys::Args),
    Health(commands::health::Args),
    Doctor(commands::doctor::Args),
    Completions(commands::completions::Args),
}

impl Cli {
    /// Runs the command to its end.
    ///
    /// # Errors
    /// When it could not do what was asked.
    pub fn run(self) -> Result<Exit, Failure> {
        // Every TLS connection of the process uses this provider; it is there once, before any.
        if rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
        {
            return Err(Failure::Role(anyhow::anyhow!(
                "the TLS provider was set already"
            )));
        }
        let config = self
            .config
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty());
        if let Command::Completions(args) = &self.command {
            return commands::completions::run(args);
        }
        let runtime = if self.command.is_server() {
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
        } else {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
        };
        let runtime = runtime.map_err(Failure::io("the runtime"))?;
        let done = runtime.block_on(self.command.run(config));
        // A read of standard input that is still waiting must not hold up the end.
        runtime.shutdown_background();
        done
    }
}

impl Command {
    fn is_server(&self) -> bool {
        matches!(
            self,
            Self::Up(_) | Self::Api(_) | Self::Worker(_) | Self::Migrate
        )
    }

    async fn run(&self, config: Option<&Path>) -> Result<Exit, Failure> {
        let home = Home::find()?;
        match self {
            Self::Up(args) => Box::pin(commands::up::run(args, config, &home)).await,
            Self::Api(args) => Box::pin(commands::api::run(args, config, &home)).await,
            Self::Worker(args) => Box::pin(commands::worker::run(args, config, &home)).await,
            Self::Migrate => Box::pin(commands::migrate::run(config, &home)).await,
            Self::Submit(args) => Box::pin(commands::submit::run(args, &home)).await,
            Self::Batch(args) => Box::pin(commands::batch::run(args, &home)).await,
            Self::Get(args) => Box::pin(commands::get::run(args, &home)).await,
            Self::List(args) => Box::pin(commands::list::run(args, &home)).await,
            Self::Listen(args) => Box::pin(commands::listen::run(args, &home)).await,
            Self::Cancel(args) => Box::pin(commands::cancel::run(args, &home)).await,
            Self::Retry(args) => Box::pin(commands::retry::run(args, &home)).await,
            Self::Plan(args) => Box::pin(commands::plan::run(args, &home)).await,
            Self::Accounts(args) => Box::pin(commands::accounts::run(args, config, &home)).await,
            Self::Routing(args) => Box::pin(commands::routing::run(args, &home)).await,
            Self::Keys(args) => Box::pin(commands::keys::run(args, &home)).await,
            Self::Health(args) => Box::pin(commands::health::run(args, &home)).await,
            Self::Doctor(args) => Box::pin(commands::doctor::run(args, config, &home)).await,
            Self::Completions(args) => commands::completions::run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_can_be_named_before_and_after_the_command() {
        for line in [
            ["sluice", "--config", "a.toml", "up"],
            ["sluice", "up", "--config", "a.toml"],
        ] {
            assert_eq!(Cli::parse_from(line).config, Some("a.toml".into()));
        }
    }
}
