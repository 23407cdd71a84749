//! A job as a person reads it.

use std::fmt::Write;

use sluice_shared::{
    api::{AttemptView, JobError, JobView},
    domain::{State, Time, Usage},
};

use crate::output::{inert, one_line, relative, rough};

/// What happened to a job, a line a fact; without its answer.
pub(crate) fn facts(job: &JobView, now: Time) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}{}", one_line(value, 300));
    };
    fact("id", &job.id.to_string());
    fact("state", &state(job, now));
    if let Some(account) = &job.account {
        fact("account", &format!("{account} (attempt {})", job.attempt));
    } else {
        fact("lane", &job.lane);
    }
    if let Some(model) = &job.model {
        fact("model", model);
    }
    fact("client", &job.client);
    for (key, value) in &job.metadata {
        fact("metadata", &format!("{key}={value}"));
    }
    if let Some(origin) = job.retry_of {
        fact("retry of", &origin.to_string());
    }
    fact(
        "submitted",
        &format!("{} ({})", relative(job.created_at, now), job.created_at),
    );
    if let Some(took) = took(job) {
        fact("took", &took);
    }
    if let Some(result) = &job.result {
        fact("usage", &usage(&result.usage));
    }
    for attempt in job
        .attempts
        .iter()
        .flatten()
        .filter(|attempt| attempt.error.is_some())
    {
        fact("attempt", &describe_attempt(attempt));
    }
    if let Some(error) = &job.error {
        fact("error", &describe_error(error));
    }
    text
}

/// The code and the words of an error on one line.
pub(crate) fn describe_error(error: &JobError) -> String {
    format!("{}: {}", inert(&error.code), one_line(&error.message, 500))
}

/// Time from submission to end, and how much of it the provider took.
pub(crate) fn took(job: &JobView) -> Option<String> {
    let finished = job.finished_at?;
    let whole = rough(finished.since(job.created_at));
    Some(match job.started_at {
        Some(started) => format!("{whole}, {} of it running", rough(finished.since(started))),
        None => whole,
    })
}

fn state(job: &JobView, now: Time) -> String {
    match job.state {
        State::Queued => match job.run_at.filter(|time| *time > now) {
            Some(time) => format!("queued, to run {}", relative(time, now)),
            None => "queued".into(),
        },
        state if job.cancel_requested && !state.is_terminal() => {
            format!("{state}, being cancelled")
        }
        state => state.to_string(),
    }
}

fn usage(usage: &Usage) -> String {
    let mut text = format!("{} tokens in", usage.input_tokens);
    if usage.cache_read_tokens > 0 {
        let _ = write!(text, " ({} from the cache)", usage.cache_read_tokens);
    }
    let _ = write!(text, ", {} out", usage.output_tokens);
    if let Some(cost) = usage.cost_microusd {
        let _ = write!(text, ", ${}.{:06}", cost / 1_000_000, cost % 1_000_000);
    }
    text
}

fn describe_attempt(attempt: &AttemptView) -> String {
    let why = attempt
        .error
        .as_ref()
        .map(describe_error)
        .unwrap_or_default();
    format!(
        "{} on {}: {}: {why}",
        attempt.number, attempt.account, attempt.outcome
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failed_job_shows_what_was_tried() {
        let job: JobView = serde_json::from_value(json!({
            "id": "0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42", "state": "failed", "client": "ci",
            "lane": "any", "account": "main", "priority": 0, "attempt": 2, "failures": 2,
            "max_attempts": 2, "delivery": "at_least_once", "timeout": "10m",
            "created_at": "2026-11-23T20:00:00.000Z", "started_at": "2026-11-23T20:00:01.000Z",
            "finished_at": "2026-11-23T20:00:03.500Z",
            "error": {"code": "timeout", "message": "no answer\nin 2s"},
            "attempts": [{
                "number": 1, "account": "main", "outcome": "failed",
                "error": {"code": "stream_cut", "message": "cut \u{1b}[31m"},
                "dispatched_at": "2026-11-23T20:00:00.000Z",
                "finished_at": "2026-11-23T20:00:00.500Z",
            }],
        }))
        .unwrap();
        let now = "2026-11-23T20:05:00.000Z".parse().unwrap();
        assert_eq!(
            facts(&job, now),
            "id        0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42\n\
             state     failed\n\
             account   main (attempt 2)\n\
             client    ci\n\
             submitted 5m 0s ago (2026-11-23T20:00:00.000Z)\n\
             took      3.5s, 2.5s of it running\n\
             attempt   1 on main: failed: stream_cut: cut \u{fffd}[31m\n\
             error     timeout: no answer in 2s\n"
        );
    }
}
