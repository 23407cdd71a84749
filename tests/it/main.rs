//! End to end: the binary as its users run it, on real processes and real services.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why on standard error"
)]

mod bad_days;
mod claude;
mod cli;
mod fault;
mod harness;
mod limits;
mod promises;
mod receiver;
mod stub;
mod tidy;
