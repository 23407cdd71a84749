//! What a provider says about its own limits, with an answer or a refusal.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;

/// The state of one of a provider's limits, as far as the provider tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figure {
    /// The limit in the provider's words, such as `requests`, `input-tokens` or `five_hour`.
    pub name: String,
    /// How much it allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How much of it is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    /// The share that is used, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<f64>,
    /// When all of it is there again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Time>,
    /// The provider's own judgement, such as `allowed_warning`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// When it was said.
    pub heard_at: Time,
}

/// More limits than this, no provider has.
pub const MOST: usize = 20;

/// Takes news in: of each limit, the latest word holds.
pub fn merge(known: &mut Vec<Figure>, news: impl IntoIterator<Item = Figure>) {
    for figure in news {
        let is_full = known.len() >= MOST;
        match known.iter_mut().find(|known| known.name == figure.name) {
            Some(known) if known.heard_at <= figure.heard_at => *known = figure,
            Some(_) => {}
            None if !is_full => known.push(figure),
            None => {}
        }
    }
    known.sort_by(|one, other| one.name.cmp(&other.name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_limit_the_latest_word_holds() {
        let figure = |name: &str, remaining, at| Figure {
            name: name.into(),
            remaining: Some(remaining),
            heard_at: Time::from_millis(at),
            ..Figure::default()
        };
        let mut known = vec![figure("requests", 5, 10)];
        let news = [
            figure("tokens", 7, 11),
            figure("requests", 4, 12),
            figure("requests", 9, 3),
        ];
        merge(&mut known, news);
        assert_eq!(known, [figure("requests", 4, 12), figure("tokens", 7, 11)]);
    }
}
