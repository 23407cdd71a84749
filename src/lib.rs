//! The one binary of Sluice: every role and every client command, as a library that `main` calls.
//!
//! [`cli`] is what the command line looks like, `commands` holds one file a command, [`client`]
//! speaks to the API over HTTP, [`roles`] starts the server roles out of the two role crates.

mod batch;
pub mod cli;
pub mod client;
mod commands;
mod failure;
pub mod home;
mod offer;
mod output;
pub mod roles;
mod signals;

pub use failure::{Exit, Failure};
