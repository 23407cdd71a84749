//! One credential at one provider, as the dispatcher sees it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AccountId, Limit, Outcome};

/// What is fixed about an account until someone changes it. No secret is in here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Its name.
    pub id: AccountId,
    /// The kind of provider, such as `anthropic`.
    pub provider: String,
    /// Where it is asked: accounts with the same one share its overloads. Empty when it shares
    /// none with any.
    #[serde(default)]
    pub endpoint: String,
    /// The models it offers; empty means any.
    pub models: Vec<String>,
    /// The tags that lanes can ask for.
    pub tags: Vec<String>,
    /// Prompts it runs at once, at most.
    pub max_concurrency: u32,
    /// Its share under the weighted strategy.
    pub weight: u32,
    /// How much it may be used within any interval of some lengths.
    #[serde(default)]
    pub limits: Vec<Limit>,
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
