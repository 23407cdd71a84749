//! The secrets of an account, and what is done so that none is shown.

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};
use sluice_shared::domain::{Completion, Outcome};

/// What stands in the place of a secret.
const HIDDEN: &str = "[hidden]";
/// Longest detail of an outcome, in characters.
const DETAIL: usize = 1000;
/// Longest name of a model or of a reason to stop.
const NAME: usize = 200;
/// A shorter value is no secret: to cut `1` or `true` out of a text would only garble it.
const SHORTEST: usize = 6;

/// The secrets of one account.
#[derive(Debug, Default)]
pub(super) struct Secrets(Vec<SecretString>);

impl Secrets {
    pub(super) fn new(secrets: impl IntoIterator<Item = SecretString>) -> Self {
        let mut secrets: Vec<SecretString> = secrets
            .into_iter()
            .filter(|secret| secret.expose_secret().len() >= SHORTEST)
            .collect();
        // The longest first, so that one that holds another is hidden whole.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.expose_secret().len()));
        Self(secrets)
    }

    /// `outcome` with words fit to be stored and shown.
    pub(super) fn clean(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Throttled {
                until,
                throttle,
                detail,
            } => Outcome::Throttled {
                until,
                throttle,
                detail: self.detail(&detail),
            },
            Outcome::Overloaded { until, detail } => Outcome::Overloaded {
                until,
                detail: self.detail(&detail),
            },
            Outcome::AuthFailed { detail } => Outcome::AuthFailed {
                detail: self.detail(&detail),
            },
            Outcome::OutOfCredit { detail } => Outcome::OutOfCredit {
                detail: self.detail(&detail),
            },
            Outcome::Rejected { code, detail } => Outcome::Rejected {
                code,
                detail: self.detail(&detail),
            },
            Outcome::Failed { code, detail } => Outcome::Failed {
                code,
                detail: self.detail(&detail),
            },
            Outcome::Completed(done) => Outcome::Completed(Completion {
                model: done.model.map(name),
                stop_reason: done.stop_reason.map(name),
                ..done
            }),
            Outcome::Cancelled => Outcome::Cancelled,
        }
    }

    /// `text` on one line, without secrets, at most a page long.
    pub(super) fn detail(&self, text: &str) -> String {
        let text = self.scrub(text);
        let mut detail = String::new();
        for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
            if word.is_empty() {
                continue;
            }
            if !detail.is_empty() {
                detail.push(' ');
            }
            detail.push_str(word);
            if detail.len() > DETAIL * 4 {
                break;
            }
        }
        match detail.char_indices().nth(DETAIL) {
            Some((end, _)) => format!("{}…", &detail[..end]),
            None => detail,
        }
    }

    /// `text` without secrets.
    pub(super) fn scrub<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.0 {
            if text.contains(secret.expose_secret()) {
                text = Cow::Owned(text.replace(secret.expose_secret(), HIDDEN));
            }
        }
        mask_keys(text)
    }
}

/// A name as a provider gives it: whatever it sends there, it is short and can be stored.
fn name(text: String) -> String {
    if text.len() <= NAME && !text.contains(char::is_control) {
        return text;
    }
    text.chars()
        .filter(|c| !c.is_control())
        .take(NAME)
        .collect()
}

/// Hides whatever looks like an API key: providers quote a refused key in part
/// (`Incorrect API key provided: sk-abc***xyz`), which no exact comparison finds.
fn mask_keys(text: Cow<'_, str>) -> Cow<'_, str> {
    const PREFIX: &str = "sk-";
    let of_a_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '.');
    let mut masked = String::new();
    let mut rest = text.as_ref();
    while let Some(start) = rest.find(PREFIX) {
        let inside_a_word = rest[..start]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        let key = &rest[start..];
        let length = key.find(|c| !of_a_key(c)).unwrap_or(key.len());
        masked.push_str(&rest[..start]);
        if inside_a_word || length < PREFIX.len() + 4 {
            masked.push_str(&key[..length]);
        } else {
            masked.push_str(PREFIX);
            masked.push_str(HIDDEN);
        }
        rest = &key[length..];
    }
    if masked.is_empty() {
        return text;
    }
    masked.push_str(rest);
    Cow::Owned(masked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        Secrets::new(["topsecret".into(), "topsecret-and-more".into(), "1".into()])
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_stands() {
        let detail = secrets().detail("key 'topsecret' and topsecret-and-more failed 1 time");
        assert_eq!(detail, "key '[hidden]' and [hidden] failed 1 time");
    }

    #[test]
    fn what_looks_like_a_key_is_hidden_and_ordinary_words_are_not() {
        let detail = secrets().detail("bad key: sk-proj-ab**cd. A task-force asks for sk-1");
        assert_eq!(detail, "bad key: sk-[hidden] A task-force asks for sk-1");
    }

    #[test]
    fn a_detail_is_one_bounded_line() {
        let detail = secrets().detail(&"é\n\u{1b}[31m\0".repeat(5000));
        assert!(detail.chars().count() == DETAIL + 1 && !detail.contains(['\n', '\0', '\u{1b}']));
        let detail = secrets().detail(&"x".repeat(100_000));
        assert_eq!(detail.chars().count(), DETAIL + 1);
    }
}
