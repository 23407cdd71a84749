//! The official Claude Code CLI, run headless: one process a prompt, or a few that are kept for
//! the next ones ([`pool`]), in the account's own config directory, with an environment of our
//! making.
//!
//! **Nothing in a prompt is a command or a path.** Two habits of the CLI would make it one, in
//! every mode and with every tool off, and each has its guard here and a test with a canary file:
//! a prompt that begins with `/word` is a slash command ([`inert`]), and `@/path` is replaced by
//! what the file holds (`CLAUDE_CODE_DISABLE_ATTACHMENTS`). The program's home and its working
//! directory are empty besides, and its tools are off unless the account allows them.

mod arguments;
mod lines;
mod pool;
mod report;
mod stamp;
mod version;
mod warm;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sluice_shared::{
    clock, config,
    domain::{AccountId, Completion, Outcome, Time},
};
use tokio::process;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::{
    arguments::{Arguments, Feed, inert},
    lines::Lines,
    pool::{Key, Place, Pool},
    report::Report,
    stamp::Stamp,
    version::Versions,
    warm::Warm,
};
use super::{
    Account, BuildError, Check, Prompt, Sink,
    answer::{Answer, storable, too_large},
    command::stderr_end,
    credential::{self, API_KEY, OAUTH_TOKEN},
    process as run,
    scratch::Scratch,
    secrets::Secrets,
    stop::Stop,
};

/// How long `auth status` may take on a busy machine.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
/// The CLI refuses more on its standard input (seen: "stdin exceeds 10 MB", exit code 1).
const MAX_INPUT_BYTES: usize = 10_000_000;
/// The longest timer that the CLI's runtime has; beyond it a timer fires at once.
const MAX_TIMER_MS: u128 = i32::MAX as u128;
/// What is passed on besides: how this machine reaches the network at all.
const NETWORK: [&str; 10] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// An account of the Claude Code CLI.
#[derive(Debug)]
pub struct ClaudeCli {
    account: AccountId,
    bin: PathBuf,
    config_dir: PathBuf,
    login: Login,
    base_url: Option<Url>,
    allow_tools: bool,
    default_model: Option<String>,
    max_output_bytes: usize,
    versions: Versions,
    pool: Option<Pool>,
    pub(super) secrets: Secrets,
}

/// How the CLI proves who it is. It takes the first that it finds, silently, so that it is given
/// one only.
#[derive(Debug)]
enum Login {
    ApiKey(SecretString),
    OauthToken(SecretString),
    /// Whoever has logged in, in the config directory.
    ConfigDir,
}

impl ClaudeCli {
    pub(super) fn build(
        account: &Account<'_>,
        settings: &config::ClaudeCli,
        home: &Path,
    ) -> Result<Self, BuildError> {
        let bin = run::find_program(&settings.bin).map_err(|problem| {
            let what_to_do = "install it (npm install -g @anthropic-ai/claude-code) or set bin";
            account.error("bin", format!("{problem}; {what_to_do}"))
        })?;
        let config_dir = match &settings.config_dir {
            Some(dir) => dir.clone(),
            None => home.join("claude").join(account.id.as_str()),
        };
        let config_dir = private_dir(&config_dir).map_err(|error| {
            account.error(
                "config_dir",
                format!("{} cannot be had: {error}", config_dir.display()),
            )
        })?;
        let key = credential::resolve(account, &API_KEY, &settings.credential)?;
        let token = credential::resolve(account, &OAUTH_TOKEN, &settings.oauth_token)?;
        let login = match (key, token) {
            (Some(key), _) => Login::ApiKey(key),
            (None, Some(token)) => Login::OauthToken(token),
            (None, None) => Login::ConfigDir,
        };
        let secrets = match &login {
            Login::ApiKey(secret) | Login::OauthToken(secret) => Secrets::new([secret.clone()]),
            Login::ConfigDir => Secrets::default(),
        };
        Ok(Self {
            account: account.id.clone(),
            bin,
            config_dir,
            login,
            base_url: settings.base_url.clone(),
            allow_tools: settings.allow_tools,
            default_model: account.default_model(),
            max_output_bytes: account.max_output_bytes,
            versions: Versions::default(),
            pool: Pool::new(account.id, settings.warm),
            secrets,
        })
    }

    pub(super) async fn run(&self, prompt: Prompt<'_>, stop: Stop<'_>, sink: &Sink) -> Outcome {
        self.answer(prompt, stop, sink)
            .await
            .unwrap_or_else(|outcome| outcome)
    }

    async fn answer(
        &self,
        prompt: Prompt<'_>,
        stop: Stop<'_>,
        sink: &Sink,
    ) -> Result<Outcome, Outcome> {
        let arguments = Arguments::read(
            prompt.request,
            self.default_model.as_deref(),
            self.allow_tools,
        )?;
        let input = inert(prompt.request.as_text())?;
        let scratch = Scratch::new().map_err(|error| run::no_scratch(&error))?;
        let version = self
            .versions
            .require(&self.bin, || self.command(&scratch), stop)
            .await?;
        if let Some(pool) = &self.pool
            && arguments.leave_no_trace()
        {
            let key = Key {
                arguments: arguments.clone(),
                version,
                login: self.stored_login(),
            };
            if let Some((place, waiting)) = pool.take(&key) {
                let warm = match waiting {
                    Some(warm) => warm,
                    None => self.start_warm(&arguments, scratch)?,
                };
                return self
                    .answer_warm(pool, (key, warm, place), &input, stop, sink)
                    .await;
            }
        }
        self.answer_alone(&arguments, input, scratch, (prompt, stop), sink)
            .await
    }

    /// Runs a prompt in a process of its own.
    async fn answer_alone(
        &self,
        arguments: &Arguments,
        input: String,
        scratch: Scratch,
        (prompt, stop): (Prompt<'_>, Stop<'_>),
        sink: &Sink,
    ) -> Result<Outcome, Outcome> {
        let mut command = self.command(&scratch);
        command.env(
            "API_TIMEOUT_MS",
            prompt.timeout.as_millis().min(MAX_TIMER_MS).to_string(),
        );
        arguments
            .apply(&mut command, &scratch, Feed::One)
            .map_err(|error| run::no_scratch(&error))?;
        let mut report = Report::new(Answer::new(self.max_output_bytes, sink));
        let mut lines = Lines::new(self.max_output_bytes);
        let exit = run::run(command, input.into_bytes(), stop, |chunk| {
            lines.feed(chunk, |line| report.line(line))
        })
        .await?;
        report.line(lines.rest())?;
        self.judge(report, exit.code(), &exit.stderr)
    }

    /// Runs a prompt in a process that is kept if nothing speaks against it.
    async fn answer_warm(
        &self,
        pool: &Pool,
        (key, mut warm, place): (Key, Warm, Place),
        input: &str,
        stop: Stop<'_>,
        sink: &Sink,
    ) -> Result<Outcome, Outcome> {
        let answer = Answer::new(self.max_output_bytes, sink);
        let mut report = Report::new(answer).of(warm.conversation());
        let turn = match stop.race(warm.turn(input, &mut report)).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(outcome)) | Err(outcome) => {
                warm.stop().await;
                return Err(outcome);
            }
        };
        if report.has_strayed() {
            warm.stop().await;
            return Err(Outcome::failed(
                "unexpected_output",
                "the CLI spoke of another conversation than this prompt's",
            ));
        }
        let outcome = self.judge(report, turn.code.unwrap_or_default(), &turn.stderr);
        if !turn.is_clean || outcome.is_err() {
            warm.stop().await;
        } else if pool.is_worn(&warm) {
            pool.retire(warm, "it has run its number of prompts");
            self.start_next(pool, key, place);
        } else {
            pool.give_back(key, warm, place).await;
        }
        outcome
    }

    /// Starts what takes the place of a process that has had its turns, so that no prompt waits
    /// for the start.
    fn start_next(&self, pool: &Pool, key: Key, place: Place) {
        let Ok(scratch) = Scratch::new() else {
            return;
        };
        // Why not is said to the next prompt, which tries for itself.
        if let Ok(warm) = self.start_warm(&key.arguments, scratch) {
            pool.keep_new(key, warm, place);
        }
    }

    fn start_warm(&self, arguments: &Arguments, scratch: Scratch) -> Result<Warm, Outcome> {
        let mut command = self.command(&scratch);
        // Each prompt has its own timeout, which is ours to keep.
        command.env("API_TIMEOUT_MS", MAX_TIMER_MS.to_string());
        arguments
            .apply(&mut command, &scratch, Feed::Lines)
            .map_err(|error| run::no_scratch(&error))?;
        Warm::start(command, scratch, self.max_output_bytes)
    }

    /// Which login is in the config directory, if that is what is used.
    fn stored_login(&self) -> Option<Stamp> {
        match self.login {
            Login::ConfigDir => Stamp::of(&self.config_dir.join(".credentials.json")).ok(),
            Login::ApiKey(_) | Login::OauthToken(_) => None,
        }
    }

    /// What a whole report comes to. An error is an outcome too, of a prompt that has no answer.
    fn judge(&self, report: Report<'_>, code: i32, stderr: &str) -> Result<Outcome, Outcome> {
        if let Some(warning) = report.warning() {
            tracing::info!(account = %self.account, "{warning}");
        }
        let stderr = stderr_end(&self.secrets, stderr);
        match report.judge(code, &stderr, clock::now()) {
            Outcome::Completed(completion) if completion.text.len() > self.max_output_bytes => {
                Err(too_large(self.max_output_bytes))
            }
            Outcome::Completed(completion) => {
                let text = storable(&completion.text).into_owned();
                Ok(Outcome::Completed(Completion { text, ..completion }))
            }
            outcome => Err(outcome),
        }
    }

    /// The CLI with the account's environment and no arguments.
    fn command(&self, scratch: &Scratch) -> process::Command {
        let mut command = run::command(&self.bin, scratch);
        for name in NETWORK {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("CLAUDE_CONFIG_DIR", &self.config_dir)
            // `@/path` in a prompt stays text. Without this any job reads the worker's files.
            .env("CLAUDE_CODE_DISABLE_ATTACHMENTS", "1")
            // Whoever keeps the queue retries; the CLI would hide a limit for minutes.
            .env("CLAUDE_CODE_MAX_RETRIES", "0")
            // A cut stream would be asked for again in silence, after its deltas have been told.
            .env("CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK", "1")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .env("DISABLE_AUTOUPDATER", "1");
        match &self.login {
            Login::ApiKey(key) => command.env("ANTHROPIC_API_KEY", key.expose_secret()),
            Login::OauthToken(token) => {
                command.env("CLAUDE_CODE_OAUTH_TOKEN", token.expose_secret())
            }
            Login::ConfigDir => &mut command,
        };
        if let Some(url) = &self.base_url {
            // The CLI appends its path to the text, and a URL of ours always ends in a slash.
            command.env("ANTHROPIC_BASE_URL", url.as_str().trim_end_matches('/'));
        }
        command
    }

    pub(super) async fn check(&self) -> Check {
        match self.look().await {
            Ok(check) => check,
            Err(outcome) => {
                let words = outcome.error().map(|(_, words)| words.to_owned());
                Check::problem(
                    words.unwrap_or_default(),
                    "see that the CLI runs on this machine (claude --version)",
                )
            }
        }
    }

    async fn look(&self) -> Result<Check, Outcome> {
        let cancel = CancellationToken::new();
        let stop = Stop::new(&cancel, CHECK_TIMEOUT);
        let scratch = Scratch::new().map_err(|error| run::no_scratch(&error))?;
        let version = self
            .versions
            .require(&self.bin, || self.command(&scratch), stop)
            .await?;
        let mut command = self.command(&scratch);
        command.args(["auth", "status", "--json"]);
        let mut output = Vec::new();
        let exit = run::run(command, Vec::new(), stop, |chunk| {
            output.extend_from_slice(chunk);
            Ok(())
        })
        .await?;
        let Ok(status) = serde_json::from_slice::<Value>(&output) else {
            let words = stderr_end(&self.secrets, &exit.stderr);
            return Ok(Check::problem(
                format!("`claude auth status` does not say: {words}"),
                "run it by hand to see why",
            ));
        };
        let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default();
        if status.get("loggedIn").and_then(Value::as_bool) != Some(true) {
            return Ok(Check::problem(
                format!("claude {version} is not logged in"),
                format!(
                    "run `CLAUDE_CONFIG_DIR={} claude auth login` on this machine, or set \
                     api_key_env or oauth_token_env",
                    self.config_dir.display()
                ),
            ));
        }
        let plan = match text("subscriptionType") {
            "" => String::new(),
            plan => format!(", plan {plan}"),
        };
        // It looks at what it has and asks nobody, so that a revoked key looks well too.
        Ok(Check::Ok(format!(
            "claude {version}, login by {}{plan} (not tried: that would cost a call)",
            text("authMethod")
        )))
    }
}

/// `dir` as an absolute path, made when it is missing, closed to all others.
fn private_dir(dir: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let dir = std::path::absolute(dir)?;
    if !dir.is_dir() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)?;
    }
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o700))?;
    Ok(dir)
}

/// The time of `seconds` since the epoch, as the CLI gives it.
fn from_seconds(seconds: f64) -> Option<Time> {
    let millis = std::time::Duration::try_from_secs_f64(seconds)
        .ok()?
        .as_millis();
    Some(Time::from_millis(i64::try_from(millis).ok()?))
}
