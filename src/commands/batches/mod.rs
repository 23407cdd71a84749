//! `sluice batches`: many jobs in one upload, which the server keeps as one.

mod results;
mod view;

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use sluice_shared::{
    api::{BatchState, BatchView},
    clock,
    domain::BatchId,
};

use super::Server;
use crate::{Exit, Failure, batch::progress::Progress, client::Client, home::Home, output};

/// Batches in a page when all are asked for.
const PAGE: u32 = 200;

/// Longest pause between two looks at a batch that is waited for.
const LOOK: Duration = Duration::from_secs(3);

/// Submit batches that the server keeps, and read their results
///
/// A batch is one upload of up to 100,000 jobs, which is taken as a whole or not at all; each line
/// of the file is a job as the API takes it ({"prompt": "...", "model": ...}). Nothing is kept on
/// this side: its id is all that is needed, on any machine. `sluice batch` runs a file from here
/// instead, and writes the results beside it.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sluice batches submit prompts.jsonl --name nightly
  sluice batches
  sluice batches show 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42
  sluice batches results 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42 --wait --out results.jsonl"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Submit a file as one batch and print its id
    ///
    /// With --wait it exits with 1 when not every line succeeded.
    Submit {
        /// The jobs, one a line
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A name for it
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Leave out lines that are no jobs, instead of refusing the whole
        #[arg(long)]
        partial: bool,
        /// Wait for its end
        #[arg(long, short)]
        wait: bool,
    },
    /// List batches, newest first (what `sluice batches` does by itself)
    List(List),
    /// Show a batch: how far it has come, and when it may end
    Show {
        /// The batch
        #[arg(value_parser = batch_id)]
        id: BatchId,
    },
    /// Cancel batches; what has ended keeps its result
    Cancel {
        /// The batches
        #[arg(value_name = "ID", required = true, value_parser = batch_id)]
        ids: Vec<BatchId>,
    },
    Results(results::Args),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Submitted by this client (the name of the API key)
    #[arg(long, short, value_name = "NAME")]
    client: Option<String>,
    /// At most this many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: u32,
    /// All of them, page after page
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    all: bool,
    /// Go on where a former list ended
    #[arg(long)]
    cursor: Option<String>,
}

impl Default for List {
    fn default() -> Self {
        Self {
            client: None,
            limit: 20,
            all: false,
            cursor: None,
        }
    }
}

fn batch_id(text: &str) -> Result<BatchId, String> {
    text.parse()
        .map_err(|_| "a batch id looks like 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42".into())
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    match &args.action {
        None => list(&client, &List::default(), args.json).await,
        Some(Action::List(which)) => list(&client, which, args.json).await,
        Some(Action::Submit {
            file,
            name,
            partial,
            wait,
        }) => {
            let batch = upload(&client, file, name.as_deref(), *partial).await?;
            submitted(&client, batch, *wait, args.json).await
        }
        Some(Action::Show { id }) => {
            show(&client.batch(*id).await?, args.json)?;
            Ok(Exit::Done)
        }
        Some(Action::Cancel { ids }) => cancel(&client, ids, args.json).await,
        Some(Action::Results(which)) => results::run(&client, which).await,
    }
}

fn show(batch: &BatchView, json: bool) -> Result<(), Failure> {
    if json {
        output::json(batch)
    } else {
        output::print(&view::facts(batch, clock::now()))
    }
}

async fn upload(
    client: &Client,
    path: &Path,
    name: Option<&str>,
    partial: bool,
) -> Result<BatchView, Failure> {
    let file = File::open(path).map_err(Failure::io(path.display().to_string()))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Failure::usage(format!("{} is a folder", path.display())));
    }
    Ok(client.submit_batch(file, name, partial).await?)
}

async fn submitted(
    client: &Client,
    batch: BatchView,
    wait: bool,
    json: bool,
) -> Result<Exit, Failure> {
    if batch.rejected > 0 {
        output::note(&view::left_out(&batch));
    }
    if !wait {
        if json {
            output::json(&batch)?;
        } else {
            output::line(&batch.id.to_string())?;
        }
        return Ok(Exit::Done);
    }
    output::note(&format!("batch {}", batch.id));
    let id = batch.id;
    let ended = tokio::select! {
        ended = until_ended(client, batch) => ended?,
        stopped = interrupted(id) => return stopped,
    };
    show(&ended, json)?;
    let well = ended.counts.succeeded == ended.total && ended.rejected == 0;
    Ok(Exit::when(well))
}

/// The batch at its end, however long that takes and whatever the connection does meanwhile.
async fn until_ended(client: &Client, mut batch: BatchView) -> Result<BatchView, Failure> {
    let mut progress = Progress::begin(batch.total, batch.total, 0, 0);
    let (mut pause, mut failures) = (Duration::from_millis(200), 0);
    while batch.state != BatchState::Ended {
        tokio::time::sleep(pause).await;
        pause = LOOK.min(pause * 2);
        match client.batch(batch.id).await {
            Ok(now) => {
                failures = 0;
                let ended = now.counts.ended();
                progress.stands_at(ended, ended - now.counts.succeeded);
                batch = now;
            }
            Err(error) if error.is_transient() => {
                failures += 1;
                progress.trouble(error.to_string());
                pause = error.pause(failures);
            }
            Err(error) => return Err(error.into()),
        }
    }
    progress.end();
    Ok(batch)
}

/// Waits for Ctrl-C, and says how to come back to the batch.
async fn interrupted(id: BatchId) -> Result<Exit, Failure> {
    tokio::signal::ctrl_c()
        .await
        .map_err(Failure::io("signals"))?;
    output::note(&format!(
        "The batch goes on. `sluice batches results {id} --wait` waits for it, `sluice batches \
         cancel {id}` ends it."
    ));
    Ok(Exit::Interrupted)
}

async fn list(client: &Client, which: &List, json: bool) -> Result<Exit, Failure> {
    let limit = if which.all { PAGE } else { which.limit };
    let mut cursor = which.cursor.clone();
    loop {
        let page = client.batches(which.client.as_deref(), limit, cursor.as_deref());
        let page = page.await?;
        if json {
            page.batches.iter().try_for_each(output::json_line)?;
        } else if !page.batches.is_empty() {
            output::table(&view::table(&page.batches, clock::now()))?;
        } else if cursor.is_none() {
            output::note("no batches");
        }
        match page.next_cursor {
            Some(next) if which.all => cursor = Some(next),
            Some(next) => {
                output::note(&format!("more with list --cursor {next}, or list --all"));
                return Ok(Exit::Done);
            }
            None => return Ok(Exit::Done),
        }
    }
}

async fn cancel(client: &Client, ids: &[BatchId], json: bool) -> Result<Exit, Failure> {
    let mut all = true;
    for id in ids {
        match client.cancel_batch(*id).await {
            Ok(batch) if json => output::json_line(&batch)?,
            Ok(batch) if batch.state == BatchState::Ended => {
                output::line(&format!("{id} is cancelled"))?;
            }
            Ok(_) => output::line(&format!("{id} is being cancelled"))?,
            Err(error) => {
                all = false;
                super::report_one(&id.to_string(), error)?;
            }
        }
    }
    Ok(Exit::when(all))
}
