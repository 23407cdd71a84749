//! What runs a prompt. A provider is an enum of the five kinds; each adapter maps what happened
//! to one [`Outcome`], and nothing else decides how an attempt ended.
//!
//! Two things hold for every adapter because they are done here, once: an attempt ends on cancel
//! and on its timeout, and no detail of an outcome shows a secret or is longer than a page.

mod answer;
mod anthropic;
mod api_error;
mod claude_cli;
mod command;
mod credential;
mod guardian;
mod http;
mod limits;
mod openai;
mod params;
mod process;
mod scratch;
mod secrets;
mod simulated;
mod sse;
mod stop;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    config::{self, AccountConfig},
    domain::{AccountId, Figure, JobId, Outcome, Request, figure},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    anthropic::Anthropic, claude_cli::ClaudeCli, command::Command, openai::OpenAi,
    simulated::Simulated, stop::Stop,
};

/// One attempt, as a provider sees it.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Which job; also the seed of a simulated provider.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// The client's session, if any.
    pub session: Option<&'a str>,
    /// What to do.
    pub request: &'a Request,
    /// How long the provider may take in all; [`run`](Provider::run) itself ends in time.
    pub timeout: Duration,
}

/// Where the text goes as it comes, and what else is heard. Sending never waits: who listens
/// bounds it.
#[derive(Clone, Debug)]
pub struct Sink {
    text: mpsc::UnboundedSender<String>,
    learned: Arc<Mutex<Vec<Figure>>>,
}

impl Sink {
    /// A sink and the receiving end of it.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let sink = Self {
            text: sender,
            learned: Arc::default(),
        };
        (sink, receiver)
    }

    /// More text. Nobody may be listening any more, which is fine.
    pub fn text(&self, text: impl Into<String>) {
        drop(self.text.send(text.into()));
    }

    /// What the provider says about its own limits.
    pub fn learn(&self, figures: impl IntoIterator<Item = Figure>) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        figure::merge(&mut learned, figures);
    }

    /// What has been learned so far.
    #[must_use]
    pub fn take_learned(&self) -> Vec<Figure> {
        std::mem::take(&mut *self.learned.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What runs a prompt.
#[derive(Debug)]
pub enum Provider {
    /// No model at all: made-up answers.
    Simulated(Simulated),
    /// Anthropic's Messages API.
    Anthropic(Anthropic),
    /// OpenAI's chat completions, or a server that speaks them.
    OpenAi(OpenAi),
    /// The official Claude Code CLI.
    ClaudeCli(ClaudeCli),
    /// Any program.
    Command(Command),
}

/// Why an account cannot be served by this worker. The message names the key and what to do.
#[derive(Debug, thiserror::Error)]
#[error("accounts.{account}.{key}: {problem}")]
pub struct BuildError {
    /// Which account.
    pub account: AccountId,
    /// The setting at fault.
    pub key: &'static str,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

/// What a look at an account from this machine found. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It works as far as can be told without a call that costs something.
    Ok(String),
    /// It does not.
    Problem {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        mend: String,
    },
}

impl Check {
    /// Whether all is well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }

    fn problem(problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Problem {
            problem: problem.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(detail) => f.write_str(detail),
            Self::Problem { problem, mend } => write!(f, "{problem}; {mend}"),
        }
    }
}

impl Provider {
    /// The provider of an account on this worker. Resolves its credential and finds its program;
    /// `home` is the data folder. An answer may be `max_output_bytes` long.
    ///
    /// # Errors
    /// When the credential or the program cannot be had here.
    pub fn build(
        id: &AccountId,
        config: &AccountConfig,
        home: &Path,
        max_output_bytes: usize,
    ) -> Result<Provider, BuildError> {
        let account = Account {
            id,
            config,
            max_output_bytes,
        };
        Ok(match &config.provider {
            config::Provider::Simulated(settings) => {
                Self::Simulated(Simulated::new(settings, max_output_bytes))
            }
            config::Provider::Anthropic(settings) => {
                Self::Anthropic(Anthropic::build(&account, settings)?)
            }
            config::Provider::OpenAi(settings) => Self::OpenAi(OpenAi::build(&account, settings)?),
            config::Provider::ClaudeCli(settings) => {
                Self::ClaudeCli(ClaudeCli::build(&account, settings, home)?)
            }
            config::Provider::Command(settings) => {
                Self::Command(Command::build(&account, settings)?)
            }
        })
    }

    /// Runs one prompt to one outcome. Ends promptly when `cancel` is cancelled (with
    /// [`Outcome::Cancelled`]) or when the timeout is over (failed, `timeout`), and leaves no
    /// process behind, also when it is dropped.
    ///
    /// What went to `sink` counts only when the outcome is completed.
    pub async fn run(
        &self,
        prompt: Prompt<'_>,
        cancel: &CancellationToken,
        sink: &Sink,
    ) -> Outcome {
        let stop = Stop::new(cancel, prompt.timeout);
        // Boxed, because the future of a whole HTTP answer or process is large; the simulated one
        // is not, and is measured by the microsecond.
        let (outcome, secrets) = match self {
            Self::Simulated(simulated) => return simulated.run(prompt, stop, sink).await,
            Self::Anthropic(api) => (Box::pin(api.run(prompt, stop, sink)).await, &api.secrets),
            Self::OpenAi(api) => (Box::pin(api.run(prompt, stop, sink)).await, &api.secrets),
            Self::ClaudeCli(cli) => (Box::pin(cli.run(prompt, stop, sink)).await, &cli.secrets),
            Self::Command(command) => (
                Box::pin(command.run(prompt, stop, sink)).await,
                &command.secrets,
            ),
        };
        secrets.clean(outcome)
    }

    /// How many tokens a request has, by the provider's own count; a rejection where it has none.
    ///
    /// # Errors
    /// What the call came to instead.
    pub async fn count(&self, request: &Request) -> Result<u64, Outcome> {
        match self {
            Self::Anthropic(api) => {
                let counted = Box::pin(api.count(request)).await;
                counted.map_err(|outcome| api.secrets.clean(outcome))
            }
            Self::Simulated(_) | Self::OpenAi(_) | Self::ClaudeCli(_) | Self::Command(_) => {
                let detail = "this provider counts no tokens before it runs a prompt";
                Err(Outcome::rejected("cannot_count", detail))
            }
        }
    }

    /// Looks whether the account works from this machine, within seconds and without a call that
    /// costs something.
    pub async fn check(&self) -> Check {
        let (check, secrets) = match self {
            Self::Simulated(_) => return Check::Ok("simulated: makes its answers up".into()),
            Self::Anthropic(api) => (Box::pin(api.check()).await, &api.secrets),
            Self::OpenAi(api) => (Box::pin(api.check()).await, &api.secrets),
            Self::ClaudeCli(cli) => (Box::pin(cli.check()).await, &cli.secrets),
            Self::Command(command) => (command.check(), &command.secrets),
        };
        match check {
            Check::Ok(detail) => Check::Ok(secrets.detail(&detail)),
            Check::Problem { problem, mend } => Check::Problem {
                problem: secrets.detail(&problem),
                mend,
            },
        }
    }
}

/// The account that a provider is built for.
struct Account<'a> {
    id: &'a AccountId,
    config: &'a AccountConfig,
    max_output_bytes: usize,
}

impl Account<'_> {
    fn error(&self, key: &'static str, problem: impl Into<String>) -> BuildError {
        BuildError {
            account: self.id.clone(),
            key,
            problem: problem.into(),
        }
    }

    /// The model for jobs that name none: the default, or the only one on offer.
    fn default_model(&self) -> Option<String> {
        match (&self.config.default_model, self.config.models.as_slice()) {
            (Some(model), _) => Some(model.clone()),
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        }
    }
}
