//! What the API tells this worker.

use std::{sync::Arc, time::Duration};

use sluice_shared::message::Control;
use tokio::time::Instant;

use crate::engine::Engine;

/// How long to wait after the broker refused.
const PAUSE: Duration = Duration::from_secs(5);

/// Does what it is told until the broker is closed.
pub(crate) async fn run(engine: Arc<Engine>) {
    loop {
        match engine.broker.controls().await {
            Ok(mut controls) => {
                while let Some(control) = controls.recv().await {
                    match control {
                        Control::Cancel { job, attempt } => engine.hands.cancel((job, attempt)),
                        Control::Cooling { account, span } => {
                            let served = engine.accounts.iter().find(|served| served.id == account);
                            if let Some(account) = served {
                                account.cool(Instant::now(), span.0);
                            }
                        }
                    }
                }
                return;
            }
            Err(error) => tracing::error!(%error, "cancels cannot be heard"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
