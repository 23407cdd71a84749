//! What is in this worker's hands: every attempt from its delivery until its last reply is
//! confirmed and its delivery acked.
//!
//! Bookkeeping only: it says what is to be done with a delivery, and others do it. One lock
//! guards it and is taken once per batch.
//!
//! **Invariant.** An attempt is run at most once by this worker, however often it is delivered:
//! while it is in hand a further delivery adds a tag to ack, and for a while after that one is
//! acked at once.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sluice_shared::{
    broker::{Acker, Delivery, Tag},
    clock, domain,
    domain::{JobId, Outcome},
    message::{Dispatch, Report},
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    account::Account,
    attempt::{Attempt, Cause},
};

/// Which attempt of which job.
pub(crate) type Key = (JobId, u32);

/// From this age on a running attempt is announced by a reply of its own; a quicker one says all
/// in its last.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(100);

/// Cancels of attempts that are not here (yet) that are remembered.
const MOST_CANCELS: usize = 10_000;

/// How often it is looked whether a consumer can be let go.
const DISMISSAL: Duration = Duration::from_millis(500);

/// What a provider may take beyond its timeout, which it keeps itself, before it is stopped.
const OVERTIME: Duration = Duration::from_secs(10);

/// Everything in hand.
#[derive(Debug)]
pub(crate) struct Hands {
    state: Mutex<State>,
    draining: AtomicBool,
    filled: Notify,
}

#[derive(Debug)]
struct State {
    attempts: HashMap<Key, Entry>,
    /// Attempts in the order of their delivery, until they are old enough to be announced.
    unannounced: VecDeque<Arc<Attempt>>,
    /// Replied, confirmed and acked; kept since the ack itself may be lost with the connection.
    done: Recent,
    cancelled: Recent,
    /// One for each consumer there ever was; none for those that are dismissed.
    ackers: Vec<Option<Acker>>,
}

#[derive(Debug)]
struct Entry {
    attempt: Arc<Attempt>,
    hold: Option<Hold>,
    /// Further deliveries of the same attempt; rare.
    more: Vec<Hold>,
    lease: Lease,
}

/// How an attempt is kept from being rescued.
#[derive(Clone, Copy, Debug)]
enum Lease {
    /// By its unacked delivery.
    None,
    /// A first lease is on its way.
    Asked,
    /// By a lease that is confirmed.
    Held { since: Instant },
    /// A renewal is on its way.
    Renewing,
}

/// A delivery that is to be acked, at the consumer that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) consumer: usize,
    pub(crate) tag: Tag,
}

/// What is to be done with a delivery.
#[derive(Debug)]
pub(crate) enum Received {
    /// Run it.
    Run(Arc<Attempt>, Box<Dispatch>),
    /// Do not run it, say this.
    Answer(Arc<Attempt>, Report),
    /// It was dealt with before: ack it.
    Ack(Hold),
}

/// When a lease takes the place of a delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseRules {
    pub(crate) after: Duration,
    pub(crate) renew: Duration,
}

impl Hands {
    /// Remembers the last `most_done` attempts that left its hands.
    pub(crate) fn new(most_done: usize) -> Self {
        Self {
            state: Mutex::new(State {
                attempts: HashMap::new(),
                unannounced: VecDeque::new(),
                done: Recent::new(most_done),
                cancelled: Recent::new(MOST_CANCELS),
                ackers: Vec::new(),
            }),
            draining: AtomicBool::new(false),
            filled: Notify::new(),
        }
    }

    /// Takes a consumer on; the number names it in each [`Hold`].
    pub(crate) fn admit(&self, acker: Acker) -> usize {
        let mut state = self.lock();
        state.ackers.push(Some(acker));
        state.ackers.len() - 1
    }

    /// Lets go of a consumer that gets no more, once nothing is in hand that came by it.
    pub(crate) async fn dismiss(&self, consumer: usize) {
        let came_by_it = |hold: &Hold| hold.consumer == consumer;
        while !self.is_draining() {
            // The pause first: the last acks are on their way when the last attempt is settled.
            tokio::time::sleep(DISMISSAL).await;
            let mut state = self.lock();
            let mut holds = state
                .attempts
                .values()
                .flat_map(|entry| entry.hold.iter().chain(&entry.more));
            if !holds.any(came_by_it) {
                let acker = state.ackers.get_mut(consumer).and_then(Option::take);
                drop(state);
                // Outside the lock: the broker has one of its own.
                drop(acker);
                return;
            }
        }
    }

    /// Takes deliveries of a consumer and says what is to be done with each; those of attempts
    /// that are in hand already need nothing.
    pub(crate) fn receive(
        &self,
        account: &Arc<Account>,
        consumer: usize,
        deliveries: impl Iterator<Item = Delivery>,
    ) -> Vec<Received> {
        let draining = self.is_draining();
        let mut state = self.lock();
        let was_empty = state.attempts.is_empty();
        let received = deliveries
            .filter_map(|delivery| state.receive(account, consumer, delivery, draining))
            .collect();
        if was_empty && !state.attempts.is_empty() {
            self.filled.notify_one();
        }
        received
    }

    /// From now on nothing new is begun.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Someone asked for the end of this attempt, which may not have come yet.
    pub(crate) fn cancel(&self, key: Key) {
        let mut state = self.lock();
        match state.attempts.get(&key) {
            Some(entry) => entry.attempt.stop(Cause::Request),
            None => state.cancelled.insert(key),
        }
    }

    /// Stops everything that runs.
    pub(crate) fn stop_all(&self, cause: Cause) {
        self.lock()
            .attempts
            .values()
            .for_each(|entry| entry.attempt.stop(cause));
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().attempts.len()
    }

    /// Every attempt in hand.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.lock().attempts.keys().copied().collect()
    }

    /// Waits until there is something in hand.
    pub(crate) async fn filled(&self) {
        while self.lock().attempts.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Takes the attempts that have come of age and still run, for an announcement.
    pub(crate) fn take_unannounced(&self, now: Instant) -> Vec<Arc<Attempt>> {
        let mut state = self.lock();
        let mut due = Vec::new();
        let mut unbegun = Vec::new();
        while let Some(attempt) = state
            .unannounced
            .pop_front_if(|first| now.duration_since(first.received) >= ANNOUNCE_AFTER)
        {
            match attempt.begun() {
                _ if attempt.has_ended() => {}
                Some(_) => due.push(attempt),
                None => unbegun.push(attempt),
            }
        }
        // A busy machine has not come to these yet; they are looked at again.
        state.unannounced.extend(unbegun);
        due
    }

    /// The running attempts that need a lease or a renewal now; it is up to the caller to send
    /// it. Stops what is far over its time on the way.
    pub(crate) fn take_unleased(&self, now: Instant, rules: LeaseRules) -> Vec<Arc<Attempt>> {
        let mut due = Vec::new();
        for entry in self.lock().attempts.values_mut() {
            let attempt = &entry.attempt;
            let Some(begun) = attempt.begun() else {
                continue;
            };
            if attempt.has_ended() {
                continue;
            }
            // Spans are compared, never added to an instant: a configured one may be endless.
            if now.duration_since(begun.instant) > attempt.timeout.saturating_add(OVERTIME) {
                attempt.stop(Cause::Overdue);
            }
            entry.lease = match entry.lease {
                Lease::None if now.duration_since(attempt.received) >= rules.after => Lease::Asked,
                Lease::Held { since } if now.duration_since(since) >= rules.renew => {
                    Lease::Renewing
                }
                Lease::None | Lease::Asked | Lease::Held { .. } | Lease::Renewing => continue,
            };
            due.push(attempt.clone());
        }
        due
    }

    /// A lease or its renewal of `since` is confirmed: the deliveries that it stands for from now
    /// on.
    pub(crate) fn leased(&self, key: Key, since: Instant) -> Vec<Hold> {
        let mut state = self.lock();
        let Some(entry) = state.attempts.get_mut(&key) else {
            return Vec::new();
        };
        entry.lease = Lease::Held { since };
        entry
            .hold
            .take()
            .into_iter()
            .chain(entry.more.drain(..))
            .collect()
    }

    /// The last replies of these attempts are confirmed: lets go of them, and returns the
    /// deliveries to ack.
    pub(crate) fn settle(&self, keys: impl Iterator<Item = Key>) -> Vec<Hold> {
        let mut holds = Vec::new();
        let mut state = self.lock();
        for key in keys {
            if let Some(entry) = state.attempts.remove(&key) {
                holds.extend(entry.hold);
                holds.extend(entry.more);
                state.done.insert(key);
            }
        }
        holds
    }

    /// Acks deliveries, many at once where they came by the same consumer.
    pub(crate) async fn ack(&self, holds: &[Hold]) {
        let Some(most) = holds.iter().map(|hold| hold.consumer).max() else {
            return;
        };
        let mut tags: Vec<Vec<Tag>> = vec![Vec::new(); most + 1];
        for hold in holds {
            tags[hold.consumer].push(hold.tag);
        }
        for (consumer, tags) in tags.iter().enumerate().filter(|(_, tags)| !tags.is_empty()) {
            let acker = self.lock().ackers.get(consumer).cloned().flatten();
            if let Some(acker) = acker {
                acker.ack(tags).await;
            }
        }
    }

    /// Lets go of the consumers: what is still unacked goes back to its queue.
    pub(crate) fn release(&self) {
        let ackers = std::mem::take(&mut self.lock().ackers);
        // Outside the lock: the broker has one of its own.
        drop(ackers);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn receive(
        &mut self,
        account: &Arc<Account>,
        consumer: usize,
        delivery: Delivery,
        draining: bool,
    ) -> Option<Received> {
        let Delivery {
            tag,
            redelivered,
            dispatch,
        } = delivery;
        let key = (dispatch.job, dispatch.attempt);
        let hold = Hold { consumer, tag };
        if self.done.contains(key) {
            return Some(Received::Ack(hold));
        }
        let place = match self.attempts.entry(key) {
            hash_map::Entry::Occupied(mut known) => {
                let entry = known.get_mut();
                if matches!(entry.lease, Lease::Held { .. } | Lease::Renewing) {
                    return Some(Received::Ack(hold));
                }
                entry.more.push(hold);
                return None;
            }
            hash_map::Entry::Vacant(place) => place,
        };
        let attempt = Arc::new(Attempt::new(account.clone(), &dispatch));
        place.insert(Entry {
            attempt: attempt.clone(),
            hold: Some(hold),
            more: Vec::new(),
            lease: Lease::None,
        });
        // First of all: whether a redelivered attempt was run is for the truth plane to say, and
        // "unrun" would be a guess.
        if redelivered {
            attempt.end();
            return Some(Received::Answer(attempt, Report::Redelivered));
        }
        if self.cancelled.remove(key) {
            attempt.end();
            let finished_at = clock::now();
            let outcome = Outcome::Cancelled;
            let report = Report::Finished {
                started_at: None,
                finished_at,
                outcome,
            };
            return Some(Received::Answer(attempt, report));
        }
        if draining {
            attempt.end();
            return Some(Received::Answer(attempt, returned()));
        }
        if account.is_cooling(attempt.received) {
            attempt.end();
            return Some(Received::Answer(attempt, cooling()));
        }
        if attempt.delivery == domain::Delivery::AtLeastOnce {
            self.unannounced.push_back(attempt.clone());
        }
        Some(Received::Run(attempt, Box::new(dispatch)))
    }
}

/// What a worker that stops says about an attempt that it has not begun.
pub(crate) fn returned() -> Report {
    Report::Returned {
        reason: "the worker is shutting down".into(),
    }
}

/// What is said about an attempt that came too late: its account takes no jobs for now.
pub(crate) fn cooling() -> Report {
    Report::Returned {
        reason: "the account is cooling".into(),
    }
}

/// The most recent keys, a bounded number of them.
#[derive(Debug)]
struct Recent {
    most: usize,
    order: VecDeque<Key>,
    known: HashSet<Key>,
}

impl Recent {
    fn new(most: usize) -> Self {
        Self {
            most,
            order: VecDeque::new(),
            known: HashSet::new(),
        }
    }

    fn insert(&mut self, key: Key) {
        if !self.known.insert(key) {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn contains(&self, key: Key) -> bool {
        self.known.contains(&key)
    }

    fn remove(&mut self, key: Key) -> bool {
        self.known.remove(&key)
    }
}

#[cfg(test)]
mod tests;
