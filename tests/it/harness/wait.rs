//! Waiting on conditions. This is the one place in the tests that sleeps.

use std::time::{Duration, Instant};

/// How long a condition may take to come true before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long to rest before a condition is looked at again.
const REST: Duration = Duration::from_millis(15);

/// What `check` gives as soon as it gives something; fails the test after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, check).await
}

/// What `check` gives as soon as it gives something; fails the test after `patience`.
pub(crate) async fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        rest(REST).await;
    }
}

/// The same outside of an async context.
pub(crate) fn eventually_blocking(patience: Duration, mut check: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if check() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(REST);
    }
}

/// Lets time pass where time itself is what is tested: a service that stays down for a while, a
/// client that is slow. Never a stand-in for a condition.
pub(crate) async fn rest(time: Duration) {
    tokio::time::sleep(time).await;
}
