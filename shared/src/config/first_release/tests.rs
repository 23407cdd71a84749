//! Each variable of the first release, and what it comes to.

use figment::providers::{Format, Toml};
use secrecy::ExposeSecret;

use super::*;
use crate::config::{Config, DEFAULTS, Provider};

fn load(variables: &[(&str, &str)], file: &str) -> Result<Config, String> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let first = FirstRelease::read(&variables).map_err(|error| error.to_string())?;
    let figment = Figment::from(Toml::string(DEFAULTS))
        .merge(first.settings())
        .merge(Toml::string(file));
    let figment = first.complete(figment).map_err(|error| error.to_string())?;
    Config::extract(&figment).map_err(|error| error.to_string())
}

fn loaded(variables: &[(&str, &str)]) -> Config {
    load(variables, "").unwrap()
}

fn config_dir(config: &Config, account: &str) -> Option<String> {
    let Provider::ClaudeCli(cli) = &config.accounts[account].provider else {
        panic!("{account} is one of the Claude CLI")
    };
    cli.config_dir.as_ref().map(|dir| dir.display().to_string())
}

#[test]
fn every_variable_has_its_setting() {
    let config = loaded(&[
        ("LOAD_BALANCE_STRATEGY", "ROUND_ROBIN"),
        ("WORKER_ID", "worker-2"),
        ("WORKER_PORT", "4002"),
        ("REDIS_URL", "redis://cache:6379"),
        ("RABBITMQ_URL", "amqp://u:p@mq:5672"),
        ("DATABASE_URL", "postgresql://sluice@db:5432/sluice"),
        ("POSTGRES_PASSWORD", "p@ss"),
        ("JWT_SECRET", "not-a-setting-any-more"),
    ]);
    assert_eq!(config.dispatch.strategy, Strategy::RoundRobin);
    assert_eq!(config.worker.id, "worker-2");
    assert_eq!(config.worker.health_listen, "0.0.0.0:4002");
    assert_eq!(config.redis.url.expose_secret(), "redis://cache:6379");
    assert_eq!(config.rabbitmq.url.expose_secret(), "amqp://u:p@mq:5672");
    assert_eq!(
        config.postgres.url.expose_secret(),
        "postgresql://sluice:p%40ss@db:5432/sluice"
    );
    assert_eq!(config.worker.accounts, ["*"]);
    assert!(config.accounts.is_empty());
}

#[test]
fn a_strategy_goes_by_each_of_its_spellings() {
    for name in ["round-robin", "ROUND_ROBIN", "roundRobin", "Round Robin"] {
        loaded(&[("LOAD_BALANCE_STRATEGY", name)]);
    }
}

#[test]
fn numbered_emails_are_accounts_of_the_claude_cli() {
    let config = loaded(&[
        ("CLAUDE_EMAIL_1", "a@team"),
        ("CLAUDE_EMAIL_2", "b@team"),
        ("CLAUDE_CONFIG_PATH", "/logins"),
        ("QUEUE_CONCURRENCY", "3"),
    ]);
    let names: Vec<_> = config.accounts.keys().map(AccountId::as_str).collect();
    assert_eq!(names, ["account1", "account2"]);
    assert_eq!(config.accounts["account2"].max_concurrency, 3);
    assert_eq!(config_dir(&config, "account2").unwrap(), "/logins/account2");
    let alone = loaded(&[
        ("CLAUDE_EMAIL_1", "a@team"),
        ("CLAUDE_CONFIG_PATH", "/login"),
    ]);
    assert_eq!(config_dir(&alone, "account1").unwrap(), "/login");
    assert_eq!(
        config_dir(&loaded(&[("CLAUDE_EMAIL_7", "x")]), "account7"),
        None
    );
}

#[test]
fn a_worker_serves_the_account_of_its_email() {
    for (variables, account) in [
        (
            &[("ACCOUNT_EMAIL", "b@team"), ("CLAUDE_EMAIL_2", "b@team")][..],
            "account2",
        ),
        (
            &[("ACCOUNT_EMAIL", "b@team"), ("WORKER_ID", "worker-3")],
            "account3",
        ),
        (
            &[("ACCOUNT_EMAIL", "b@team"), ("WORKER_ID", "worker")],
            "account1",
        ),
        (&[("ACCOUNT_EMAIL", "b@team")], "account1"),
    ] {
        let mut variables = variables.to_vec();
        variables.extend([
            ("CLAUDE_CONFIG_PATH", "/login"),
            ("CLAUDE_EMAIL_9", "z@team"),
        ]);
        let config = loaded(&variables);
        assert_eq!(config.worker.accounts, [account]);
        assert_eq!(config_dir(&config, account).unwrap(), "/login");
        assert_eq!(config_dir(&config, "account9"), None, "another's path");
    }
}

#[test]
fn limits_name_their_accounts() {
    let limits = r#"{"account1": {"requests": 100, "window": "1h"},
        "account2": [{"requests": 5, "window": "1m"}, {"input_tokens": 9, "window": "7d"}]}"#;
    let config = loaded(&[("RATE_LIMITS", limits)]);
    assert!(
        config
            .accounts
            .values()
            .any(|account| !account.limits.is_empty())
    );
    assert_eq!(config.accounts.len(), 2);
    let own = "[accounts.main]\nprovider = \"simulated\"";
    let limits = r#"{"main": {"requests": 100, "window": "1h"}}"#;
    load(&[("RATE_LIMITS", limits)], own).unwrap();
    let read = limits_of(limits).unwrap();
    assert_eq!(read["main"], json!([{"requests": 100, "window": "1h"}]));
}

#[test]
fn the_configuration_of_today_wins() {
    let file = "[redis]\nurl = \"redis://mine\"\n[accounts.account1]\nprovider = \"simulated\"\n\
                max_concurrency = 9";
    let variables = [
        ("REDIS_URL", "redis://old"),
        ("QUEUE_CONCURRENCY", "3"),
        (
            "RATE_LIMITS",
            r#"{"account1": {"requests": 1, "window": "1h"}}"#,
        ),
    ];
    let config = load(&variables, file).unwrap();
    assert_eq!(config.redis.url.expose_secret(), "redis://mine");
    assert_eq!(config.accounts["account1"].max_concurrency, 9);
    assert_eq!(config.accounts["account1"].provider.name(), "simulated");
}

#[test]
fn what_cannot_be_is_named_and_a_secret_is_not_repeated() {
    for (name, value, words) in [
        ("LOAD_BALANCE_STRATEGY", "psychic", "psychic"),
        ("QUEUE_CONCURRENCY", "0", "`0`"),
        ("QUEUE_CONCURRENCY", "many", "many"),
        ("WORKER_PORT", "70000", "70000"),
        ("CLAUDE_EMAIL_x", "a@team", "number"),
        ("CLAUDE_EMAIL_0", "a@team", "number"),
        ("RATE_LIMITS", "100", "JSON"),
        ("RATE_LIMITS", r#"{"account1": {"requests": 1}}"#, "window"),
        ("RATE_LIMITS", r#"{"account1": {"window": "1h"}}"#, "amount"),
        (
            "RATE_LIMITS",
            r#"{"account1": [{"requests": -1, "window": "1h"}]}"#,
            "amount",
        ),
        (
            "RATE_LIMITS",
            r#"{"acount": {"requests": 1, "window": "1h"}}"#,
            "acount",
        ),
        ("DATABASE_URL", "hunter2", "postgres://"),
        (
            "CLAUDE_PASSWORD_2",
            "hunter2",
            "sluice accounts login account2",
        ),
        ("CLAUDE_PASSWORD_2", "hunter2", "OAUTH_TOKEN_ENV"),
    ] {
        let error = load(&[(name, value)], "").unwrap_err();
        assert!(error.contains(name) && error.contains(words), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_environment_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".env");
    std::fs::write(
        &file,
        "WORKER_PORT=4001\nOTHER=x\nCLAUDE_EMAIL_1='a b'\nJWT_SECRET=\n",
    )
    .unwrap();
    let found = variables(&file).unwrap();
    assert_eq!(found["WORKER_PORT"], "4001");
    assert_eq!(found["CLAUDE_EMAIL_1"], "a b");
    assert!(!found.contains_key("OTHER") && !found.contains_key("JWT_SECRET"));
    std::fs::write(&file, "JWT SECRET hunter2\n").unwrap();
    let error = variables(&file).unwrap_err().to_string();
    assert!(
        error.contains(".env") && !error.contains("hunter2"),
        "{error}"
    );
}
