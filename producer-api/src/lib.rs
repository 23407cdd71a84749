//! The API role: it accepts jobs, keeps them, dispatches them to workers and settles what they
//! reply.
//!
//! [`store`] is the truth plane. The loops beside it ([`submitter`], [`dispatcher`], [`intake`],
//! [`reaper`]) are thin shells over `sluice_shared::domain`; [`http`] is the edge. Any number of
//! API processes run the same loops over the same truth.

pub mod app;
pub mod auth;
pub mod batches;
pub mod cooling;
pub mod decisions;
pub mod dependents;
pub mod dispatcher;
pub mod feed;
pub mod forecast;
pub mod http;
pub mod intake;
pub mod pulse;
pub mod reaper;
pub mod redelivered;
pub mod roster;
pub mod routes;
pub mod schedules;
pub mod store;
pub mod submitter;
pub mod waiters;
pub mod webhooks;
pub mod workers;

pub use app::{App, serve};
