//! What the ports promise, tested on every adapter.
//!
//! One suite a port: a test is a function of the adapter, and a macro makes one test of it for each.
//! The real services are found by the settings `SLUICE_RABBITMQ__URL` and so on; without them
//! their tests fail, since a test that is skipped in silence proves nothing.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod broker;
mod broker_lost;
mod broker_rabbit;
mod harness;
mod live;
mod live_redis;
mod proxy;
