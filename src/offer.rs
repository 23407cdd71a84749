//! What this machine has that could be an account: keys in the environment, a logged-in CLI.
//! Nothing is used unasked; the exact lines for the configuration are offered.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde::Deserialize;
use sluice_shared::config::{Config, Provider};
use tokio::process::Command;

/// The CLI takes half a second to start, on a busy machine more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that could be an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// What was found.
    pub(crate) found: String,
    /// The lines of `sluice.toml` that use it.
    pub(crate) lines: String,
    /// What to know before.
    pub(crate) note: Option<&'static str>,
}

/// What there is on this machine that the configuration does not use yet.
pub(crate) async fn look(config: &Config) -> Vec<Offer> {
    let has = |provider: &str| {
        config
            .accounts
            .values()
            .any(|account| account.provider.name() == provider)
    };
    let mut offers = Vec::new();
    for (variable, provider, model) in [
        ("ANTHROPIC_API_KEY", "anthropic", "claude-sonnet-5"),
        ("OPENAI_API_KEY", "openai", "gpt-5-mini"),
    ] {
        let is_set = std::env::var_os(variable).is_some_and(|value| !value.is_empty());
        if is_set && !has(provider) {
            offers.push(for_key(variable, provider, model));
        }
    }
    if !config
        .accounts
        .values()
        .any(|account| matches!(account.provider, Provider::ClaudeCli(_)))
        && let Some(offer) = for_cli().await
    {
        offers.push(offer);
    }
    offers
}

fn for_key(variable: &str, provider: &str, model: &str) -> Offer {
    Offer {
        found: format!("{variable} is set"),
        lines: format!(
            "[accounts.{provider}]\nprovider = \"{provider}\"\napi_key_env = \"{variable}\"\n\
             default_model = \"{model}\"   # for jobs that name none"
        ),
        note: None,
    }
}

/// What `claude auth status` prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthStatus {
    logged_in: bool,
}

/// Asks the CLI whether it is logged in, which it answers without the network.
async fn for_cli() -> Option<Offer> {
    let asked = Command::new("claude")
        .args(["auth", "status"])
        // A key in the environment is another offer, and would hide the login.
        .env_remove("ANTHROPIC_API_KEY")
        .env_remove("ANTHROPIC_AUTH_TOKEN")
        .env_remove("CLAUDE_CODE_OAUTH_TOKEN")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
    let status: AuthStatus = serde_json::from_slice(&output.stdout).ok()?;
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let directory = set("CLAUDE_CONFIG_DIR")
        .or_else(|| Some(set("HOME")?.join(".claude")))
        .filter(|_| status.logged_in)?;
    Some(Offer {
        found: "the `claude` CLI is logged in".into(),
        lines: format!(
            "[accounts.claude]\nprovider = \"claude-cli\"\nconfig_dir = {}\nmax_concurrency = 2",
            toml::Value::from(directory.to_string_lossy().into_owned())
        ),
        note: Some("a subscription login is for its owner's own work; for a team, use API keys"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offered_lines_are_a_configuration() {
        for (variable, provider) in [
            ("ANTHROPIC_API_KEY", "anthropic"),
            ("OPENAI_API_KEY", "openai"),
        ] {
            let offer = for_key(variable, provider, "some-model");
            let config = Config::from_toml(&offer.lines).unwrap();
            assert_eq!(config.accounts[provider].provider.name(), provider);
        }
    }
}
