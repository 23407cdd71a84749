//! The configuration: one typed value from the defaults, a file and the environment.
//!
//! `sluice.default.toml` is the one place where every key is documented; it is also the lowest
//! layer, so that no default hides in code. A key that is not in it is an error.

mod account;
mod first_release;
mod limits;
mod setting;
mod warm_cli;
mod webhooks;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub use account::{
    AccountConfig, ClaudeCli, Command, Credential, CredentialError, Faults, HttpApi, Provider,
    Simulated,
};
pub use setting::SettingError;
pub use warm_cli::WarmCli;
pub use webhooks::Webhooks;

use self::first_release::FirstRelease;
use crate::domain::{AccountId, Span, route::Strategy};

/// Every setting with its default and a comment.
pub const DEFAULTS: &str = include_str!("../../sluice.default.toml");

/// Environment variables with the prefix `SLUICE_` that are no settings.
const NOT_SETTINGS: [&str; 7] = [
    "home",
    "url",
    "api_key",
    "config",
    "master_key",
    "master_key_file",
    "webhook_secret",
];

/// The whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The HTTP API.
    pub api: Api,
    /// Batches.
    pub batches: Batches,
    /// The dispatcher and the reaper.
    pub dispatch: Dispatch,
    /// The worker.
    pub worker: Worker,
    /// The truth plane, distributed.
    pub postgres: Postgres,
    /// The work plane, distributed.
    pub rabbitmq: Rabbitmq,
    /// The live plane, distributed.
    pub redis: Redis,
    /// Logs.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// Webhooks.
    pub webhooks: Webhooks,
    /// The accounts by name.
    pub accounts: BTreeMap<AccountId, AccountConfig>,
}

/// The HTTP API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Api {
    pub listen: SocketAddr,
    pub max_prompt_bytes: usize,
    pub max_jobs_per_submit: usize,
    pub max_body_bytes: usize,
    pub request_timeout: Span,
    pub max_wait: Span,
    pub idempotency_ttl: Span,
}

/// Batches.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Batches {
    pub max_jobs: u64,
    pub max_bytes: u64,
    pub max_uploads: usize,
}

/// The dispatcher and the reaper.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Dispatch {
    pub strategy: Strategy,
    pub batch: usize,
    pub poll: Span,
    pub reap: Span,
    pub rescue_after: Span,
}

/// The worker.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Worker {
    pub id: String,
    pub accounts: Vec<String>,
    pub health_listen: String,
    pub heartbeat: Span,
    pub lease_after: Span,
    pub lease_renew: Span,
    pub shutdown_grace: Span,
    pub max_output_bytes: usize,
}

/// The truth plane, distributed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Postgres {
    pub url: SecretString,
    pub max_connections: u32,
}

/// The work plane, distributed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Rabbitmq {
    pub url: SecretString,
    pub management_url: SecretString,
}

/// The live plane, distributed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Redis {
    pub url: SecretString,
}

/// Logs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Traces.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Telemetry {
    pub otlp_endpoint: String,
}

/// Why a configuration is refused. The message names the key and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("there is no configuration file at {}", .0.display())]
    NoSuchFile(PathBuf),
    /// It does not parse, or has an unknown key.
    #[error("configuration: {0}")]
    Parse(Box<figment::Error>),
    /// A value that cannot be.
    #[error("configuration: {key}: {problem}")]
    Value {
        /// The key at fault.
        key: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl ConfigError {
    /// A bad value at `key`.
    pub fn value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

impl Config {
    /// Reads the configuration: the defaults, the variables of the first release (also from
    /// `.env`), then `file`, then the environment.
    ///
    /// # Errors
    /// When the file is missing, a key is unknown, or a value cannot be; the message names it.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let first = FirstRelease::read(&first_release::variables(Path::new(".env"))?)?;
        let mut figment = Figment::from(Toml::string(DEFAULTS)).merge(first.settings());
        if let Some(path) = file {
            if !path.is_file() {
                return Err(ConfigError::NoSuchFile(path.to_owned()));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        Self::extract(&first.complete(figment.merge(environment()))?)
    }

    /// Reads the configuration from the defaults and `text`, without the environment.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::extract(&Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(text)))
    }

    fn extract(figment: &Figment) -> Result<Self, ConfigError> {
        let config: Self = figment
            .extract()
            .map_err(|error| ConfigError::Parse(Box::new(error)))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("api.max_prompt_bytes", self.api.max_prompt_bytes),
            ("api.max_jobs_per_submit", self.api.max_jobs_per_submit),
            ("api.max_body_bytes", self.api.max_body_bytes),
            ("batches.max_uploads", self.batches.max_uploads),
            ("dispatch.batch", self.dispatch.batch),
            ("worker.max_output_bytes", self.worker.max_output_bytes),
        ];
        for (key, number) in positive {
            if number == 0 {
                return Err(ConfigError::value(key, "must be at least 1"));
            }
        }
        let spans = [
            ("api.request_timeout", self.api.request_timeout),
            ("dispatch.poll", self.dispatch.poll),
            ("dispatch.reap", self.dispatch.reap),
            ("worker.heartbeat", self.worker.heartbeat),
            ("worker.lease_after", self.worker.lease_after),
            ("worker.lease_renew", self.worker.lease_renew),
        ];
        for (key, span) in spans {
            if span.0.is_zero() {
                return Err(ConfigError::value(key, "must be longer than 0s"));
            }
        }
        if !self.worker.health_listen.is_empty() {
            self.worker
                .health_listen
                .parse::<SocketAddr>()
                .map_err(|_| {
                    ConfigError::value("worker.health_listen", "write ADDR:PORT, or leave it empty")
                })?;
        }
        for id in self.worker.accounts.iter().filter(|id| *id != "*") {
            // It may well be made at run time, later.
            if id.parse::<AccountId>().is_err() {
                return Err(ConfigError::value(
                    "worker.accounts",
                    format!("`{id}` is no name of an account; write names, or \"*\" for all"),
                ));
            }
        }
        self.webhooks.validate()?;
        self.accounts
            .iter()
            .try_for_each(|(id, account)| account.validate(id))
    }

    /// The URL at `key`, which a role cannot do without.
    ///
    /// # Errors
    /// When it is empty; the message names the key and the environment variable.
    pub fn required_url<'a>(
        key: &'static str,
        url: &'a SecretString,
    ) -> Result<&'a str, ConfigError> {
        match url.expose_secret() {
            "" => {
                let variable = key.to_uppercase().replace('.', "__");
                Err(ConfigError::value(
                    key,
                    format!("is not set; set it in sluice.toml or as SLUICE_{variable}"),
                ))
            }
            url => Ok(url),
        }
    }
}

fn environment() -> Env {
    Env::prefixed("SLUICE_")
        .filter(|key| {
            let key = key.as_str();
            !NOT_SETTINGS
                .iter()
                .any(|name| key.eq_ignore_ascii_case(name))
                && !key.to_ascii_lowercase().starts_with("test_")
        })
        .split("__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_a_configuration() {
        let config = Config::from_toml("").unwrap();
        assert!(config.accounts.is_empty());
        assert!(config.api.listen.ip().is_loopback());
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = Config::from_toml("[api]\nlisten_on = \"x\"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("listen_on"), "{error}");
        let error = Config::from_toml("[accounts.a]\nprovider = \"simulated\"\nlatncy = \"1s\"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("latncy"), "{error}");
    }

    #[test]
    fn a_missing_url_names_its_variable() {
        let config = Config::from_toml("").unwrap();
        let error = Config::required_url("postgres.url", &config.postgres.url).unwrap_err();
        assert!(
            error.to_string().contains("SLUICE_POSTGRES__URL"),
            "{error}"
        );
    }

    #[test]
    fn a_password_is_asked_for_nowhere() {
        let error =
            Config::from_toml("[accounts.a]\nprovider = \"claude-cli\"\npassword = \"hunter2\"")
                .unwrap_err()
                .to_string();
        assert!(
            error.contains("password") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let config = Config::from_toml(
            "[accounts.a]\nprovider = \"anthropic\"\napi_key = \"sk-hidden\"\n\
             [postgres]\nurl = \"postgres://u:hidden@h/d\"",
        )
        .unwrap();
        assert!(!format!("{config:?}").contains("hidden"));
    }
}
