//! One credential at one provider, as the dispatcher sees it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AccountId, Outcome, Time, retry};

/// What is fixed about an account until someone changes it. No secret is in here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Its name.
    pub id: AccountId,
    /// The kind of provider, such as `anthropic`.
    pub provider: String,
    /// The models it offers; empty means any.
    pub models: Vec<String>,
    /// The tags that lanes can ask for.
    pub tags: Vec<String>,
    /// Prompts it runs at once, at most.
    pub max_concurrency: u32,
    /// Its share under the weighted strategy.
    pub weight: u32,
}

impl Account {
    /// Whether a job that asks for `model` can run here.
    #[must_use]
    pub fn offers(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|offered| offered == model)
    }
}

/// Whether an account may take jobs at all. Everything but `Active` ends only when someone acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It takes jobs.
    #[default]
    Active,
    /// Someone paused it: it takes no new jobs, what runs goes on.
    Paused,
    /// Someone wants it empty: it takes no new jobs, what runs goes on, and then nothing is left.
    Draining,
    /// Its credential was refused.
    AuthFailed,
    /// It has no credit.
    OutOfCredit,
}

impl Standing {
    /// The name kept in the truth plane.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::AuthFailed => "auth_failed",
            Self::OutOfCredit => "out_of_credit",
        }
    }

    /// The standing with this name; an unknown one is `Paused`, the safe reading.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        match name {
            "active" => Self::Active,
            "draining" => Self::Draining,
            "auth_failed" => Self::AuthFailed,
            "out_of_credit" => Self::OutOfCredit,
            _ => Self::Paused,
        }
    }
}

/// A time until which an account takes no new jobs, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cooldown {
    /// No new job before this time.
    pub until: Option<Time>,
    /// Why, for people.
    pub reason: Option<String>,
    /// Throttles in a row without a figure from the provider; the backoff grows with it.
    pub streak: u32,
}

impl Cooldown {
    /// The cooldown after one more outcome at `now`. `chance` in `[0, 1)` spreads the backoff.
    ///
    /// A later end always wins over an earlier one, so a second, longer throttle extends the
    /// first, and a success ends the streak but not a cooldown that another attempt has earned.
    #[must_use]
    pub fn after(&self, outcome: &Outcome, now: Time, chance: f64) -> Cooldown {
        match outcome {
            Outcome::Throttled { until, detail, .. } | Outcome::Overloaded { until, detail } => {
                // A burst of replies about one and the same throttle is one throttle.
                let cooling = self.until.is_some_and(|end| end > now);
                let streak = if cooling {
                    self.streak
                } else {
                    self.streak.saturating_add(1)
                };
                let fallback = now + retry::cooldown(streak.max(1), chance);
                let end = until.filter(|end| *end > now).unwrap_or(fallback);
                let until = self.until.map_or(end, |known| known.max(end));
                Cooldown {
                    until: Some(until),
                    reason: Some(clip(detail)),
                    streak,
                }
            }
            Outcome::Completed(_) => Cooldown {
                streak: 0,
                ..self.clone()
            },
            Outcome::AuthFailed { .. }
            | Outcome::OutOfCredit { .. }
            | Outcome::Rejected { .. }
            | Outcome::Failed { .. }
            | Outcome::Cancelled => self.clone(),
        }
    }

    /// The end of the cooldown, if it has not come yet.
    #[must_use]
    pub fn active_until(&self, now: Time) -> Option<Time> {
        self.until.filter(|until| *until > now)
    }
}

impl Standing {
    /// The standing after one more outcome: only a refused credential or an empty purse change it.
    #[must_use]
    pub fn after(self, outcome: &Outcome) -> Standing {
        match outcome {
            Outcome::AuthFailed { .. } => Standing::AuthFailed,
            Outcome::OutOfCredit { .. } => Standing::OutOfCredit,
            _ => self,
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::ThrottleKind;

    const NOW: Time = Time::from_millis(1_000_000);

    fn throttled(until: Option<Time>) -> Outcome {
        Outcome::Throttled {
            until,
            throttle: ThrottleKind::Burst,
            detail: "slow down".into(),
        }
    }

    #[test]
    fn a_longer_throttle_extends_a_shorter_and_never_the_reverse() {
        let short = NOW + Duration::from_secs(5);
        let long = NOW + Duration::from_secs(60);
        let first = Cooldown::default().after(&throttled(Some(short)), NOW, 0.5);
        let second = first.after(&throttled(Some(long)), NOW, 0.5);
        assert_eq!(second.until, Some(long));
        assert_eq!(
            second.after(&throttled(Some(short)), NOW, 0.5).until,
            Some(long)
        );
    }

    #[test]
    fn without_a_figure_the_backoff_grows_and_a_success_resets_it() {
        let first = Cooldown::default().after(&throttled(None), NOW, 0.0);
        let later = first.until.unwrap() + Duration::from_millis(1);
        let second = first.after(&throttled(None), later, 0.0);
        assert!(second.until.unwrap().since(later) > first.until.unwrap().since(NOW));
        assert_eq!(
            second
                .after(&Outcome::Completed(Default::default()), later, 0.0)
                .streak,
            0
        );
    }

    #[test]
    fn a_reset_time_in_the_past_is_no_reset_time() {
        let cooldown = Cooldown::default().after(&throttled(Some(Time::EPOCH)), NOW, 0.0);
        assert!(cooldown.until.unwrap() > NOW);
    }
}
