//! One account of the configuration: what the dispatcher needs, and its provider's settings.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::SecretString;
use serde::{Deserialize, de};
use serde_json::{Map, Value};

use super::{ConfigError, SettingError, WarmCli, limits};
use crate::domain::{Account, AccountId, Limit, Span};

/// One account.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawAccount")]
pub struct AccountConfig {
    /// The models it offers; empty means any.
    pub models: Vec<String>,
    /// The model for jobs that name none.
    pub default_model: Option<String>,
    /// The tags that lanes can ask for.
    pub tags: Vec<String>,
    /// Prompts it runs at once, at most. Default 8.
    pub max_concurrency: u32,
    /// Its share under the weighted strategy. Default 1.
    pub weight: u32,
    /// How much it may be used within any interval of some lengths.
    pub limits: Vec<Limit>,
    /// Its provider with that provider's own settings.
    pub provider: Provider,
}

/// What runs an account's prompts.
#[derive(Clone, Debug)]
pub enum Provider {
    /// No model at all: made-up answers, for demos, tests and benchmarks.
    Simulated(Simulated),
    /// Anthropic's Messages API.
    Anthropic(HttpApi),
    /// OpenAI's chat completions, or any server that speaks them.
    OpenAi(HttpApi),
    /// The official Claude Code CLI.
    ClaudeCli(ClaudeCli),
    /// Any program: prompt on standard input, answer on standard output.
    Command(Command),
}

impl Provider {
    /// The names that a configuration may use.
    pub const NAMES: [&str; 5] = ["simulated", "anthropic", "openai", "claude-cli", "command"];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Simulated(_) => "simulated",
            Self::Anthropic(_) => "anthropic",
            Self::OpenAi(_) => "openai",
            Self::ClaudeCli(_) => "claude-cli",
            Self::Command(_) => "command",
        }
    }

    /// Where it was told to go; `None` for the provider's own address.
    #[must_use]
    pub fn base_url(&self) -> Option<&url::Url> {
        match self {
            Self::Anthropic(api) | Self::OpenAi(api) => api.base_url.as_ref(),
            Self::ClaudeCli(cli) => cli.base_url.as_ref(),
            Self::Simulated(_) | Self::Command(_) => None,
        }
    }

    /// What it shares with others at the same provider; empty when there is no such thing.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match (self, self.base_url()) {
            (Self::Simulated(_) | Self::Command(_), _) => String::new(),
            (_, Some(url)) => url.to_string(),
            // The CLI asks Anthropic's API.
            (Self::ClaudeCli(_), None) => "anthropic".to_owned(),
            (other, None) => other.name().to_owned(),
        }
    }

    /// Where its credential comes from; empty for those that have none.
    #[must_use]
    pub fn credential(&self) -> Option<&Credential> {
        match self {
            Self::Anthropic(api) | Self::OpenAi(api) => Some(&api.credential),
            Self::ClaudeCli(cli) => Some(&cli.credential),
            Self::Simulated(_) | Self::Command(_) => None,
        }
    }
}

/// A secret given directly, by the name of an environment variable, or as a file. At most one.
#[derive(Clone, Debug, Default)]
pub struct Credential {
    /// The secret itself.
    pub value: Option<SecretString>,
    /// The environment variable that holds it.
    pub env: Option<String>,
    /// The file that holds it.
    pub file: Option<PathBuf>,
}

/// Why a credential cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The variable is not set.
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    /// The file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Credential {
    /// Whether anything was configured.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.value.is_some() || self.env.is_some() || self.file.is_some()
    }

    /// The secret, trimmed of surrounding white space; `None` when none was configured.
    ///
    /// # Errors
    /// When the variable is not set or the file cannot be read.
    pub fn resolve(&self) -> Result<Option<SecretString>, CredentialError> {
        if let Some(value) = &self.value {
            return Ok(Some(value.clone()));
        }
        if let Some(name) = &self.env {
            let value =
                std::env::var(name).map_err(|_| CredentialError::NoVariable(name.clone()))?;
            return Ok(Some(value.trim().into()));
        }
        if let Some(path) = &self.file {
            let value =
                std::fs::read_to_string(path).map_err(|source| CredentialError::Unreadable {
                    path: path.clone(),
                    source,
                })?;
            return Ok(Some(value.trim().into()));
        }
        Ok(None)
    }
}

/// Made-up answers with made-up latency and faults, the same for the same seed, job and attempt.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Simulated {
    /// Time to the answer.
    pub latency: Span,
    /// At most this much more, by the seed.
    pub latency_jitter: Span,
    /// Words in the answer; 0 echoes the prompt.
    pub tokens: u32,
    /// Seed of all that looks like chance.
    pub seed: u64,
    /// What goes wrong, and how often.
    pub faults: Faults,
}

impl Default for Simulated {
    fn default() -> Self {
        Self {
            latency: Span::from_millis(0),
            latency_jitter: Span::from_millis(0),
            tokens: 0,
            seed: 0,
            faults: Faults::default(),
        }
    }
}

/// Shares in `[0, 1]` of attempts that end otherwise than well.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Fail and may be retried.
    pub failed: f64,
    /// Answer "too many requests".
    pub throttled: f64,
    /// Answer "overloaded".
    pub overloaded: f64,
    /// Refuse the request.
    pub rejected: f64,
}

/// An HTTP API with a key.
#[derive(Clone, Debug)]
pub struct HttpApi {
    /// Where it is; the provider's own address by default. With or without the version: `/v1`
    /// is added to a path that names none.
    pub base_url: Option<url::Url>,
    /// Its key. A self-hosted endpoint may have none.
    pub credential: Credential,
    /// Longest answer, in tokens, of jobs that name none. Anthropic's API asks for one, so that
    /// 4096 is the default there; an OpenAI account sends none unless it is set, because it
    /// counts against the rate limit before a word is written.
    pub max_tokens: Option<u32>,
}

/// The official Claude Code CLI, run headless.
#[derive(Clone, Debug)]
pub struct ClaudeCli {
    /// The program; found on `PATH` by default.
    pub bin: PathBuf,
    /// The account's own config directory, in which its login lives; made when missing. By
    /// default `claude/<account>` in the data folder.
    pub config_dir: Option<PathBuf>,
    /// An API key, instead of a login.
    pub credential: Credential,
    /// A long-lived OAuth token (`claude setup-token`), instead of a login.
    pub oauth_token: Credential,
    /// Another API address, for a gateway or a test.
    pub base_url: Option<url::Url>,
    /// Whether a job may ask for the CLI's tools. They run on the worker's machine with the
    /// worker's rights, so whoever may submit can then read what the worker can read, this
    /// account's login included. Default false.
    pub allow_tools: bool,
    /// Whether its processes are kept for the next prompt.
    pub warm: WarmCli,
}

/// Any program.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments; run as they are, never by a shell.
    pub argv: Vec<String>,
    /// Its whole environment besides `PATH`, `LANG`, `TMPDIR` and `HOME`, which is an empty
    /// directory unless it is set here. A value may be a secret, and is treated as one.
    #[serde(default)]
    pub env: BTreeMap<String, SecretString>,
    /// Variables of the worker's own environment that it gets too, by name: a key need not
    /// stand in the configuration.
    #[serde(default)]
    pub pass_env: Vec<String>,
}

#[derive(Deserialize)]
struct RawAccount {
    provider: String,
    #[serde(default)]
    models: Vec<String>,
    default_model: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    max_concurrency: Option<u32>,
    weight: Option<u32>,
    limits: Option<Value>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttpApi {
    base_url: Option<url::Url>,
    api_key: Option<SecretString>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    max_tokens: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClaudeCli {
    bin: Option<PathBuf>,
    config_dir: Option<PathBuf>,
    api_key: Option<SecretString>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    oauth_token: Option<SecretString>,
    oauth_token_env: Option<String>,
    oauth_token_file: Option<PathBuf>,
    base_url: Option<url::Url>,
    #[serde(default)]
    allow_tools: bool,
    warm_processes: Option<u16>,
    warm_turns: Option<u32>,
    warm_idle: Option<Span>,
}

fn settings<T: de::DeserializeOwned>(map: Map<String, Value>) -> Result<T, SettingError> {
    if let Some(key) = map.keys().find(|key| key.contains("password")) {
        return Err(SettingError::new(
            key,
            "a password is never asked for: log in with the provider's own tool \
             (for claude-cli: `sluice accounts login ACCOUNT`), or use an API key or a token \
             variable",
        ));
    }
    // The path, because the error alone does not say which of the settings it is about.
    serde_path_to_error::deserialize(Value::Object(map)).map_err(|error| {
        let key = match error.path().to_string().as_str() {
            "." => missing_field(&error.inner().to_string()),
            path => path.to_owned(),
        };
        let problem = if is_secret(&key) {
            // What serde says would repeat the value.
            "is not what it must be: a text, or an object of texts for env".to_owned()
        } else {
            error.into_inner().to_string()
        };
        SettingError { key, problem }
    })
}

/// The field that is missing, which serde names in its words only.
fn missing_field(words: &str) -> String {
    let field = words.strip_prefix("missing field `");
    let field = field.and_then(|rest| rest.split('`').next());
    field.unwrap_or_default().to_owned()
}

fn is_secret(path: &str) -> bool {
    let key = path.split(['.', '[']).next().unwrap_or_default();
    crate::roll::SECRETS.contains(&key)
}

impl TryFrom<RawAccount> for AccountConfig {
    type Error = SettingError;

    fn try_from(raw: RawAccount) -> Result<Self, SettingError> {
        let http = |map| -> Result<HttpApi, SettingError> {
            let raw: RawHttpApi = settings(map)?;
            Ok(HttpApi {
                base_url: raw.base_url,
                credential: Credential {
                    value: raw.api_key,
                    env: raw.api_key_env,
                    file: raw.api_key_file,
                },
                max_tokens: raw.max_tokens,
            })
        };
        let provider = match raw.provider.as_str() {
            "simulated" => Provider::Simulated(settings(raw.settings)?),
            "anthropic" => Provider::Anthropic(http(raw.settings)?),
            "openai" => Provider::OpenAi(http(raw.settings)?),
            "command" => Provider::Command(settings(raw.settings)?),
            "claude-cli" => {
                let cli: RawClaudeCli = settings(raw.settings)?;
                Provider::ClaudeCli(ClaudeCli {
                    bin: cli.bin.unwrap_or_else(|| "claude".into()),
                    config_dir: cli.config_dir,
                    credential: Credential {
                        value: cli.api_key,
                        env: cli.api_key_env,
                        file: cli.api_key_file,
                    },
                    oauth_token: Credential {
                        value: cli.oauth_token,
                        env: cli.oauth_token_env,
                        file: cli.oauth_token_file,
                    },
                    base_url: cli.base_url,
                    allow_tools: cli.allow_tools,
                    warm: WarmCli::new(cli.warm_processes, cli.warm_turns, cli.warm_idle),
                })
            }
            other => {
                return Err(SettingError::new(
                    "provider",
                    format!(
                        "`{other}` is not known; use one of {}",
                        Provider::NAMES.join(", ")
                    ),
                ));
            }
        };
        Ok(Self {
            models: raw.models,
            default_model: raw.default_model,
            tags: raw.tags,
            max_concurrency: raw.max_concurrency.unwrap_or(8),
            weight: raw.weight.unwrap_or(1),
            limits: raw
                .limits
                .map(limits::read)
                .transpose()?
                .unwrap_or_default(),
            provider,
        })
    }
}

impl AccountConfig {
    /// The account that `settings` describe, named as in a configuration file.
    ///
    /// # Errors
    /// When a setting is unknown or cannot be; it is named.
    pub fn from_settings(
        id: &AccountId,
        settings: Map<String, Value>,
    ) -> Result<Self, SettingError> {
        let account = Self::try_from(self::settings::<RawAccount>(settings)?)?;
        match account.validate(id) {
            Ok(()) => Ok(account),
            Err(ConfigError::Value { key, problem }) => {
                let prefix = format!("accounts.{id}.");
                let key = key.strip_prefix(&prefix).unwrap_or(&key);
                Err(SettingError::new(key, problem))
            }
            Err(other) => Err(SettingError::new("", other.to_string())),
        }
    }

    /// The account as the dispatcher sees it: no secret, no provider settings.
    #[must_use]
    pub fn account(&self, id: &AccountId) -> Account {
        Account {
            id: id.clone(),
            provider: self.provider.name().into(),
            endpoint: self.provider.endpoint(),
            models: self.models.clone(),
            tags: self.tags.clone(),
            max_concurrency: self.max_concurrency,
            weight: self.weight,
            limits: self.limits.clone(),
        }
    }

    pub(super) fn validate(&self, id: &AccountId) -> Result<(), ConfigError> {
        let bad = |key: &str, problem: &str| {
            Err(ConfigError::value(format!("accounts.{id}.{key}"), problem))
        };
        if self.max_concurrency == 0 || self.max_concurrency > 65_535 {
            return bad("max_concurrency", "must be from 1 to 65535");
        }
        if self.weight == 0 {
            return bad("weight", "must be at least 1");
        }
        if let Some(model) = &self.default_model
            && !self.models.is_empty()
            && !self.models.contains(model)
        {
            return bad("default_model", "is not among the account's models");
        }
        let one_of = |credential: &Credential| {
            let given = [
                credential.value.is_some(),
                credential.env.is_some(),
                credential.file.is_some(),
            ];
            given.into_iter().filter(|given| *given).count() <= 1
        };
        if let Some(url) = self.provider.base_url()
            && !matches!(url.scheme(), "http" | "https")
        {
            return bad("base_url", "must begin with http:// or https://");
        }
        match &self.provider {
            Provider::Anthropic(api) | Provider::OpenAi(api) => {
                if api.max_tokens == Some(0) {
                    return bad("max_tokens", "must be at least 1");
                }
                if !one_of(&api.credential) {
                    return bad(
                        "api_key",
                        "give one of api_key, api_key_env and api_key_file",
                    );
                }
                if matches!(self.provider, Provider::Anthropic(_))
                    && !api.credential.is_configured()
                {
                    return bad(
                        "api_key_env",
                        "is not set; name the variable that holds the key",
                    );
                }
                if api.base_url.is_none() && !api.credential.is_configured() {
                    return bad("api_key_env", "is not set, and there is no base_url either");
                }
            }
            Provider::ClaudeCli(cli) => {
                let both = cli.credential.is_configured() && cli.oauth_token.is_configured();
                if both || !one_of(&cli.credential) || !one_of(&cli.oauth_token) {
                    return bad(
                        "api_key",
                        "give one credential at most: the CLI takes only one",
                    );
                }
                if let Some((key, problem)) = cli.warm.problem() {
                    return bad(key, problem);
                }
            }
            Provider::Command(command) => {
                if command.argv.first().is_none_or(String::is_empty) {
                    return bad("argv", "must name a program, such as [\"wc\", \"-w\"]");
                }
                let bad_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
                if command.env.keys().any(bad_name) {
                    return bad("env", "has a name that no environment variable can have");
                }
                if command.pass_env.iter().any(bad_name) {
                    return bad(
                        "pass_env",
                        "has a name that no environment variable can have",
                    );
                }
            }
            Provider::Simulated(simulated) => {
                let faults = &simulated.faults;
                let shares = [
                    faults.failed,
                    faults.throttled,
                    faults.overloaded,
                    faults.rejected,
                ];
                if shares.iter().any(|share| !(0.0..=1.0).contains(share))
                    || shares.iter().sum::<f64>() > 1.0
                {
                    return bad("faults", "are shares from 0 to 1 that add up to 1 at most");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(settings: &str) -> Result<Provider, String> {
        let config = Config::from_toml(&format!("[accounts.a]\n{settings}"));
        let config = config.map_err(|error| error.to_string())?;
        Ok(config.accounts["a"].provider.clone())
    }

    #[test]
    fn tools_are_off_unless_the_account_allows_them() {
        let Ok(Provider::ClaudeCli(cli)) = read("provider = \"claude-cli\"") else {
            panic!()
        };
        assert!(!cli.allow_tools);
        let allowed = read("provider = \"claude-cli\"\nallow_tools = true");
        let Ok(Provider::ClaudeCli(cli)) = allowed else {
            panic!()
        };
        assert!(cli.allow_tools);
    }

    #[test]
    fn the_environment_of_a_program_is_not_shown() {
        let provider = read(
            "provider = \"command\"\nargv = [\"cat\"]\nenv = { Token = \"hunter2\" }\n\
             pass_env = [\"HF_TOKEN\"]",
        );
        let Ok(Provider::Command(command)) = provider else {
            panic!()
        };
        assert!(command.env.contains_key("Token"), "names keep their case");
        assert!(!format!("{command:?}").contains("hunter2"));
    }

    #[test]
    fn what_cannot_be_is_named_with_its_key() {
        for (settings, key) in [
            (
                "provider = \"openai\"\nbase_url = \"ftp://host\"",
                "base_url",
            ),
            (
                "provider = \"openai\"\nbase_url = \"http://host\"\nmax_tokens = 0",
                "max_tokens",
            ),
            (
                "provider = \"command\"\nargv = [\"cat\"]\npass_env = [\"A=B\"]",
                "pass_env",
            ),
            ("provider = \"command\"\nargv = []", "argv"),
            (
                "provider = \"claude-cli\"\nwarm_processes = 300",
                "warm_processes",
            ),
            ("provider = \"claude-cli\"\nwarm_turns = 0", "warm_turns"),
            (
                "provider = \"claude-cli\"\nwarm_idle = \"10ms\"",
                "warm_idle",
            ),
        ] {
            let error = read(settings).unwrap_err();
            assert!(error.contains(&format!("accounts.a.{key}")), "{error}");
        }
    }
}
