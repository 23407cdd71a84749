//! The reaper: it looks into attempts that are in flight for long, ends leases that were not
//! renewed, and says again what a worker may not have heard.
//!
//! **Rescue is by evidence, not by age.** An attempt is given up only when, look after look, its
//! account's queue and the reply queue were empty, a worker that serves the account has since
//! said what is in its hands, and no worker has named the attempt. Silence of the live plane or of
//! the broker proves nothing, and then nothing is done.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use sluice_shared::{
    clock,
    domain::{AccountId, JobId, Time},
    live::Presence,
    message::Control,
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    store::{InFlight, Verdict},
};

/// Looks in a row that must find an attempt nowhere before it is given up.
const LOOKS: u32 = 3;

/// Attempts looked into at once, oldest first.
const MOST: u64 = 20_000;

/// What a lease may be overdue: clocks differ, and replies wait.
const LEASE_SLACK: Duration = Duration::from_secs(10);

/// How often slots are counted anew.
const AUDIT: Duration = Duration::from_secs(60);

/// How often old idempotency keys are forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// How long it is remembered what clients used on each day.
const USAGE_KEPT: Duration = Duration::from_secs(400 * 86_400);

type Attempt = (JobId, u32);

/// What the last look found.
#[derive(Debug, Default)]
struct Suspicion {
    /// Attempts found nowhere, and for how many looks in a row.
    suspects: HashMap<Attempt, u32>,
    /// What each worker said last, by its own clock.
    beats: HashMap<String, Time>,
}

/// Looks again and again until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let mut suspicion = Suspicion::default();
    let mut tick = tokio::time::interval(app.config.dispatch.reap.0);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut audited, mut forgot) = (clock::now(), Time::EPOCH);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = clock::now();
        look(&app, &mut suspicion, now).await;
        if now.since(audited) >= AUDIT {
            audited = now;
            audit(&app).await;
        }
        if now.since(forgot) >= FORGET {
            forgot = now;
            let before = now - app.config.api.idempotency_ttl.0;
            if let Err(error) = app.store.forget_idempotency_keys(before).await {
                tracing::debug!(%error, "old idempotency keys could not be forgotten");
            }
            if let Err(error) = app.store.forget_usage(now - USAGE_KEPT).await {
                tracing::debug!(%error, "old usage could not be forgotten");
            }
        }
    }
}

async fn audit(app: &App) {
    match app.store.audit_slots().await {
        Ok(wrong) => {
            for (account, counted, real) in wrong {
                tracing::error!(
                    account,
                    counted,
                    real,
                    "a slot count was wrong and is mended"
                );
            }
        }
        Err(error) => tracing::debug!(%error, "slots could not be counted"),
    }
    if let Err(error) = app.store.mend_fair_tags(clock::now()).await {
        tracing::debug!(%error, "places in fair queueing could not be mended");
    }
    match app
        .store
        .audit_windows(&app.roster.accounts(), clock::now())
        .await
    {
        Ok(wrong) => {
            for account in wrong {
                tracing::error!(account, "charges of an account were wrong and are mended");
            }
        }
        Err(error) => tracing::debug!(%error, "charges could not be counted"),
    }
}

async fn look(app: &App, suspicion: &mut Suspicion, now: Time) {
    let before = now - app.config.dispatch.rescue_after.0;
    let attempts = match app.store.in_flight(before, MOST).await {
        Ok(attempts) => attempts,
        Err(error) => {
            tracing::debug!(%error, "attempts in flight could not be looked at");
            return;
        }
    };
    repeat_cancels(app, &attempts).await;
    let mut lost: Vec<Attempt> = attempts
        .iter()
        .filter(|attempt| {
            attempt
                .lease_until
                .is_some_and(|until| until + LEASE_SLACK < now)
        })
        .map(|attempt| (attempt.job, attempt.attempt))
        .collect();
    let unleased: Vec<&InFlight> = attempts
        .iter()
        .filter(|attempt| attempt.lease_until.is_none())
        .collect();
    match evidence(app, &unleased).await {
        Some(evidence) => lost.extend(suspicion.weigh(&unleased, &evidence)),
        None => suspicion.suspects.clear(),
    }
    if lost.is_empty() {
        return;
    }
    tracing::warn!(attempts = lost.len(), "attempts were lost and are given up");
    let verdicts: Vec<Verdict> = lost
        .into_iter()
        .map(|(job, attempt)| Verdict::Lost {
            job,
            attempt,
            began: false,
        })
        .collect();
    app.settle(&verdicts).await;
}

/// A worker that was away when a cancel was told has not heard it.
async fn repeat_cancels(app: &App, attempts: &[InFlight]) {
    for attempt in attempts.iter().filter(|attempt| attempt.cancel_requested) {
        let cancel = Control::Cancel {
            job: attempt.job,
            attempt: attempt.attempt,
        };
        if let Err(error) = app.broker.control(&cancel).await {
            tracing::debug!(%error, "a cancel could not be repeated");
            return;
        }
    }
}

/// What was found in one look.
#[derive(Debug)]
struct Evidence {
    /// Accounts whose queues are empty.
    empty: HashSet<AccountId>,
    /// Every worker that is there.
    workers: Vec<Presence>,
}

/// Gathers evidence, queues first: what a worker says afterwards is about a later time. `None`
/// when anything that might speak for an attempt could not be asked.
async fn evidence(app: &App, attempts: &[&InFlight]) -> Option<Evidence> {
    if attempts.is_empty() || app.broker.reply_depth().await.ok()?.ready > 0 {
        return None;
    }
    let accounts: BTreeMap<&AccountId, ()> = attempts
        .iter()
        .map(|attempt| (&attempt.account, ()))
        .collect();
    let mut empty = HashSet::new();
    for account in accounts.into_keys() {
        // A queue that cannot be asked for is not empty. One that is missing altogether was lost
        // with its broker: it is declared anew, and found empty the next time.
        match app.broker.depth(account).await {
            Ok(depth) if depth.ready == 0 => {
                empty.insert(account.clone());
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%account, %error, "its queue could not be asked");
                if app.broker.declare(account).await.is_err() {
                    return None;
                }
            }
        }
    }
    let workers = app.workers.refresh(&app.live).await.ok()?;
    Some(Evidence { empty, workers })
}

impl Suspicion {
    /// Weighs one look's evidence together with that of the looks before. Gives the attempts that
    /// are beyond doubt in nobody's hands.
    fn weigh(&mut self, attempts: &[&InFlight], evidence: &Evidence) -> Vec<Attempt> {
        let held: HashSet<Attempt> = evidence
            .workers
            .iter()
            .flat_map(|presence| presence.in_flight.iter().copied())
            .collect();
        // All that are there must have spoken since the last look, and one must serve the account.
        let all_spoke = evidence
            .workers
            .iter()
            .all(|presence| self.beats.get(&presence.worker) != Some(&presence.beat_at));
        let served: HashSet<&AccountId> = evidence
            .workers
            .iter()
            .flat_map(|presence| &presence.accounts)
            .collect();
        let mut suspects = HashMap::new();
        let mut lost = Vec::new();
        for attempt in attempts {
            let key = (attempt.job, attempt.attempt);
            let nowhere = !held.contains(&key)
                && evidence.empty.contains(&attempt.account)
                && served.contains(&attempt.account);
            if !nowhere {
                continue;
            }
            let looks = self.suspects.get(&key).copied().unwrap_or(0) + u32::from(all_spoke);
            if looks >= LOOKS {
                lost.push(key);
            } else {
                suspects.insert(key, looks);
            }
        }
        self.suspects = suspects;
        if all_spoke {
            self.beats = evidence
                .workers
                .iter()
                .map(|presence| (presence.worker.clone(), presence.beat_at))
                .collect();
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    fn in_flight() -> InFlight {
        InFlight {
            job: JobId::generate(),
            attempt: 1,
            account: account("a"),
            lease_until: None,
            cancel_requested: false,
        }
    }

    fn presence(beat: i64, in_flight: Vec<Attempt>) -> Presence {
        Presence {
            worker: "w".into(),
            host: "h".into(),
            pid: 1,
            version: String::new(),
            since: Time::EPOCH,
            beat_at: Time::from_millis(beat),
            accounts: vec![account("a")],
            serves_all: false,
            troubles: Default::default(),
            in_flight,
        }
    }

    fn look(workers: Vec<Presence>, empty: &[&str]) -> Evidence {
        Evidence {
            empty: empty.iter().map(|name| account(name)).collect(),
            workers,
        }
    }

    #[test]
    fn an_attempt_found_nowhere_is_given_up_after_some_looks() {
        let attempt = in_flight();
        let mut suspicion = Suspicion::default();
        for beat in 1..i64::from(LOOKS) {
            let evidence = look(vec![presence(beat, vec![])], &["a"]);
            assert_eq!(suspicion.weigh(&[&attempt], &evidence), []);
        }
        let evidence = look(vec![presence(99, vec![])], &["a"]);
        assert_eq!(suspicion.weigh(&[&attempt], &evidence), [(attempt.job, 1)]);
    }

    #[test]
    fn silence_proves_nothing() {
        let attempt = in_flight();
        for evidence in [
            look(vec![], &["a"]),
            look(vec![presence(7, vec![])], &["a"]),
            look(vec![presence(7, vec![])], &[]),
        ] {
            let mut suspicion = Suspicion::default();
            suspicion.beats.insert("w".into(), Time::from_millis(7));
            for _ in 0..20 {
                assert_eq!(suspicion.weigh(&[&attempt], &evidence), []);
            }
        }
    }

    #[test]
    fn one_word_from_a_worker_ends_the_suspicion() {
        let attempt = in_flight();
        let mut suspicion = Suspicion::default();
        for round in 0..10 {
            let beat = round * 10;
            for step in 1..LOOKS {
                let evidence = look(vec![presence(beat + i64::from(step), vec![])], &["a"]);
                assert_eq!(suspicion.weigh(&[&attempt], &evidence), []);
            }
            let named = presence(beat + 9, vec![(attempt.job, 1)]);
            assert_eq!(suspicion.weigh(&[&attempt], &look(vec![named], &["a"])), []);
        }
    }
}
