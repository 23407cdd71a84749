//! Why the API did not do it, in words that say what to do next.

use std::{fmt, fmt::Write, path::PathBuf, time::Duration};

use sluice_shared::{
    api::{FieldError, Problem},
    clock,
};
use url::Url;

/// Longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Where the API key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `SLUICE_API_KEY`.
    Variable,
    /// The first admin key in the data folder.
    File(PathBuf),
    /// There is none; this is the file that was looked for.
    None(PathBuf),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable => f.write_str("SLUICE_API_KEY"),
            Self::File(path) => path.display().fmt(f),
            Self::None(_) => f.write_str("nowhere"),
        }
    }
}

/// Why the API did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address of the API is none.
    #[error("SLUICE_URL: `{url}` cannot be used: {problem}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The key cannot be sent.
    #[error("{0}")]
    BadKey(String),
    /// The idempotency key cannot be sent.
    #[error("an idempotency key has 1 to 255 printable ASCII characters")]
    BadIdempotencyKey,
    /// This machine cannot make requests at all.
    #[error("no request can be made: {0}")]
    Setup(String),
    /// No connection could be made.
    #[error("no Sluice answers at {url}: {cause}")]
    NoAnswer {
        /// Where.
        url: Url,
        /// Why.
        cause: String,
    },
    /// The connection was lost, or the answer took too long.
    #[error("the connection to {url} was lost: {cause}")]
    Lost {
        /// Where.
        url: Url,
        /// Why.
        cause: String,
    },
    /// The API said no.
    #[error("{}", .problem.detail)]
    Refused {
        /// What it said.
        problem: Box<Problem>,
        /// When it asked to be asked again.
        retry_after: Option<Duration>,
        /// Where the key came from, to explain a refused one.
        key_source: KeySource,
    },
    /// What answers is no Sluice, or something stands between.
    #[error("what answers at {url} does not speak like Sluice (status {status}): {excerpt}")]
    NotSluice {
        /// Where.
        url: Url,
        /// The HTTP status.
        status: u16,
        /// What it said.
        excerpt: String,
    },
}

impl ClientError {
    /// Whether the same request may well work later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::Lost { .. } => true,
            Self::Refused { problem, .. } => is_transient_status(problem.status),
            // A proxy in front of a server that restarts.
            Self::NotSluice { status, .. } => is_transient_status(*status),
            Self::BadUrl { .. } | Self::BadKey(_) | Self::BadIdempotencyKey | Self::Setup(_) => {
                false
            }
        }
    }

    /// Whether nothing was even connected to.
    #[must_use]
    pub fn is_refused_connection(&self) -> bool {
        matches!(self, Self::NoAnswer { .. })
    }

    /// Whether there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { problem, .. } => Some(problem.status),
            _ => None,
        }
    }

    /// Whether the call itself was wrong.
    #[must_use]
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::BadUrl { .. } | Self::BadIdempotencyKey)
    }

    /// How long to wait before try number `failures + 1`: as long as the server asks, else
    /// doubling from a quarter of a second, with jitter.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let asked = match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        pause(asked, failures, clock::chance())
    }

    /// The error for a terminal: what, where, and what to do about it.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = match self {
            Self::Refused { problem, .. } => render(problem),
            other => format!("error: {other}"),
        };
        if let Some(hint) = self.hint() {
            let _ = write!(text, "\nhint: {hint}");
        }
        text
    }

    /// What to do about it, when that can be told.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoAnswer { .. } => {
                Some("start one with `sluice up`, or set SLUICE_URL to where it runs".into())
            }
            Self::Lost { .. } => Some("whether it was done is unknown; look, or try again".into()),
            Self::NotSluice { .. } => {
                Some("is SLUICE_URL the address of Sluice, or of something else?".into())
            }
            Self::Refused {
                problem,
                retry_after,
                key_source,
            } => match problem.status {
                401 => Some(match key_source {
                    KeySource::Variable => "the key in SLUICE_API_KEY is unknown here or revoked; \
                        an admin makes one with `sluice keys create NAME --scope submit`"
                        .into(),
                    KeySource::File(path) => format!(
                        "the key in {} is not of this server; set SLUICE_API_KEY to one that is, \
                         or SLUICE_HOME to this server's data folder",
                        path.display()
                    ),
                    KeySource::None(path) => format!(
                        "set SLUICE_API_KEY to a key; an admin makes one with `sluice keys create \
                         NAME --scope submit`. There is no first admin key at {}: is SLUICE_HOME \
                         the server's data folder?",
                        path.display()
                    ),
                }),
                403 => Some(format!(
                    "the key from {key_source} may not do this; `sluice keys list` \
                    shows what each may do"
                )),
                429 | 503 => Some(match retry_after {
                    Some(pause) => {
                        format!("try again in {}", crate::output::rough(*pause))
                    }
                    None => "try again in a while; `sluice health` shows what is down".into(),
                }),
                _ => None,
            },
            Self::BadUrl { .. } => Some("write for example http://127.0.0.1:3000".into()),
            Self::BadKey(_) | Self::BadIdempotencyKey | Self::Setup(_) => None,
        }
    }
}

/// A problem document for a terminal.
fn render(problem: &Problem) -> String {
    let inert = crate::output::inert;
    let mut text = format!(
        "error[{}]: {}",
        inert(&problem.code),
        inert(&problem.detail)
    );
    // A single fault is often all that the detail says.
    let is_said =
        |error: &&FieldError| problem.detail == format!("{}: {}", error.field, error.detail);
    for error in problem.errors.iter().filter(|error| !is_said(error)) {
        let _ = write!(
            text,
            "\n  {}: {}",
            inert(&error.field),
            inert(&error.detail)
        );
    }
    text
}

fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

fn pause(asked: Option<Duration>, failures: u32, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    let full = Duration::from_millis(250)
        .saturating_mul(1 << doublings)
        .min(MAX_PAUSE);
    let own = full.mul_f64(1.0 - chance / 2.0);
    asked.map_or(own, |asked| asked.min(Duration::from_secs(60)).max(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, key_source: KeySource) -> ClientError {
        let problem = Problem {
            r#type: "about:blank".into(),
            title: "No".into(),
            status,
            detail: "the job cannot be".into(),
            code: "invalid_job".into(),
            errors: vec![FieldError {
                field: "[3].prompt".into(),
                detail: "is empty".into(),
            }],
            violated_policies: Vec::new(),
            resets_at: None,
        };
        ClientError::Refused {
            problem: Box::new(problem),
            retry_after: None,
            key_source,
        }
    }

    #[test]
    fn a_problem_shows_its_code_its_fields_and_a_way_out() {
        let text = refused(422, KeySource::Variable).explain();
        assert_eq!(
            text,
            "error[invalid_job]: the job cannot be\n  [3].prompt: is empty"
        );
        let text = refused(401, KeySource::None("/data/admin.key".into())).explain();
        assert!(
            text.contains("/data/admin.key") && text.contains("SLUICE_API_KEY"),
            "{text}"
        );
        let text = refused(403, KeySource::File("/data/admin.key".into())).explain();
        assert!(
            text.contains("hint: the key from /data/admin.key may not"),
            "{text}"
        );
    }

    #[test]
    fn a_server_that_is_not_there_says_how_to_start_one() {
        let url = "http://127.0.0.1:3000".parse().unwrap();
        let text = ClientError::NoAnswer {
            url,
            cause: "refused".into(),
        }
        .explain();
        assert!(
            text.contains("http://127.0.0.1:3000") && text.contains("sluice up"),
            "{text}"
        );
    }

    #[test]
    fn what_may_pass_is_tried_again_and_the_rest_is_not() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(
                refused(status, KeySource::Variable).is_transient(),
                "{status}"
            );
        }
        for status in [400, 401, 403, 404, 409, 413, 422] {
            assert!(
                !refused(status, KeySource::Variable).is_transient(),
                "{status}"
            );
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_heed_the_server() {
        assert_eq!(pause(None, 1, 0.0), Duration::from_millis(250));
        assert_eq!(pause(None, 3, 0.0), Duration::from_secs(1));
        assert_eq!(pause(None, 1000, 0.0), MAX_PAUSE);
        assert_eq!(pause(None, 3, 1.0), Duration::from_millis(500));
        assert_eq!(
            pause(Some(Duration::from_secs(5)), 1, 0.0),
            Duration::from_secs(5)
        );
        assert_eq!(
            pause(Some(Duration::from_secs(9999)), 1, 0.0),
            Duration::from_secs(60)
        );
    }
}
