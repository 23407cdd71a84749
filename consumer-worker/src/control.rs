//! What the API tells this worker.

use std::{sync::Arc, time::Duration};

use sluice_shared::message::Control;
use tokio::{task::JoinSet, time::Instant};

use crate::{count_call, engine::Engine, test_call};

/// How long to wait after the broker refused.
const PAUSE: Duration = Duration::from_secs(5);

/// Tests of accounts at once, at most; the others are not made, which whoever asked will see.
const MOST_TESTS: usize = 8;

/// Tests and counts at once, at most; a count comes with every call of some clients.
const MOST_CALLS: usize = 64;

/// Does what it is told until the broker is closed.
pub(crate) async fn run(engine: Arc<Engine>) {
    let mut tests = JoinSet::new();
    loop {
        match engine.broker.controls().await {
            Ok(mut controls) => {
                while let Some(control) = controls.recv().await {
                    obey(&engine, control, &mut tests);
                }
                return;
            }
            Err(error) => tracing::error!(%error, "cancels cannot be heard"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn obey(engine: &Arc<Engine>, control: Control, tests: &mut JoinSet<()>) {
    match control {
        Control::Cancel { job, attempt } => engine.hands.cancel((job, attempt)),
        Control::Cooling { account, span } => {
            if let Some(account) = engine.services.get(&account) {
                account.cool(Instant::now(), span.0);
            }
        }
        Control::Accounts => engine.roll_changed.notify_one(),
        Control::Test {
            worker,
            account,
            test,
        } => {
            while tests.try_join_next().is_some() {}
            if worker == engine.name && tests.len() < MOST_TESTS {
                tests.spawn(test_call::run(engine.clone(), account, test));
            }
        }
        Control::Count {
            worker,
            account,
            answer,
            request,
        } => {
            while tests.try_join_next().is_some() {}
            if worker == engine.name && tests.len() < MOST_CALLS {
                tests.spawn(count_call::run(engine.clone(), account, answer, request));
            }
        }
    }
}
