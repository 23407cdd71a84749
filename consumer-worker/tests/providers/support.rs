//! What all tests here need: an account, one run of a prompt, and how its outcome is shown.

use std::{path::Path, time::Duration};

use sluice_consumer_worker::provider::{BuildError, Prompt, Provider, Sink};
use sluice_shared::{
    clock,
    config::Config,
    domain::{AccountId, JobId, Outcome, Request, Time, Usage},
};
use tokio_util::sync::CancellationToken;

/// The key of every account here. It must be seen by no one but the provider.
pub(crate) const KEY: &str = "sk-ant-secret-0123456789";
/// Longest answer of every account here.
pub(crate) const MAX_OUTPUT: usize = 100_000;

/// The provider of an account with these settings.
pub(crate) fn try_build(settings: &str, home: &Path) -> Result<Provider, BuildError> {
    let config = Config::from_toml(&format!("[accounts.main]\n{settings}")).unwrap();
    let id: AccountId = "main".parse().unwrap();
    Provider::build(&id, &config.accounts[&id], home, MAX_OUTPUT)
}

/// The provider of an account with these settings, which needs no data folder.
pub(crate) fn build(settings: &str) -> Provider {
    try_build(settings, Path::new("/nowhere")).unwrap()
}

/// One run and all that came of it.
pub(crate) struct Ran {
    pub(crate) outcome: Outcome,
    pub(crate) deltas: Vec<String>,
    started: Time,
}

/// Runs `request` to its end.
pub(crate) async fn run(provider: &Provider, request: &Request) -> Ran {
    run_for(provider, request, Duration::from_secs(60)).await
}

/// Runs `request` with this timeout.
pub(crate) async fn run_for(provider: &Provider, request: &Request, timeout: Duration) -> Ran {
    let (sink, mut received) = Sink::new();
    let started = clock::now();
    let cancel = CancellationToken::new();
    let outcome = provider.run(prompt(request, timeout), &cancel, &sink).await;
    drop(sink);
    let mut deltas = Vec::new();
    while let Some(delta) = received.recv().await {
        deltas.push(delta);
    }
    let ran = Ran {
        outcome,
        deltas,
        started,
    };
    assert!(
        !format!("{:?}", ran.outcome).contains(KEY),
        "the key is shown: {:?}",
        ran.outcome
    );
    ran
}

/// The first attempt of a job of its own.
pub(crate) fn prompt(request: &Request, timeout: Duration) -> Prompt<'_> {
    Prompt {
        job: JobId::generate(),
        attempt: 1,
        session: None,
        request,
        timeout,
    }
}

/// Runs `request` and cancels it once `when` has seen the deltas that it waits for.
pub(crate) async fn cancel_when(
    provider: &Provider,
    request: &Request,
    mut when: impl FnMut(&str) -> bool,
) -> Ran {
    let (sink, mut received) = Sink::new();
    let started = clock::now();
    let cancel = CancellationToken::new();
    let mut deltas = Vec::new();
    let watch = async {
        while let Some(delta) = received.recv().await {
            deltas.push(delta);
            if when(&deltas.concat()) {
                break;
            }
        }
        cancel.cancel();
    };
    let running = provider.run(prompt(request, Duration::from_secs(60)), &cancel, &sink);
    let (outcome, ()) = tokio::join!(running, watch);
    Ran {
        outcome,
        deltas,
        started,
    }
}

impl Ran {
    /// The outcome in one line. Times are shown as what they are counted from.
    pub(crate) fn line(&self) -> String {
        match &self.outcome {
            Outcome::Completed(done) => {
                assert_eq!(
                    self.deltas.concat(),
                    done.text,
                    "the deltas are not the answer"
                );
                format!(
                    "completed {:?} by {} because {}, {}",
                    done.text,
                    done.model.as_deref().unwrap_or("-"),
                    done.stop_reason.as_deref().unwrap_or("-"),
                    usage(&done.usage)
                )
            }
            Outcome::Throttled {
                until,
                throttle,
                detail,
            } => {
                format!(
                    "throttled {throttle:?} until {}: {detail}",
                    self.when(*until)
                )
            }
            Outcome::Overloaded { until, detail } => {
                format!("overloaded until {}: {detail}", self.when(*until))
            }
            Outcome::AuthFailed { detail } => format!("auth_failed: {detail}"),
            Outcome::OutOfCredit { detail } => format!("out_of_credit: {detail}"),
            Outcome::Rejected { code, detail } => format!("rejected {code}: {detail}"),
            Outcome::Failed { code, detail } => format!("failed {code}: {detail}"),
            Outcome::Cancelled => "cancelled".into(),
        }
    }

    /// The code of a failure; fails for all else.
    pub(crate) fn failure(&self) -> &str {
        match &self.outcome {
            Outcome::Failed { code, .. } => code,
            other => panic!("not failed but {other:?}"),
        }
    }

    /// The text of an answer; fails for all else.
    pub(crate) fn text(&self) -> &str {
        match &self.outcome {
            Outcome::Completed(done) => &done.text,
            other => panic!("not completed but {other:?}"),
        }
    }

    fn when(&self, until: Option<Time>) -> String {
        let Some(until) = until else {
            return "-".into();
        };
        let text = until.to_string();
        if text.ends_with("-01T00:00:00.000Z") {
            return "the first of a month".into();
        }
        // Rounded: a busy machine may take a few seconds from where it was counted to here.
        let seconds = until.since(self.started).as_secs();
        let step = if seconds < 1000 { 10 } else { 100 };
        format!("+{}s", (seconds + step / 2) / step * step)
    }
}

fn usage(usage: &Usage) -> String {
    let cost = usage
        .cost_microusd
        .map_or_else(String::new, |cost| format!(", {cost} microusd"));
    format!(
        "{} in (cache {} read, {} written), {} out{cost}",
        usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens
    )
}

/// The time in `seconds`, as RFC 3339.
pub(crate) fn in_seconds(seconds: u64) -> String {
    (clock::now() + Duration::from_secs(seconds)).to_string()
}

/// Whether this process is there and does something: one that is dead and not yet waited for
/// by its parent does not.
pub(crate) fn is_running(id: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else {
        return false;
    };
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.starts_with(['Z', 'X'])
}

/// The processes that have this text in their environment.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    processes("environ", text)
}

/// The processes that were started by this command line.
pub(crate) fn processes_running(command: &str) -> Vec<u32> {
    processes("cmdline", command)
}

/// The processes that have this text in a file of theirs, in which a NUL stands for a space.
fn processes(file: &str, text: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|id| {
            std::fs::read(format!("/proc/{id}/{file}")).is_ok_and(|found| {
                let found = String::from_utf8_lossy(&found).replace('\0', " ");
                found.contains(text) && is_running(*id)
            })
        })
        .collect()
}

/// Waits until `condition` holds: of another process, nothing tells when it does.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
