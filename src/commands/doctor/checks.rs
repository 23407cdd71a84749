//! The checks of `sluice doctor`, one a function.

use std::{fs::File, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use futures::future::join_all;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sluice_consumer_worker::provider::{Check, Provider};
use sluice_producer_api::store::Store;
use sluice_shared::{
    api::HealthStatus,
    broker::Broker,
    clock,
    config::{self, AccountConfig, Config},
    domain::AccountId,
    live::Live,
};

use crate::{
    client::{Client, ClientError},
    home::Home,
    output,
};

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a service may take to answer.
const SERVICE_PATIENCE: Duration = Duration::from_secs(5);
/// From this difference on, two clocks are apart.
const CLOCK_SKEW: Duration = Duration::from_secs(5);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// All is well.
    Good,
    /// It works, but someone should know.
    Notice,
    /// It does not work.
    Wrong,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) name: String,
    pub(super) status: Status,
    pub(super) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

impl Finding {
    pub(super) fn good(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Good,
            found: found.into(),
            mend: None,
        }
    }

    pub(super) fn notice(
        name: impl Into<String>,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Notice,
            mend: Some(mend.into()),
            ..Self::good(name, found)
        }
    }

    pub(super) fn wrong(
        name: impl Into<String>,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Wrong,
            mend: Some(mend.into()),
            ..Self::good(name, found)
        }
    }
}

/// Whether the configuration parses, and who can read it.
pub(super) fn configuration(file: Option<&Path>) -> (Option<Config>, Finding) {
    const NAME: &str = "configuration";
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            let mend = "mend what it names; sluice.default.toml describes every key";
            return (None, Finding::wrong(NAME, error.to_string(), mend));
        }
    };
    let finding = match file {
        None => Finding::good(
            NAME,
            "no file; every setting has its default or is in the environment",
        ),
        Some(path) if holds_secrets(path) && is_open(path) => Finding::notice(
            NAME,
            format!(
                "{} holds secrets, and others on this machine can read it",
                path.display()
            ),
            format!(
                "chmod 600 {}, or name the secrets by api_key_env or api_key_file",
                path.display()
            ),
        ),
        Some(path) => Finding::good(NAME, path.display().to_string()),
    };
    (Some(config), finding)
}

/// Whether the file itself has secrets in it, rather than names of where they are.
fn holds_secrets(path: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else {
        return false;
    };
    let Ok(config) = Config::from_toml(&text) else {
        return false;
    };
    let in_account = |account: &AccountConfig| match &account.provider {
        config::Provider::ClaudeCli(cli) => {
            cli.credential.value.is_some() || cli.oauth_token.value.is_some()
        }
        other => other
            .credential()
            .is_some_and(|credential| credential.value.is_some()),
    };
    let in_url = |url: &&SecretString| url.expose_secret().contains('@');
    config.accounts.values().any(in_account)
        || [
            &config.postgres.url,
            &config.rabbitmq.url,
            &config.redis.url,
        ]
        .iter()
        .any(in_url)
}

fn is_set(url: &SecretString) -> bool {
    !url.expose_secret().is_empty()
}

fn is_open(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

/// Whether the data folder can be used, and only by its owner.
pub(super) fn data_folder(home: &Home) -> Vec<Finding> {
    const NAME: &str = "data folder";
    let path = home.path().display();
    let mode = match home.mode() {
        Ok(mode) => mode,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return vec![Finding::good(
                NAME,
                format!("{path} will be made at the first start"),
            )];
        }
        Err(error) => {
            let mend = "set SLUICE_HOME to a folder of your own";
            return vec![Finding::wrong(NAME, format!("{path}: {error}"), mend)];
        }
    };
    let mut findings = Vec::new();
    let probe = home.path().join(format!(".doctor-{}", std::process::id()));
    findings.push(
        match File::create(&probe).and_then(|_| std::fs::remove_file(&probe)) {
            Err(error) => Finding::wrong(
                NAME,
                format!("{path} cannot be written to: {error}"),
                "make it yours, or set SLUICE_HOME to a folder of your own",
            ),
            Ok(()) if mode & 0o077 != 0 => Finding::notice(
                NAME,
                format!("{path} can be entered by others on this machine (mode {mode:o})"),
                format!("chmod 700 {path}"),
            ),
            Ok(()) => Finding::good(NAME, format!("{path} (mode {mode:o})")),
        },
    );
    let key = home.admin_key_file();
    if is_open(&key) {
        findings.push(Finding::wrong(
            "admin key",
            format!("{} can be read by others on this machine", key.display()),
            format!(
                "chmod 600 {}, then make a new admin key and revoke this one",
                key.display()
            ),
        ));
    }
    findings
}

/// Whether the services of the distributed mode answer; nothing in the embedded mode.
pub(super) async fn services(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if is_set(&config.postgres.url) {
        findings.push(service("postgres", postgres(&config.postgres)).await);
    }
    if is_set(&config.rabbitmq.url) {
        findings.push(service("rabbitmq", rabbitmq(&config.rabbitmq)).await);
    }
    if is_set(&config.redis.url) {
        findings.push(service("redis", redis(&config.redis)).await);
    }
    findings
}

async fn service(
    name: &'static str,
    check: impl Future<Output = anyhow::Result<Finding>>,
) -> Finding {
    let mend = format!(
        "is it running, and is {name}.url (SLUICE_{}__URL) right?",
        name.to_uppercase()
    );
    match tokio::time::timeout(PATIENCE, check).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(error)) => Finding::wrong(name, format!("{error:#}"), mend),
        Err(_) => Finding::wrong(name, "it does not answer", mend),
    }
}

async fn postgres(config: &config::Postgres) -> anyhow::Result<Finding> {
    let store = Store::postgres(config).await?;
    store.ready().await?;
    Ok(if store.is_migrated().await? {
        Finding::good("postgres", "it answers, and its schema is up to date")
    } else {
        Finding::wrong(
            "postgres",
            "its schema is not up to date",
            "run `sluice migrate`",
        )
    })
}

async fn rabbitmq(config: &config::Rabbitmq) -> anyhow::Result<Finding> {
    let broker = Broker::connect(config, "sluice-doctor").await?;
    // The connection is made in the background.
    let deadline = tokio::time::Instant::now() + SERVICE_PATIENCE;
    let mut ready = broker.ready().await;
    while ready.is_err() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ready = broker.ready().await;
    }
    broker.close().await;
    ready?;
    Ok(Finding::good("rabbitmq", "it answers"))
}

async fn redis(config: &config::Redis) -> anyhow::Result<Finding> {
    Live::connect(config)?.ready().await?;
    Ok(Finding::good("redis", "it answers"))
}

/// Whether each account works from this machine.
pub(super) async fn accounts(config: &Config, home: &Home) -> Vec<Finding> {
    if config.accounts.is_empty() {
        return vec![Finding::notice(
            "accounts",
            "none is configured; `sluice up` starts with a simulated one",
            "add [accounts.NAME] to sluice.toml; sluice.default.toml shows how",
        )];
    }
    let most = config.worker.max_output_bytes;
    let checks = config
        .accounts
        .iter()
        .map(|(id, account)| check(id, account, home, most));
    join_all(checks).await
}

async fn check(id: &AccountId, account: &AccountConfig, home: &Home, most: usize) -> Finding {
    let name = format!("account {id} ({})", account.provider.name());
    let provider = match Provider::build(id, account, home.path(), most) {
        Ok(provider) => provider,
        Err(error) => {
            let fallback = "mend that key of the account in sluice.toml";
            let (problem, mend) = error
                .problem
                .split_once("; ")
                .unwrap_or((&error.problem, fallback));
            return Finding::wrong(name, format!("{}: {problem}", error.key), mend);
        }
    };
    match tokio::time::timeout(PATIENCE, provider.check()).await {
        Ok(Check::Ok(found)) if needs_a_model(account) => Finding::notice(
            name,
            format!("{found}; but jobs that name no model cannot run here"),
            format!("set default_model in [accounts.{id}]"),
        ),
        Ok(Check::Ok(found)) => Finding::good(name, found),
        Ok(Check::Problem { problem, mend }) => Finding::wrong(name, problem, mend),
        Err(_) => Finding::wrong(
            name,
            "the check took too long",
            "try again, or try it by hand",
        ),
    }
}

/// Whether the provider insists on a model and the account has none to fall back on.
fn needs_a_model(account: &AccountConfig) -> bool {
    let insists = match &account.provider {
        config::Provider::Anthropic(_) => true,
        // A self-hosted server often has one model and asks for no name.
        config::Provider::OpenAi(api) => api.base_url.is_none(),
        config::Provider::Simulated(_)
        | config::Provider::ClaudeCli(_)
        | config::Provider::Command(_) => false,
    };
    insists && account.default_model.is_none() && account.models.len() != 1
}

/// Whether an API answers, takes our key, and has the same time.
pub(super) async fn server(client: &Result<Client, ClientError>) -> Vec<Finding> {
    const NAME: &str = "API";
    let refused = |error: &ClientError| {
        let mend = error.hint().unwrap_or_else(|| "see `sluice health`".into());
        Finding::wrong(NAME, error.to_string(), mend)
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => return vec![refused(error)],
    };
    let (health, date) = match client.health().await {
        Ok(answer) => answer,
        Err(error) if error.is_refused_connection() => {
            let found = format!("none answers at {}", client.url());
            return vec![Finding::notice(
                NAME,
                found,
                "start it with `sluice up`, or set SLUICE_URL",
            )];
        }
        Err(error) => return vec![refused(&error)],
    };
    let what = format!("sluice {} at {}", health.version, client.url());
    let down: Vec<String> = health
        .planes
        .iter()
        .filter(|(_, plane)| !plane.up)
        .map(|(name, plane)| format!("{name} ({}) is down", plane.kind))
        .collect();
    let mut findings = vec![match health.status {
        HealthStatus::Ok => Finding::good(NAME, what),
        HealthStatus::Degraded => Finding::notice(
            NAME,
            format!("{what}: {}", down.join(", ")),
            "jobs are accepted; bring it back",
        ),
        HealthStatus::Down => Finding::wrong(
            NAME,
            format!("{what}: {}", down.join(", ")),
            "bring it back",
        ),
    }];
    if let Err(error) = client.accounts().await {
        findings.push(Finding {
            name: "API key".into(),
            ..refused(&error)
        });
    } else {
        findings.push(Finding::good("API key", "it is taken"));
    }
    findings.extend(date.as_deref().and_then(clock_of));
    findings
}

/// Compares our clock with an HTTP date.
fn clock_of(date: &str) -> Option<Finding> {
    let theirs = jiff::fmt::rfc2822::parse(date)
        .ok()?
        .timestamp()
        .as_millisecond();
    let apart = Duration::from_millis(clock::now().as_millis().abs_diff(theirs));
    Some(if apart <= CLOCK_SKEW {
        Finding::good("clock", "the same as the API's")
    } else {
        Finding::notice(
            "clock",
            format!("{} apart from the API's", output::rough(apart)),
            "set both by NTP; run_at and expires_at are judged by the API's clock",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_configuration_with_secrets_is_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice.toml");
        fs::write(
            &path,
            "[accounts.a]\nprovider = \"anthropic\"\napi_key = \"sk-hidden\"",
        )
        .unwrap();
        chmod(&path, 0o644);
        let (_, finding) = configuration(Some(&path));
        assert_eq!(finding.status, Status::Notice);
        assert!(!format!("{finding:?}").contains("sk-hidden"));
        chmod(&path, 0o600);
        assert_eq!(configuration(Some(&path)).1.status, Status::Good);
        fs::write(&path, "[accounts.a]\nprovider = \"nobody\"").unwrap();
        let (config, finding) = configuration(Some(&path));
        assert!(config.is_none());
        assert_eq!(finding.status, Status::Wrong);
    }

    #[test]
    fn a_data_folder_is_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("data"));
        assert_eq!(data_folder(&home)[0].status, Status::Good);
        home.create().unwrap();
        assert_eq!(data_folder(&home)[0].status, Status::Good);
        chmod(home.path(), 0o755);
        assert_eq!(data_folder(&home)[0].status, Status::Notice);
        fs::write(home.admin_key_file(), "k").unwrap();
        chmod(&home.admin_key_file(), 0o644);
        assert_eq!(data_folder(&home)[1].status, Status::Wrong);
    }

    #[test]
    fn an_account_without_a_model_is_noticed_where_one_is_needed() {
        let needs = |lines: &str| {
            let config = Config::from_toml(&format!("[accounts.a]\n{lines}")).unwrap();
            config.accounts.values().any(needs_a_model)
        };
        let key = "provider = \"anthropic\"\napi_key_env = \"K\"\n";
        assert!(needs(key));
        assert!(!needs(&format!("{key}default_model = \"m\"")));
        assert!(!needs(&format!("{key}models = [\"m\"]")));
        assert!(needs(&format!("{key}models = [\"m\", \"n\"]")));
        assert!(!needs(
            "provider = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\""
        ));
        assert!(!needs("provider = \"simulated\""));
    }

    #[test]
    fn clocks_are_compared() {
        assert_eq!(
            clock_of("Wed, 21 Oct 2015 07:28:00 GMT").unwrap().status,
            Status::Notice
        );
        assert_eq!(clock_of("soon"), None);
        let now = jiff::Timestamp::from_millisecond(clock::now().as_millis()).unwrap();
        let date = jiff::fmt::rfc2822::DateTimePrinter::new()
            .timestamp_to_rfc9110_string(&now)
            .unwrap();
        assert_eq!(clock_of(&date).unwrap().status, Status::Good);
    }
}
