//! Which jobs a list asks for. Pure.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sluice_shared::domain::{JobId, State, Time};
use uuid::Uuid;

use super::{
    extract::{Params, bad_parameter},
    problem::{ApiError, Code},
};
use crate::store::Filter;

const DEFAULT_LIMIT: u64 = 50;
const MOST: u64 = 500;
const MOST_METADATA: usize = 32;

/// What a cursor begins with, so that another kind can be told from it.
const CURSOR: u8 = 1;

const NAMES: [&str; 9] = [
    "state", "account", "client", "model", "batch", "from", "to", "limit", "cursor",
];

/// A list that was asked for.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) filter: Filter,
    pub(super) cursor: Option<JobId>,
    pub(super) limit: u64,
}

/// Reads the query of a list.
pub(super) fn parse(query: Option<&str>) -> Result<Listing, ApiError> {
    let params = Params::parse(query, |name| {
        NAMES.contains(&name)
            || name
                .strip_prefix("metadata.")
                .is_some_and(|key| !key.is_empty())
    })?;
    let time = |name| {
        params.parsed::<Time>(name, |text, _| {
            format!(
                "is `{text}`, not a time; write for example 2026-11-23T20:00:00Z (a `+` as %2B)"
            )
        })
    };
    let text = |name| match params.get(name) {
        Some("") => Err(bad_parameter(name, "is empty")),
        text => Ok(text.map(str::to_owned)),
    };
    let limit = params
        .parsed("limit", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(DEFAULT_LIMIT);
    if !(1..=MOST).contains(&limit) {
        return Err(bad_parameter(
            "limit",
            &format!("is {limit}; it goes from 1 to {MOST}"),
        ));
    }
    let filter = Filter {
        states: params
            .get("state")
            .map(states)
            .transpose()?
            .unwrap_or_default(),
        account: params.parsed("account", |_, error| format!("cannot be: {error}"))?,
        client: text("client")?,
        model: text("model")?,
        metadata: metadata(&params)?,
        batch: params.parsed("batch", |text, _| format!("is `{text}`, not a batch's id"))?,
        from: time("from")?,
        to: time("to")?,
    };
    Ok(Listing {
        filter,
        cursor: params.get("cursor").map(job_after).transpose()?,
        limit,
    })
}

pub(super) fn states(text: &str) -> Result<Vec<State>, ApiError> {
    text.split(',')
        .map(|name| {
            State::from_name(name).ok_or_else(|| {
                let known = State::ALL.map(State::as_str).join(", ");
                bad_parameter("state", &format!("is `{name}`; there are {known}"))
            })
        })
        .collect()
}

fn metadata(params: &Params<'_>) -> Result<Vec<(String, String)>, ApiError> {
    let notes: Vec<(String, String)> = params
        .iter()
        .filter_map(|(name, value)| {
            Some((name.strip_prefix("metadata.")?.to_owned(), value.to_owned()))
        })
        .collect();
    if notes.len() > MOST_METADATA {
        return Err(bad_parameter(
            "metadata",
            &format!("is given more than {MOST_METADATA} times"),
        ));
    }
    Ok(notes)
}

/// The cursor for the page after this job.
pub(super) fn cursor(job: JobId) -> String {
    let mut bytes = vec![CURSOR];
    bytes.extend_from_slice(job.0.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn job_after(cursor: &str) -> Result<JobId, ApiError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
    let id = match bytes.split_first() {
        Some((&CURSOR, id)) => Uuid::from_slice(id).ok(),
        _ => None,
    };
    id.filter(|id| id.get_version_num() == 7).map(JobId).ok_or_else(|| {
        let detail = "this is not a cursor of a list of jobs; give `next_cursor` of the page before, unchanged";
        ApiError::new(Code::BadCursor, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_back_to_its_job() {
        let job = JobId::generate();
        assert_eq!(job_after(&cursor(job)).unwrap(), job);
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let good = cursor(JobId::generate());
        for bad in [
            "",
            "x",
            "7",
            "!!!",
            &good[1..],
            &format!("{good}A"),
            "AQ",
            &cursor(JobId(Uuid::nil())),
        ] {
            assert_eq!(job_after(bad).unwrap_err().code(), Code::BadCursor, "{bad}");
        }
    }

    #[test]
    fn a_list_is_read() {
        let listing = parse(Some(
            "state=queued,running&account=main&client=ci&model=m%2F1&metadata.team=a+b\
             &metadata.x=&from=2026-11-23T20:00:00Z&limit=500",
        ))
        .unwrap();
        let filter = listing.filter;
        assert_eq!(filter.states, [State::Queued, State::Running]);
        assert_eq!(filter.account.unwrap().as_str(), "main");
        assert_eq!(filter.client.as_deref(), Some("ci"));
        assert_eq!(filter.model.as_deref(), Some("m/1"));
        assert_eq!(
            filter.metadata,
            [("team".into(), "a b".into()), ("x".into(), String::new())]
        );
        assert_eq!(filter.from.unwrap().to_string(), "2026-11-23T20:00:00.000Z");
        assert_eq!(
            (filter.to, listing.cursor, listing.limit),
            (None, None, 500)
        );
        assert_eq!(parse(None).unwrap().limit, DEFAULT_LIMIT);
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for (query, name) in [
            ("sate=queued", "sate"),
            ("state=done", "state"),
            ("state=", "state"),
            ("state=queued,", "state"),
            ("state=queued&state=running", "state"),
            ("account=Not+An+Id", "account"),
            ("client=", "client"),
            ("client=a%00b", "client"),
            ("metadata.k=a%00b", "metadata.k"),
            ("metadata.k=a&metadata.k=b", "metadata.k"),
            ("metadata.=a", "metadata."),
            ("metadata=a", "metadata"),
            ("from=yesterday", "from"),
            ("to=2026-13-01T00:00:00Z", "to"),
            ("limit=0", "limit"),
            ("limit=501", "limit"),
            ("limit=-1", "limit"),
            ("limit=99999999999999999999999", "limit"),
            ("limit=ten", "limit"),
        ] {
            let error = parse(Some(query)).unwrap_err();
            assert_eq!(error.code(), Code::BadParameter, "{query}");
            assert_eq!(error.errors()[0].field, name, "{query}");
        }
    }
}
