//! `sluice`: parses the command line and runs one command.

use std::process::ExitCode;

use clap::Parser;
use sluice::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse()
        .run()
        .unwrap_or_else(|failure| failure.report())
        .into()
}
