//! Jobs that come after others: when they may run, and how the results of those get into their
//! prompts. Pure.
//!
//! A job can only come after jobs that are there already, so there are no circles. Filling in is
//! done by two plain placeholders and no template language: a language that can join texts can
//! make any amount of text out of a small one, and nothing that a result says is ever looked at.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{JobId, State, Time};

/// Jobs that one job may come after.
pub const MOST_PARENTS: usize = 100;

/// The `run_at` of a job that waits for others: the end of the year 9999, which never comes.
pub const HELD: Time = Time::from_millis(253_402_300_799_999);

/// What becomes of a job when one that it comes after does not succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnParentFailure {
    /// It ends `failed` with `parent_failed`.
    #[default]
    Fail,
    /// It ends `cancelled` with `skipped`.
    Skip,
    /// It runs all the same when all have ended; a result that there is not is an empty text.
    Run,
}

/// What a job waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The jobs that must end first, each once.
    pub parents: Vec<JobId>,
    /// What if one of them does not succeed.
    pub on_failure: OnParentFailure,
    /// Not before this time either.
    pub run_at: Time,
}

/// What is to be done with a job that comes after others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on waiting.
    Wait,
    /// It may run.
    Run,
    /// It ends, because a job before it did not succeed.
    End,
}

/// What is to be done with a job, by the states of those that it comes after.
#[must_use]
pub fn next(parents: &[State], on_failure: OnParentFailure) -> Next {
    let failed = |state: &State| state.is_terminal() && *state != State::Succeeded;
    if on_failure != OnParentFailure::Run && parents.iter().any(failed) {
        return Next::End;
    }
    if parents.iter().all(|state| state.is_terminal()) {
        Next::Run
    } else {
        Next::Wait
    }
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// As it stands there.
    Text(&'a str),
    /// The result of the parent with this index.
    Result(usize),
}

/// The parts of a prompt. `{{ results[0] }}` is the text of the first parent's result,
/// `{{ results.ID }}` that of the parent with this id, and `{{ "{{" }}` two braces.
///
/// # Errors
/// What is wrong with a placeholder, for people.
pub fn parts<'a>(text: &'a str, parents: &[JobId]) -> Result<Vec<Part<'a>>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        if at > 0 {
            parts.push(Part::Text(&rest[..at]));
        }
        let behind = &rest[at + 2..];
        let Some(end) = behind.find("}}") else {
            return Err("has `{{` without `}}`; write `{{ \"{{\" }}` for the braces alone".into());
        };
        let name = behind[..end].trim();
        parts.push(match name {
            r#""{{""# => Part::Text("{{"),
            _ => Part::Result(parent(name, parents)?),
        });
        rest = &behind[end + 2..];
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

fn parent(name: &str, parents: &[JobId]) -> Result<usize, String> {
    let shown: String = name.chars().take(80).collect();
    let unknown = || {
        format!(
            "has `{{{{ {shown} }}}}`; write `{{{{ results[0] }}}}` or `{{{{ results.ID }}}}` with \
             the id of a job in `after`, or `{{{{ \"{{{{\" }}}}` for the braces alone"
        )
    };
    let key = name.strip_prefix("results").ok_or_else(unknown)?;
    let id = match (key.strip_prefix('.'), key.strip_prefix('[')) {
        (Some(id), _) => id,
        (None, Some(key)) => {
            let key = key.strip_suffix(']').ok_or_else(unknown)?.trim();
            if let Ok(index) = key.parse::<usize>() {
                return match index < parents.len() {
                    true => Ok(index),
                    false => Err(format!(
                        "has `results[{index}]`, and `after` names {}",
                        parents.len()
                    )),
                };
            }
            key.trim_matches(['"', '\''])
        }
        (None, None) => return Err(unknown()),
    };
    let id: JobId = id.trim().parse().map_err(|_| unknown())?;
    let index = parents.iter().position(|parent| *parent == id);
    index.ok_or_else(|| format!("has the result of {id}, which is not in `after`"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(count: usize) -> Vec<JobId> {
        (0..count).map(|_| JobId::generate()).collect()
    }

    #[test]
    fn a_job_waits_until_it_is_known_what_becomes_of_it() {
        use OnParentFailure::{Fail, Run, Skip};
        use State::{Cancelled, Expired, Failed, Queued, Running, Succeeded};
        let check = |parents: &[State], on, expected| {
            assert_eq!(next(parents, on), expected, "{parents:?} {on:?}");
        };
        for on in [Fail, Skip, Run] {
            check(&[Succeeded, Succeeded], on, Next::Run);
            check(&[Succeeded, Running], on, Next::Wait);
            check(&[Queued], on, Next::Wait);
        }
        for failed in [Failed, Cancelled, Expired] {
            check(&[failed, Running], Fail, Next::End);
            check(&[Succeeded, failed], Skip, Next::End);
            check(&[failed, Running], Run, Next::Wait);
            check(&[failed, Succeeded], Run, Next::Run);
        }
    }

    #[test]
    fn placeholders_name_parents() {
        let parents = ids(2);
        let text = format!("a {{{{ results[1] }}}}{{{{results.{}}}}} b", parents[0]);
        assert_eq!(
            parts(&text, &parents).unwrap(),
            [
                Part::Text("a "),
                Part::Result(1),
                Part::Result(0),
                Part::Text(" b")
            ]
        );
        let quoted = format!("{{{{ results[\"{}\"] }}}}", parents[1]);
        assert_eq!(parts(&quoted, &parents).unwrap(), [Part::Result(1)]);
        let braces = parts("{{ \"{{\" }} x }}", &parents).unwrap();
        assert_eq!(braces, [Part::Text("{{"), Part::Text(" x }}")]);
        assert_eq!(parts("", &parents).unwrap(), []);
        assert_eq!(parts("a } { b", &parents).unwrap(), [Part::Text("a } { b")]);
    }

    #[test]
    fn what_is_no_placeholder_is_told() {
        let parents = ids(2);
        let other = format!("{{{{ results.{} }}}}", JobId::generate());
        for (text, words) in [
            ("{{ results[2] }}", "`after` names 2"),
            ("{{ results[-1] }}", "write `{{ results[0] }}`"),
            ("{{ name }}", "write `{{ results[0] }}`"),
            ("{{ results[0] ~ results[0] }}", "write `{{ results[0] }}`"),
            ("{{ results }}", "write"),
            ("{{", "without `}}`"),
            (other.as_str(), "not in `after`"),
        ] {
            let error = parts(text, &parents).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parts_or_an_error(text in "[a{}\" .\\[\\]0results]{0,40}") {
            let parents = ids(1);
            if let Ok(parts) = parts(&text, &parents) {
                let length: usize = parts.iter().map(|part| match part {
                    Part::Text(text) => text.len(),
                    Part::Result(_) => 0,
                }).sum();
                prop_assert!(length <= text.len());
            }
        }
    }
}
