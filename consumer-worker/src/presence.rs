//! Says regularly that this worker is there, and what is in its hands.

use std::{sync::Arc, time::Duration};

use sluice_shared::{
    clock,
    domain::{Span, Time},
    live::Presence,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{engine::Engine, outage::Outage};

/// A worker that missed so many beats is held to be gone.
const BEATS: u32 = 5;

/// How long to wait for the live plane when leaving.
const PATIENCE: Duration = Duration::from_secs(1);

/// Beats until `stop` is cancelled, then says goodbye.
pub(crate) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let heartbeat = engine.settings.heartbeat;
    let ttl = Span(heartbeat.0 * BEATS);
    let since = clock::now();
    let host = host();
    let outage = Outage::of("the live plane, for heartbeats,");
    loop {
        let presence = presence(&engine, host.clone(), since);
        let patience = heartbeat.0.max(PATIENCE);
        match timeout(patience, engine.live.beat(&presence, ttl)).await {
            Ok(Ok(())) => outage.worked(),
            Ok(Err(error)) => outage.failed(&error),
            Err(_) => outage.failed(&"it did not answer in time"),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = engine.presence_changed.notified() => {}
            () = tokio::time::sleep(heartbeat.0) => {}
        }
    }
    // Without a goodbye it is missed all the same, a few beats later.
    drop(timeout(PATIENCE, engine.live.leave(&engine.name)).await);
}

fn presence(engine: &Engine, host: String, since: Time) -> Presence {
    Presence {
        worker: engine.name.clone(),
        host,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        since,
        beat_at: clock::now(),
        accounts: engine.consumed(),
        serves_all: engine.serves_all,
        troubles: engine.services.troubles(),
        in_flight: engine.hands.keys(),
    }
}

/// The machine's name.
pub(crate) fn host() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_else(|_| "unknown".into())
}
