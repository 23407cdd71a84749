//! The worker role: it consumes the queues of the accounts that it serves, runs each prompt at
//! its account's provider, and replies.
//!
//! It has no database: what a worker knows comes with the delivery, and what it says goes out as
//! a reply.
//!
//! ```text
//! consume ──▶ hands (run it? answer it? had it before?)
//!               └─▶ attempt ──▶ provider ──▶ streams ──▶ live plane
//!                     └─▶ replies (confirmed) ──▶ hands: ack
//! watch: announces what runs long, and leases it        presence: says what is in hand
//! learn: accounts that come and go at run time
//! ```

mod account;
mod attempt;
mod consume;
mod control;
mod count_call;
mod engine;
mod hands;
mod health;
mod learn;
mod outage;
mod presence;
pub mod provider;
mod replies;
mod services;
mod streams;
mod test_call;
#[cfg(test)]
mod testing;
mod watch;
mod worker;

pub use worker::{Worker, WorkerError, run};
