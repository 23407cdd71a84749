//! `sluice batch`: a file of prompts.

use std::path::PathBuf;

use super::{JobOptions, Server};
use crate::{Exit, Failure, batch, home::Home};

/// Run a file of prompts and write the results beside it
///
/// Each line of FILE.jsonl is a job as the API takes it ({"prompt": "...", "model": ...}) or a JSON
/// string, which is its prompt. Every line is checked before the first is submitted. The results
/// are written to FILE.results.jsonl in the order of the lines, when all have ended.
///
/// It can be interrupted at any time and run again: what is submitted runs on, nothing is
/// submitted twice, and no result is lost. Lines that are added at the end of the file are run by
/// the next run. A batch that is done is not run again unless --again is given.
///
/// Exits with 0 when every job succeeded.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice batch prompts.jsonl
  sluice batch prompts.jsonl --model claude-sonnet-5 --tag bulk --priority -10
  sluice batch prompts.jsonl --no-wait        # submit now,
  sluice batch prompts.jsonl --json           # collect later

A line of the results:
  {\"line\":1,\"id\":\"...\",\"state\":\"succeeded\",\"text\":\"...\",\"model\":...,\"usage\":...,\"error\":null}")]
pub(crate) struct Args {
    /// The prompts, one a line
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,

    /// Write the results here [default: FILE.results.jsonl]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Submit only; run again without it to collect the results
    #[arg(long)]
    no_wait: bool,

    /// Run a file anew that was begun or done before
    #[arg(long)]
    again: bool,

    /// Print a summary as JSON
    #[arg(long)]
    json: bool,

    /// Jobs in one request
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1000))]
    chunk: u32,

    /// Jobs that are waited for at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,

    #[command(flatten)]
    defaults: JobOptions,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let options = batch::Options {
        file: &args.file,
        output: args.output.as_deref(),
        again: args.again,
        no_wait: args.no_wait,
        json: args.json,
        chunk: args.chunk as usize,
        concurrency: args.concurrency as usize,
        defaults: &args.defaults,
    };
    batch::run(&client, &options).await
}
