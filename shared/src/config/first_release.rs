//! The variables of the first release, from the environment or from `.env`, as settings of today.
//!
//! They fill in what is not configured otherwise: the configuration file and the `SLUICE_`
//! variables win over them. One is refused: a password is never asked for.

use std::{collections::BTreeMap, path::Path};

use figment::{Figment, providers::Serialized};
use serde_json::{Map, Value, json};

use super::ConfigError;
use crate::domain::{AccountId, Span, route::Strategy};

/// Every variable of the first release, but for those that end in a number.
const NAMES: [&str; 12] = [
    "LOAD_BALANCE_STRATEGY",
    "RATE_LIMITS",
    "QUEUE_CONCURRENCY",
    "WORKER_ID",
    "WORKER_PORT",
    "ACCOUNT_EMAIL",
    "CLAUDE_CONFIG_PATH",
    "REDIS_URL",
    "DATABASE_URL",
    "RABBITMQ_URL",
    "JWT_SECRET",
    "POSTGRES_PASSWORD",
];

/// Those that end in a number, one for each account.
const NUMBERED: [&str; 2] = ["CLAUDE_EMAIL_", "CLAUDE_PASSWORD_"];

/// Most accounts that the numbered variables can name.
const MOST_ACCOUNTS: u32 = 1000;

/// What the variables of the first release come to.
#[derive(Debug, Default)]
pub(super) struct FirstRelease {
    /// Settings by section; below the file and the environment.
    settings: Map<String, Value>,
    /// `max_concurrency` of the accounts that have none.
    concurrency: Option<u32>,
    /// `limits` of the accounts that have none.
    limits: BTreeMap<AccountId, Value>,
}

/// The variables that are set, those of the environment before those of the file `.env`.
pub(super) fn variables(dotenv: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let is_ours = |name: &String| {
        NAMES.contains(&name.as_str()) || NUMBERED.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut found = BTreeMap::new();
    if dotenv.is_file() {
        let lines = dotenvy::from_path_iter(dotenv);
        let lines = lines.and_then(Iterator::collect::<Result<Vec<_>, _>>);
        // Not the error's own words: they repeat the line, and in it stands a secret.
        let lines = lines.map_err(|_| {
            ConfigError::value(".env", "has a line that is not of the form NAME=VALUE")
        })?;
        found.extend(lines);
    }
    found.extend(
        std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }),
    );
    found.retain(|name, value| is_ours(name) && !value.trim().is_empty());
    Ok(found)
}

impl FirstRelease {
    /// Reads the variables.
    ///
    /// # Errors
    /// When one cannot be; the message names it.
    pub(super) fn read(variables: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let get = |name: &str| variables.get(name).map(|value| value.trim());
        refuse_passwords(variables)?;
        let mut read = Self::default();
        if let Some(strategy) = get("LOAD_BALANCE_STRATEGY") {
            read.set("dispatch", "strategy", strategy_of(strategy)?.into());
        }
        if let Some(id) = get("WORKER_ID") {
            read.set("worker", "id", id.into());
        }
        if let Some(port) = get("WORKER_PORT") {
            let port: u16 = number("WORKER_PORT", port)?;
            // As in the first release: other containers ask it.
            read.set("worker", "health_listen", format!("0.0.0.0:{port}").into());
        }
        if let Some(most) = get("QUEUE_CONCURRENCY") {
            read.concurrency = Some(number("QUEUE_CONCURRENCY", most)?);
        }
        for (name, section) in [("REDIS_URL", "redis"), ("RABBITMQ_URL", "rabbitmq")] {
            if let Some(url) = get(name) {
                read.set(section, "url", url.into());
            }
        }
        if let Some(url) = get("DATABASE_URL") {
            let url = database_url(url, get("POSTGRES_PASSWORD"))?;
            read.set("postgres", "url", url.into());
        }
        if let Some(limits) = get("RATE_LIMITS") {
            read.limits = limits_of(limits)?;
        }
        read.accounts(variables)?;
        Ok(read)
    }

    fn set(&mut self, section: &str, key: &str, value: Value) {
        let section = self
            .settings
            .entry(section)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(section) = section {
            section.insert(key.into(), value);
        }
    }

    /// Every account of the first release was one of the Claude CLI, by the name `accountN`.
    fn accounts(&mut self, variables: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let mut emails: BTreeMap<u32, &str> = BTreeMap::new();
        for (name, email) in variables {
            if let Some(end) = name.strip_prefix("CLAUDE_EMAIL_") {
                emails.insert(account_number(name, end)?, email.trim());
            }
        }
        let mut numbers: Vec<u32> = emails.keys().copied().collect();
        numbers.extend(self.limits.keys().filter_map(|id| numbered(id.as_str())));
        let own = variables.get("ACCOUNT_EMAIL").map(|email| {
            let email = email.trim();
            let by_email = emails.iter().find(|(_, known)| **known == email);
            let by_worker = || {
                let id = variables.get("WORKER_ID")?.trim();
                let digits = id.rsplit(|c: char| !c.is_ascii_digit()).next()?;
                digits
                    .parse()
                    .ok()
                    .filter(|n| (1..=MOST_ACCOUNTS).contains(n))
            };
            by_email.map(|(n, _)| *n).or_else(by_worker).unwrap_or(1)
        });
        if let Some(own) = own {
            numbers.push(own);
            self.set("worker", "accounts", json!([format!("account{own}")]));
        }
        numbers.sort_unstable();
        numbers.dedup();
        let path = variables
            .get("CLAUDE_CONFIG_PATH")
            .map(|path| Path::new(path.trim()));
        let mut accounts = Map::new();
        for n in &numbers {
            let mut account = Map::new();
            account.insert("provider".into(), "claude-cli".into());
            let config_dir = match path {
                // The path is that of this process's own account, or of the only one.
                Some(path) if own == Some(*n) || (own.is_none() && numbers.len() == 1) => {
                    Some(path.to_owned())
                }
                Some(path) if own.is_none() => Some(path.join(format!("account{n}"))),
                Some(_) | None => None,
            };
            if let Some(dir) = config_dir {
                account.insert("config_dir".into(), dir.display().to_string().into());
            }
            accounts.insert(format!("account{n}"), account.into());
        }
        if !accounts.is_empty() {
            self.settings.insert("accounts".into(), accounts.into());
        }
        Ok(())
    }

    /// What is below the file and the environment.
    pub(super) fn settings(&self) -> Serialized<Value> {
        Serialized::defaults(Value::Object(self.settings.clone()))
    }

    /// Adds to each account what it has not itself; `figment` has all layers.
    ///
    /// # Errors
    /// When `RATE_LIMITS` names an account that is not there.
    pub(super) fn complete(&self, mut figment: Figment) -> Result<Figment, ConfigError> {
        let names: Vec<String> = match figment.find_value("accounts") {
            Ok(figment::value::Value::Dict(_, accounts)) => accounts.into_keys().collect(),
            _ => Vec::new(),
        };
        if let Some(most) = self.concurrency {
            for name in &names {
                figment = fill(figment, name, "max_concurrency", &most.into());
            }
        }
        for (id, limits) in &self.limits {
            if !names.iter().any(|name| name == id.as_str()) {
                return Err(ConfigError::value(
                    "RATE_LIMITS",
                    format!("names the account `{id}`, and there is none"),
                ));
            }
            figment = fill(figment, id.as_str(), "limits", limits);
        }
        Ok(figment)
    }
}

fn fill(figment: Figment, account: &str, key: &str, value: &Value) -> Figment {
    figment.join(Serialized::defaults(
        json!({ "accounts": { account: { key: value } } }),
    ))
}

fn refuse_passwords(variables: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let password = variables
        .keys()
        .find_map(|name| Some((name, name.strip_prefix("CLAUDE_PASSWORD_")?)));
    let Some((name, end)) = password else {
        return Ok(());
    };
    let n = account_number(name, end)?;
    Err(ConfigError::value(
        name,
        format!(
            "a password is never taken, so unset it. Log in instead: `sluice accounts login \
             account{n}` runs the CLI's own login in that account's config directory; or put a \
             token of `claude setup-token` into a variable and name it by \
             SLUICE_ACCOUNTS__ACCOUNT{n}__OAUTH_TOKEN_ENV"
        ),
    ))
}

fn account_number(name: &str, end: &str) -> Result<u32, ConfigError> {
    let number = end.parse().ok().filter(|n| (1..=MOST_ACCOUNTS).contains(n));
    number.ok_or_else(|| {
        ConfigError::value(
            name,
            format!("must end in the account's number, from 1 to {MOST_ACCOUNTS}"),
        )
    })
}

/// The number of an account that is named as in the first release.
fn numbered(id: &str) -> Option<u32> {
    let n = id.strip_prefix("account")?.parse().ok()?;
    (1..=MOST_ACCOUNTS).contains(&n).then_some(n)
}

fn number<T: std::str::FromStr + PartialOrd + From<u8>>(
    name: &str,
    text: &str,
) -> Result<T, ConfigError> {
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    number.ok_or_else(|| {
        ConfigError::value(name, format!("`{text}` is not a whole number that can be"))
    })
}

/// Names are taken as they were written then: `ROUND_ROBIN`, `roundRobin`, `round-robin`.
fn strategy_of(text: &str) -> Result<String, ConfigError> {
    let mut name = String::new();
    let mut before = ' ';
    for c in text.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            name.push('-');
        }
        before = c;
        name.push(match c {
            '_' | ' ' => '-',
            c => c.to_ascii_lowercase(),
        });
    }
    serde_json::from_value::<Strategy>(name.as_str().into()).map_err(|error| {
        ConfigError::value("LOAD_BALANCE_STRATEGY", format!("`{text}`: {error}"))
    })?;
    Ok(name)
}

/// The address with the password in it, where it has none of its own.
fn database_url(text: &str, password: Option<&str>) -> Result<String, ConfigError> {
    // Not the text itself in the message: it may hold a password.
    let malformed = || {
        ConfigError::value(
            "DATABASE_URL",
            "write postgres://user:password@host:5432/database",
        )
    };
    let mut url = url::Url::parse(text).map_err(|_| malformed())?;
    if let Some(password) = password
        && url.password().is_none()
        && !url.username().is_empty()
    {
        url.set_password(Some(password)).map_err(|()| malformed())?;
    }
    Ok(url.into())
}

/// `{"account1": {"requests": 100, "window": "1h"}}`, or a list of such for an account.
fn limits_of(text: &str) -> Result<BTreeMap<AccountId, Value>, ConfigError> {
    let wrong = |problem: String| ConfigError::value("RATE_LIMITS", problem);
    let all: BTreeMap<AccountId, Value> = serde_json::from_str(text).map_err(|error| {
        wrong(format!(
            "is not JSON of the form {{\"account1\": {{\"requests\": 100, \"window\": \"1h\"}}}}: \
             {error}"
        ))
    })?;
    let mut limits = BTreeMap::new();
    for (id, given) in all {
        let list = match given {
            Value::Array(list) => list,
            one => vec![one],
        };
        for limit in &list {
            let span = limit.get("window").and_then(Value::as_str);
            let window = span.and_then(|span| span.parse::<Span>().ok());
            let amounts = limit.as_object().into_iter().flatten();
            let amounts: Vec<_> = amounts.filter(|(key, _)| *key != "window").collect();
            let is_amount = |amount: &Value| amount.as_f64().is_some_and(|amount| amount > 0.0);
            if window.is_none_or(|window| window.0.is_zero()) {
                return Err(wrong(format!(
                    "{id}: each limit needs a window, such as \"1h\""
                )));
            }
            if amounts.is_empty() || !amounts.iter().all(|(_, amount)| is_amount(amount)) {
                return Err(wrong(format!(
                    "{id}: each limit needs an amount above 0, such as \"requests\": 100"
                )));
            }
        }
        limits.insert(id, list.into());
    }
    Ok(limits)
}

#[cfg(test)]
mod tests;
