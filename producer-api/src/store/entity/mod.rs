//! The rows of the truth plane. No entity leaves the store.

#![expect(unreachable_pub, reason = "sea-orm makes public items of these")]

pub(super) mod account;
pub(super) mod account_definition;
pub(super) mod account_state;
pub(super) mod api_key;
pub(super) mod attempt;
pub(super) mod client;
pub(super) mod idempotency_key;
pub(super) mod job;
pub(super) mod job_fallback;
pub(super) mod job_payload;
pub(super) mod routing;
pub(super) mod session;
pub(super) mod webhook_delivery;
pub(super) mod webhook_endpoint;
pub(super) mod webhook_signer;
pub(super) mod webhook_try;
