//! How a process is asked to stop.

use std::{future::Future, pin::pin};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{Exit, Failure, output};

/// Runs `work` to its end. The first SIGTERM or SIGINT cancels `shutdown`, which asks `work` to
/// end by itself; the second ends the process at once, whatever is running.
pub(crate) async fn until_done<T>(
    work: impl Future<Output = T>,
    shutdown: &CancellationToken,
) -> Result<T, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::io("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::io("signals"))?;
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            std::process::exit(Exit::Interrupted.code().into());
        }
        shutdown.cancel();
        output::note("Stopping: what runs may finish. Once more to stop at once.");
    }
}

/// Waits for the first SIGTERM or SIGINT.
pub(crate) async fn stop() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::io("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::io("signals"))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
