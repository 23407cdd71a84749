//! The providers against what they talk to: a server that plays both APIs, real programs, and
//! the real Claude Code CLI. Each test waits for what it waits for, never for a time.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod anthropic;
mod claude_cli;
mod claude_stand_in;
mod claude_warm;
mod command;
mod http;
mod openai;
mod simulated;
mod stub;
mod support;
