//! A lane: the set of accounts that a job may run on, as one key.

use std::fmt;

use super::{AccountId, account::Account};

/// What a job requires of an account. Two jobs with the same requirement share a lane, and a
/// lane without capacity delays only its own jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// One pinned account.
    pub account: Option<AccountId>,
    /// The model that the account must offer.
    pub model: Option<String>,
    /// Tags that the account must all carry; sorted, each once.
    pub tags: Vec<String>,
}

/// A key that no lane has.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a lane key")]
pub struct BadLaneKey(String);

impl Lane {
    /// The lane of a requirement, with its tags brought into order.
    #[must_use]
    pub fn new(account: Option<AccountId>, model: Option<String>, mut tags: Vec<String>) -> Self {
        tags.sort();
        tags.dedup();
        Self {
            account,
            model,
            tags,
        }
    }

    /// The lane as one text: `any`, or its parts as a query string. Equal lanes have equal keys.
    #[must_use]
    pub fn key(&self) -> String {
        let mut parts = form_urlencoded::Serializer::new(String::new());
        if let Some(account) = &self.account {
            parts.append_pair("account", account.as_str());
        }
        if let Some(model) = &self.model {
            parts.append_pair("model", model);
        }
        for tag in &self.tags {
            parts.append_pair("tag", tag);
        }
        let key = parts.finish();
        if key.is_empty() { "any".into() } else { key }
    }

    /// The lane with this key.
    ///
    /// # Errors
    /// When `key` was not made by [`Lane::key`].
    pub fn parse(key: &str) -> Result<Self, BadLaneKey> {
        let bad = || BadLaneKey(key.chars().take(200).collect());
        let mut lane = Self::default();
        if key == "any" {
            return Ok(lane);
        }
        for (name, value) in form_urlencoded::parse(key.as_bytes()) {
            match name.as_ref() {
                "account" => lane.account = Some(value.parse().map_err(|_| bad())?),
                "model" => lane.model = Some(value.into_owned()),
                "tag" => lane.tags.push(value.into_owned()),
                _ => return Err(bad()),
            }
        }
        Ok(lane)
    }

    /// Whether `account` belongs to this lane, whatever its state now.
    #[must_use]
    pub fn admits(&self, account: &Account) -> bool {
        let pinned_here = self
            .account
            .as_ref()
            .is_none_or(|pinned| *pinned == account.id);
        let offers_model = self
            .model
            .as_ref()
            .is_none_or(|model| account.offers(model));
        pinned_here && offers_model && self.tags.iter().all(|tag| account.tags.contains(tag))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_says_everything_about_its_lane(
            account in proptest::option::of("[a-z0-9][a-z0-9_-]{0,10}"),
            model in proptest::option::of("[ -~]{1,20}"),
            tags in proptest::collection::vec("[ -~]{1,8}", 0..4),
        ) {
            let account = account.map(|id| id.parse().unwrap());
            let lane = Lane::new(account, model, tags);
            prop_assert_eq!(Lane::parse(&lane.key()).unwrap(), lane);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(Lane::parse("colour=red").is_err());
        assert!(Lane::parse("account=Not An Id").is_err());
    }
}
