//! Which jobs to list.

use sluice_shared::domain::{AccountId, State, Time};

/// Which jobs to list; all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// In any of these states.
    pub states: Vec<State>,
    /// On this account.
    pub account: Option<AccountId>,
    /// Of this client.
    pub client: Option<String>,
    /// That asked for this model.
    pub model: Option<String>,
    /// With all of these notes.
    pub metadata: Vec<(String, String)>,
    /// Accepted at this time or later.
    pub from: Option<Time>,
    /// Accepted before this time.
    pub to: Option<Time>,
    /// At most this many in a page.
    pub limit: Option<u32>,
    /// The page after the one that gave this.
    pub cursor: Option<String>,
}

impl JobQuery {
    /// As the API's query parameters.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            pairs.extend(value.map(|value| (name.to_owned(), value)));
        };
        let states: Vec<&str> = self.states.iter().map(|state| state.as_str()).collect();
        add("state", (!states.is_empty()).then(|| states.join(",")));
        add("account", self.account.as_ref().map(ToString::to_string));
        add("client", self.client.clone());
        add("model", self.model.clone());
        for (key, value) in &self.metadata {
            add(&format!("metadata.{key}"), Some(value.clone()));
        }
        add("from", self.from.map(|time| time.to_string()));
        add("to", self.to.map(|time| time.to_string()));
        add("limit", self.limit.map(|limit| limit.to_string()));
        add("cursor", self.cursor.clone());
        pairs
    }
}

/// Which batch to forecast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForecastQuery {
    /// How many jobs.
    pub jobs: u64,
    /// The model they ask for.
    pub model: Option<String>,
    /// The account they are pinned to.
    pub account: Option<AccountId>,
    /// The tags they ask for.
    pub tags: Vec<String>,
    /// Their priority.
    pub priority: Option<i16>,
    /// A rate to find the number of accounts for.
    pub per_hour: Option<u64>,
}

impl ForecastQuery {
    /// As the API's query parameters.
    pub(crate) fn pairs(&self) -> Vec<(&'static str, String)> {
        let optional = [
            ("model", self.model.clone()),
            ("account", self.account.as_ref().map(ToString::to_string)),
            ("tags", (!self.tags.is_empty()).then(|| self.tags.join(","))),
            (
                "priority",
                self.priority.map(|priority| priority.to_string()),
            ),
            ("per_hour", self.per_hour.map(|jobs| jobs.to_string())),
        ];
        let given = optional.into_iter();
        let given = given.filter_map(|(name, value)| Some((name, value?)));
        std::iter::once(("jobs", self.jobs.to_string()))
            .chain(given)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_only_what_is_asked() {
        assert!(JobQuery::default().pairs().is_empty());
        let query = JobQuery {
            states: vec![State::Queued, State::Running],
            metadata: vec![("team".into(), "a b".into())],
            limit: Some(5),
            ..JobQuery::default()
        };
        let expected = [
            ("state", "queued,running"),
            ("metadata.team", "a b"),
            ("limit", "5"),
        ];
        let expected: Vec<_> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(query.pairs(), expected);
    }
}
