//! Whether any account could ever run a job. Pure.

use std::collections::BTreeSet;

use sluice_shared::domain::{Account, Lane};

use super::{
    problem::{Code, clip},
    submit::Flaws,
};

/// Longest key of a lane: it is part of an index, and Postgres keeps at most a third of a page.
const MOST_KEY: usize = 2000;

/// Names listed in one message, at most.
const MOST_LISTED: usize = 20;

/// Refuses a lane that no account is in, whatever its state now, and says which part is at fault.
pub(super) fn check(lane: &Lane, accounts: &[Account], flaws: &mut Flaws) {
    let anywhere = lane.account.is_none() && lane.model.is_none() && lane.tags.is_empty();
    if anywhere && !accounts.is_empty() {
        return;
    }
    if !accounts.iter().any(|account| lane.admits(account)) {
        let (field, detail) = at_fault(lane, accounts);
        flaws.add(Code::NoSuchLane, field, detail);
    } else if lane.key().len() > MOST_KEY {
        flaws.add(
            Code::InvalidJob,
            "model",
            "is too long, together with the tags",
        );
    }
}

fn at_fault(lane: &Lane, accounts: &[Account]) -> (&'static str, String) {
    if accounts.is_empty() {
        return (
            "account",
            "there is no account at all; add one to sluice.toml, or by `sluice accounts add`"
                .into(),
        );
    }
    let (candidates, who) = match &lane.account {
        None => (
            accounts.iter().collect::<Vec<_>>(),
            "no account has".to_owned(),
        ),
        Some(pinned) => match accounts.iter().find(|account| account.id == *pinned) {
            Some(account) => (
                vec![account],
                format!("the account `{pinned}` does not have"),
            ),
            None => {
                let known = list(accounts.iter().map(|account| account.id.as_str()));
                return (
                    "account",
                    format!("there is no account `{pinned}`; there are {known}"),
                );
            }
        },
    };
    if let Some(model) = &lane.model
        && !candidates.iter().any(|account| account.offers(model))
    {
        let known = list(
            candidates
                .iter()
                .flat_map(|account| account.models.iter().map(String::as_str)),
        );
        return (
            "model",
            format!("{who} the model `{}`; there are {known}", clip(model)),
        );
    }
    let carried = |tag: &String| candidates.iter().any(|account| account.tags.contains(tag));
    if let Some(tag) = lane.tags.iter().find(|tag| !carried(tag)) {
        let known = list(
            candidates
                .iter()
                .flat_map(|account| account.tags.iter().map(String::as_str)),
        );
        return (
            "tags",
            format!("{who} the tag `{}`; there are {known}", clip(tag)),
        );
    }
    // Each part can be had, but not all from one account.
    let tags = list(lane.tags.iter().map(String::as_str));
    let model = lane
        .model
        .as_ref()
        .map(|model| format!(" together with the model `{}`", clip(model)))
        .unwrap_or_default();
    ("tags", format!("{who} all of the tags {tags}{model}"))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    if names.is_empty() {
        return "none".into();
    }
    let shown: Vec<String> = names
        .iter()
        .take(MOST_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    let rest = names.len() - shown.len();
    let more = if rest > 0 {
        format!(" and {rest} more")
    } else {
        String::new()
    };
    format!("{}{more}", shown.join(", "))
}
