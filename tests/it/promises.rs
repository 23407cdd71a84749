//! What Sluice promises its users, each promise kept in both modes: embedded, and distributed
//! with two API processes and three workers, where submits go to both and waits to the other one.

mod access;
mod accounts;
mod bad_input;
mod batches;
mod cancel;
mod dependencies;
mod fairness;
mod forecast;
mod happy_path;
mod idempotency;
mod lanes;
mod listing;
mod observability;
mod quotas;
mod retries;
mod runtime_accounts;
mod schedules;
mod sdk_batches;
mod sdks;
mod secrets;
mod shutdown;
mod times;
mod webhooks;

/// Two accounts that answer at once.
const TWO_ACCOUNTS: &str = r#"
[accounts.one]
provider = "simulated"
[accounts.two]
provider = "simulated"
"#;
