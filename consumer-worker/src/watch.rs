//! Looks after what runs long: announces it, and takes a lease before its delivery gets old.
//!
//! One ticker for all attempts, since a timer for each would cost more than a quick job does.

use std::{sync::Arc, time::Duration};

use sluice_shared::{clock, message::Report};
use tokio::time::{Instant, sleep};

use crate::{engine::Engine, hands::LeaseRules, replies::Then};

const TICK: Duration = Duration::from_millis(25);

/// Renewals that may be missed before a lease ends.
const RENEWALS: u32 = 3;

/// Added to a lease for what the way of its renewal takes, and for clocks that differ.
const SLACK: Duration = Duration::from_secs(5);

/// Looks after the attempts in hand, for ever.
pub(crate) async fn run(engine: Arc<Engine>) {
    let rules = LeaseRules {
        after: engine.settings.lease_after.0,
        renew: engine.settings.lease_renew.0,
    };
    let round = (rules.after.min(rules.renew) / 4).clamp(TICK, Duration::from_secs(1));
    let mut next_round = Instant::now();
    loop {
        // Nothing in hand: no ticks.
        engine.hands.filled().await;
        sleep(TICK).await;
        let now = Instant::now();
        announce(&engine, now);
        if now >= next_round {
            next_round = now + round;
            lease(&engine, now, rules);
        }
    }
}

fn announce(engine: &Engine, now: Instant) {
    for attempt in engine.hands.take_unannounced(now) {
        if let Some(begun) = attempt.begun() {
            engine
                .replies
                .send(&attempt, Report::Started { at: begun.at }, Then::Nothing);
        }
    }
}

fn lease(engine: &Engine, now: Instant, rules: LeaseRules) {
    for attempt in engine.hands.take_unleased(now, rules) {
        if let Some(begun) = attempt.begun() {
            let until = clock::now() + rules.renew.saturating_mul(RENEWALS).saturating_add(SLACK);
            let report = Report::Leased {
                started_at: begun.at,
                until,
            };
            engine
                .replies
                .send(&attempt, report, Then::Lease { since: now });
        }
    }
}
