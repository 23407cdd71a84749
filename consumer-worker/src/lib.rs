//! The worker role: it consumes the queues of the accounts that it serves, runs each prompt at
//! its account's provider, and replies.
//!
//! It has no database: what a worker knows comes with the delivery, and what it says goes out as
//! a reply.

pub mod provider;
