//! One file a command: its arguments, and what it does.

pub(crate) mod accounts;
pub(crate) mod api;
pub(crate) mod batch;
pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod get;
pub(crate) mod health;
mod job_options;
mod job_view;
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod listen;
pub(crate) mod migrate;
pub(crate) mod plan;
pub(crate) mod retry;
pub(crate) mod routing;
pub(crate) mod submit;
pub(crate) mod up;
pub(crate) mod worker;

pub(crate) use job_options::JobOptions;

use std::path::{Path, PathBuf};

use sluice_shared::{
    config::Config,
    domain::{JobId, Span, Time},
};

use crate::{
    Failure,
    client::{Client, ClientError, DEFAULT_URL},
    home::Home,
    output,
};

/// Which API a client command speaks to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Server {
    /// Where the API is
    #[arg(
        long,
        env = "SLUICE_URL",
        hide_env = true,
        value_name = "URL",
        default_value = DEFAULT_URL,
        help_heading = "Server"
    )]
    url: String,
}

impl Server {
    pub(crate) fn client(&self, home: &Home) -> Result<Client, ClientError> {
        // An empty variable means the same as none.
        let url = if self.url.trim().is_empty() {
            DEFAULT_URL
        } else {
            &self.url
        };
        Client::from_environment(url, home)
    }
}

/// The configuration file that a server role reads: the one named, else the first that is there.
pub(crate) fn config_file(named: Option<&Path>, home: &Home) -> Option<PathBuf> {
    let found = || {
        [PathBuf::from("sluice.toml"), home.config_file()]
            .into_iter()
            .find(|path| path.is_file())
    };
    named.map(Path::to_owned).or_else(found)
}

/// The configuration of a server role.
pub(crate) fn load_config(named: Option<&Path>, home: &Home) -> Result<Config, Failure> {
    Ok(Config::load(config_file(named, home).as_deref())?)
}

/// Tells of one of several that could not be done. Only what would fail for all of them alike is
/// an error: the rest are still tried.
fn report_one(id: &str, error: ClientError) -> Result<(), Failure> {
    match error.status() {
        Some(401) | None => Err(error.into()),
        Some(_) => {
            output::note(&format!("{id}: {}", error.explain()));
            Ok(())
        }
    }
}

/// `KEY=VALUE` as a pair.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("write KEY=VALUE".into()),
    }
}

/// `KEY=JSON` as a pair; what is no JSON is taken as a string, so that `stop=END` works.
fn key_json(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = key_value(text)?;
    let value = serde_json::from_str(&value).unwrap_or(serde_json::Value::String(value));
    Ok((key, value))
}

fn span(text: &str) -> Result<Span, String> {
    text.parse()
        .map_err(|_| "write for example 30s, 5m or \"1h 30m\"".into())
}

fn time(text: &str) -> Result<Time, String> {
    text.parse()
        .map_err(|_| "write RFC 3339, for example 2026-11-23T20:00:00Z".into())
}

fn job_id(text: &str) -> Result<JobId, String> {
    text.parse()
        .map_err(|_| "a job id looks like 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("=b").is_err());
        assert!(key_value("a").is_err());
    }

    #[test]
    fn parameters_are_json_or_else_text() {
        assert_eq!(key_json("n=7").unwrap().1, serde_json::json!(7));
        assert_eq!(
            key_json("stop=[\"a\"]").unwrap().1,
            serde_json::json!(["a"])
        );
        assert_eq!(key_json("stop=END").unwrap().1, serde_json::json!("END"));
    }

    #[test]
    fn the_configuration_that_is_named_is_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        assert_eq!(
            config_file(Some(Path::new("x.toml")), &home),
            Some("x.toml".into())
        );
        assert_eq!(config_file(None, &home), None);
        std::fs::write(home.config_file(), "").unwrap();
        assert_eq!(config_file(None, &home), Some(home.config_file()));
    }
}
