//! The providers against what they talk to: a server that plays both APIs, real programs, and
//! the real Claude Code CLI. Each test waits for what it waits for, never for a time.

mod anthropic;
mod claude_cli;
mod command;
mod http;
mod openai;
mod simulated;
mod stub;
mod support;
