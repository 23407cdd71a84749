//! What is done with each delivery, by the table of what happened before.

use super::*;
use crate::testing::{account, dispatch};

const HOLD: Hold = Hold {
    consumer: 0,
    tag: tag(1),
};

const fn tag(number: u64) -> Tag {
    Tag { epoch: 0, number }
}

/// One account's hands, and a delivery for them.
struct Desk(Hands, Arc<Account>, Dispatch);

impl Desk {
    fn new() -> Self {
        Self(
            Hands::new(2),
            account(""),
            dispatch(domain::Delivery::AtLeastOnce),
        )
    }

    fn deliver(&self, number: u64, redelivered: bool) -> Option<Received> {
        let delivery = Delivery {
            tag: tag(number),
            redelivered,
            dispatch: self.2.clone(),
        };
        let mut received = self.0.receive(&self.1, 0, std::iter::once(delivery));
        assert!(received.len() <= 1);
        received.pop()
    }

    fn key(&self) -> Key {
        (self.2.job, self.2.attempt)
    }

    fn settle(&self) -> Vec<Hold> {
        self.0.settle(std::iter::once(self.key()))
    }
}

fn report(received: Option<Received>) -> Report {
    match received {
        Some(Received::Answer(attempt, report)) => {
            assert!(attempt.has_ended());
            report
        }
        other => panic!("not an answer: {other:?}"),
    }
}

#[test]
fn a_first_delivery_is_run() {
    let desk = Desk::new();
    assert!(matches!(desk.deliver(1, false), Some(Received::Run(..))));
    assert_eq!(desk.0.keys(), [desk.key()]);
    assert_eq!(desk.settle(), [HOLD]);
    assert_eq!(desk.0.count(), 0);
}

#[test]
fn a_redelivery_from_elsewhere_is_answered_and_not_run() {
    let desk = Desk::new();
    assert_eq!(report(desk.deliver(1, true)), Report::Redelivered);
    // Until its answer is confirmed it is in hand, so that nobody takes it for lost.
    assert_eq!(desk.0.keys(), [desk.key()]);
    assert_eq!(desk.settle(), [HOLD]);
}

#[test]
fn a_redelivery_of_what_is_in_hand_is_one_more_tag_to_ack() {
    let desk = Desk::new();
    desk.deliver(1, false);
    assert!(desk.deliver(2, true).is_none());
    assert!(
        desk.deliver(3, false).is_none(),
        "nor is a message that was published twice run"
    );
    assert_eq!(
        desk.settle(),
        [1, 2, 3].map(|number| Hold {
            consumer: 0,
            tag: tag(number)
        })
    );
}

#[test]
fn a_redelivery_of_what_is_done_is_acked_at_once() {
    let desk = Desk::new();
    desk.deliver(1, false);
    desk.settle();
    for redelivered in [true, false] {
        let received = desk.deliver(2, redelivered);
        assert!(matches!(received, Some(Received::Ack(hold)) if hold.tag == tag(2)));
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let hands = Hands::new(2);
    let keys: Vec<Key> = (0..3).map(|_| (JobId::generate(), 1)).collect();
    keys.iter().for_each(|key| hands.lock().done.insert(*key));
    let known: Vec<bool> = keys
        .iter()
        .map(|key| hands.lock().done.contains(*key))
        .collect();
    assert_eq!(known, [false, true, true]);
    assert_eq!(hands.lock().done.order.len(), 2);
    for _ in 0..MOST_CANCELS + 5 {
        hands.cancel((JobId::generate(), 1));
    }
    assert_eq!(hands.lock().cancelled.known.len(), MOST_CANCELS);
}

#[test]
fn a_cancel_that_came_first_is_remembered() {
    let desk = Desk::new();
    desk.0.cancel((desk.2.job, 2));
    assert!(
        matches!(desk.deliver(1, false), Some(Received::Run(..))),
        "of another attempt"
    );

    let desk = Desk::new();
    desk.0.cancel(desk.key());
    let report = report(desk.deliver(1, false));
    assert!(matches!(
        report,
        Report::Finished {
            started_at: None,
            outcome: Outcome::Cancelled,
            ..
        }
    ));
}

#[test]
fn a_worker_that_stops_begins_nothing() {
    let desk = Desk::new();
    desk.0.drain();
    assert!(matches!(
        report(desk.deliver(1, false)),
        Report::Returned { .. }
    ));
    // "Unrun" would be a guess, and would give the account's charge back.
    let desk = Desk::new();
    desk.0.drain();
    assert_eq!(report(desk.deliver(1, true)), Report::Redelivered);
}

#[test]
fn only_what_runs_long_is_announced_and_only_once() {
    let desk = Desk::new();
    let Some(Received::Run(attempt, _)) = desk.deliver(1, false) else {
        panic!("not run")
    };
    let old = attempt.received + ANNOUNCE_AFTER;
    assert!(desk.0.take_unannounced(old).is_empty(), "it has not begun");
    attempt.begin();
    assert!(
        desk.0.take_unannounced(attempt.received).is_empty(),
        "it is young"
    );
    assert_eq!(desk.0.take_unannounced(old).len(), 1);
    assert!(desk.0.take_unannounced(old).is_empty(), "it was announced");

    let quick = Desk::new();
    let Some(Received::Run(attempt, _)) = quick.deliver(1, false) else {
        panic!("not run")
    };
    attempt.begin();
    attempt.end();
    assert!(
        quick
            .0
            .take_unannounced(attempt.received + ANNOUNCE_AFTER)
            .is_empty()
    );
}

#[test]
fn a_lease_takes_the_place_of_the_delivery_and_is_renewed() {
    let second = Duration::from_secs(1);
    let rules = LeaseRules {
        after: second * 10,
        renew: second * 5,
    };
    let desk = Desk::new();
    let Some(Received::Run(attempt, _)) = desk.deliver(1, false) else {
        panic!("not run")
    };
    attempt.begin();
    let start = attempt.received;
    let due = |at| desk.0.take_unleased(at, rules).len();
    assert_eq!(due(start + second * 9), 0);
    assert_eq!(due(start + second * 10), 1);
    assert_eq!(due(start + second * 20), 0, "it was asked for");
    assert_eq!(desk.0.leased(desk.key(), start + second * 20), [HOLD]);
    assert_eq!(due(start + second * 24), 0);
    assert_eq!(due(start + second * 25), 1, "a renewal");
    assert_eq!(
        due(start + second * 99),
        0,
        "it is on its way: they must not pile up"
    );
    assert!(desk.0.leased(desk.key(), start + second * 99).is_empty());

    // The ack may have been lost: the lease stands for this delivery, too.
    let again = desk.deliver(2, true);
    assert!(matches!(again, Some(Received::Ack(hold)) if hold.tag == tag(2)));
    attempt.end();
    assert_eq!(due(start + second * 999), 0, "it has ended");
    assert!(desk.settle().is_empty());
}

#[test]
fn an_endless_lease_time_is_none_at_all() {
    let endless = LeaseRules {
        after: Duration::MAX,
        renew: Duration::MAX,
    };
    let mut desk = Desk::new();
    desk.2.timeout = domain::Span(Duration::MAX);
    let Some(Received::Run(attempt, _)) = desk.deliver(1, false) else {
        panic!("not run")
    };
    attempt.begin();
    assert!(desk.0.take_unleased(Instant::now(), endless).is_empty());
}
