//! Webhooks: where they may go, and when they are tried again.

use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::ConfigError;
use crate::domain::{Egress, Span};

const MOST_TIMEOUT: Duration = Duration::from_secs(120);
const MOST_STEPS: usize = 50;

/// Webhooks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "sluice.default.toml documents each key, in one place"
)]
pub struct Webhooks {
    pub allow_networks: Vec<IpNet>,
    pub timeout: Span,
    pub schedule: Vec<Span>,
    pub disable_after: Span,
    pub keep: Span,
    pub max_in_flight: usize,
    pub max_in_flight_per_target: usize,
}

impl Webhooks {
    /// Where they may go.
    #[must_use]
    pub fn egress(&self) -> Egress {
        Egress::new(self.allow_networks.clone())
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong =
            |key: &str, problem: &str| Err(ConfigError::value(format!("webhooks.{key}"), problem));
        if self.timeout.0.is_zero() || self.timeout.0 > MOST_TIMEOUT {
            return wrong("timeout", "must be longer than 0s and at most 2m");
        }
        if self.schedule.len() > MOST_STEPS {
            return wrong("schedule", "must have at most 50 steps");
        }
        for (key, span) in [("disable_after", self.disable_after), ("keep", self.keep)] {
            if span.0.is_zero() {
                return wrong(key, "must be longer than 0s");
            }
        }
        let counts = [
            ("max_in_flight", self.max_in_flight),
            ("max_in_flight_per_target", self.max_in_flight_per_target),
        ];
        for (key, count) in counts {
            if count == 0 {
                return wrong(key, "must be at least 1");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn what_cannot_be_is_named() {
        for (line, key) in [
            ("timeout = \"0s\"", "webhooks.timeout"),
            ("timeout = \"3m\"", "webhooks.timeout"),
            ("keep = \"0s\"", "webhooks.keep"),
            ("max_in_flight = 0", "webhooks.max_in_flight"),
            ("allow_networks = [\"10.0.0.1/40\"]", "allow_networks"),
            ("allow = [\"10.0.0.0/8\"]", "allow"),
        ] {
            let error = Config::from_toml(&format!("[webhooks]\n{line}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn the_default_schedule_goes_on_for_more_than_a_day() {
        let schedule = Config::from_toml("").unwrap().webhooks.schedule;
        let whole: u64 = schedule.iter().map(|step| step.0.as_secs()).sum();
        assert!(whole > 86_400, "{whole} s");
        assert!(schedule.is_sorted());
    }
}
