//! From what the configuration says about a credential to the secret itself.

use secrecy::{ExposeSecret, SecretString};
use sluice_shared::config::Credential;

use super::{Account, BuildError};

/// The names of the three keys that may give one credential.
pub(super) struct Keys {
    pub(super) value: &'static str,
    pub(super) env: &'static str,
    pub(super) file: &'static str,
}

/// An API key.
pub(super) const API_KEY: Keys = Keys {
    value: "api_key",
    env: "api_key_env",
    file: "api_key_file",
};
/// A long-lived OAuth token of the Claude Code CLI.
pub(super) const OAUTH_TOKEN: Keys = Keys {
    value: "oauth_token",
    env: "oauth_token_env",
    file: "oauth_token_file",
};

/// The secret that `credential` stands for; `None` when none was configured.
pub(super) fn resolve(
    account: &Account<'_>,
    keys: &Keys,
    credential: &Credential,
) -> Result<Option<SecretString>, BuildError> {
    let key = match credential {
        Credential { value: Some(_), .. } => keys.value,
        Credential { env: Some(_), .. } => keys.env,
        Credential { file: _, .. } => keys.file,
    };
    let secret = credential.resolve().map_err(|error| {
        let what_to_do = "set it for the worker, or name another source of the credential";
        account.error(key, format!("{error}; {what_to_do}"))
    })?;
    match secret {
        Some(secret) if secret.expose_secret().trim().is_empty() => {
            Err(account.error(key, "holds nothing; put the credential there"))
        }
        other => Ok(other),
    }
}

/// Where the credential comes from, for people: never the secret itself.
pub(super) fn source(keys: &Keys, credential: &Credential) -> Option<String> {
    match credential {
        Credential { value: Some(_), .. } => Some(format!("`{}` in the configuration", keys.value)),
        Credential {
            env: Some(name), ..
        } => Some(format!("the key in the variable {name}")),
        Credential {
            file: Some(path), ..
        } => Some(format!("the key in {}", path.display())),
        Credential {
            value: None,
            env: None,
            file: None,
        } => None,
    }
}
