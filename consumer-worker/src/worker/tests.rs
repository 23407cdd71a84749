//! A worker as a whole: each promise of the role, seen from the broker and the live plane.

use sluice_shared::{
    broker::BrokerError,
    domain::{Delivery, Outcome, Time},
    live::{Piece, StreamId},
    message::{Control, Report},
};

use super::*;
use crate::testing::{Rig, account_id, configured, dispatch, in_time, outcome, until};

const ALO: Delivery = Delivery::AtLeastOnce;
const AMO: Delivery = Delivery::AtMostOnce;
const SLOW: &str = "latency = \"1h\"";

#[tokio::test]
async fn a_quick_job_costs_one_reply() {
    let mut rig = Rig::start("", "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    let report = rig.reply_to(&job).await;
    assert!(matches!(outcome(&report), Outcome::Completed(_)));
    assert!(matches!(
        report,
        Report::Finished {
            started_at: Some(_),
            ..
        }
    ));
    rig.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_that_runs_long_is_announced() {
    let mut rig = Rig::start(SLOW, "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    assert!(matches!(rig.reply_to(&job).await, Report::Started { .. }));
}

#[tokio::test]
async fn at_most_once_is_announced_first_however_quick() {
    let mut rig = Rig::start("", "").await;
    let job = dispatch(AMO);
    rig.dispatch(&job).await;
    assert!(matches!(rig.reply_to(&job).await, Report::Started { .. }));
    assert!(matches!(
        outcome(&rig.reply_to(&job).await),
        Outcome::Completed(_)
    ));
}

#[tokio::test]
async fn a_job_of_a_dead_worker_is_answered_and_not_run() {
    let broker = Broker::in_process();
    let job = dispatch(ALO);
    broker.declare(&account_id()).await.unwrap();
    broker
        .dispatch(std::slice::from_ref(&job))
        .await
        .remove(0)
        .unwrap();
    let mut dead = broker.consume(&account_id(), 1).await.unwrap();
    dead.next().await.unwrap();
    drop(dead);

    let mut rig = Rig::start_on(broker, Live::memory(), "", "").await;
    assert_eq!(rig.reply_to(&job).await, Report::Redelivered);
    // It was acked: only then is it forgotten.
    rig.presence(|presence| presence.in_flight.is_empty()).await;
}

#[tokio::test]
async fn a_cancel_ends_what_runs() {
    let mut rig = Rig::start(SLOW, "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    rig.reply_to(&job).await;
    let other = Control::Cancel {
        job: job.job,
        attempt: job.attempt + 1,
    };
    rig.broker.control(&other).await.unwrap();
    let cancel = Control::Cancel {
        job: job.job,
        attempt: job.attempt,
    };
    rig.broker.control(&cancel).await.unwrap();
    let report = rig.reply_to(&job).await;
    assert_eq!(*outcome(&report), Outcome::Cancelled);
    assert!(matches!(
        report,
        Report::Finished {
            started_at: Some(_),
            ..
        }
    ));
}

#[tokio::test]
async fn a_long_prompt_is_leased_acked_and_renewed() {
    let settings = format!("{SLOW}\nmax_concurrency = 1");
    let mut rig = Rig::start(&settings, "lease_after = \"50ms\"\nlease_renew = \"50ms\"").await;
    let (first, second) = (dispatch(ALO), dispatch(ALO));
    rig.dispatch(&first).await;
    rig.dispatch(&second).await;
    let mut leases: Vec<(Time, Time)> = Vec::new();
    let mut second_began = false;
    while leases.len() < 3 || !second_began {
        assert!(leases.len() < 100, "the first was never acked");
        let reply = rig.reply().await;
        match reply.report {
            Report::Leased { started_at, until } if reply.job == first.job => {
                leases.push((started_at, until));
            }
            // The broker hands out one at a time: the first was acked when it was leased.
            _ if reply.job == second.job => {
                assert!(!leases.is_empty());
                second_began = true;
            }
            _ => {}
        }
    }
    assert!(
        leases
            .windows(2)
            .all(|two| two[0].0 == two[1].0 && two[0].1 < two[1].1)
    );
    let both = rig.presence(|presence| presence.in_flight.len() == 2).await;
    assert!(both.in_flight.contains(&(first.job, 1)));
    let cancel = Control::Cancel {
        job: first.job,
        attempt: 1,
    };
    rig.broker.control(&cancel).await.unwrap();
    assert_eq!(*outcome(&rig.end_of(&first).await), Outcome::Cancelled);
    rig.presence(|presence| presence.in_flight == [(second.job, 1)])
        .await;
}

#[tokio::test]
async fn text_is_streamed_while_a_prompt_runs() {
    let mut rig = Rig::start("latency = \"400ms\"\ntokens = 40", "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    let report = rig.end_of(&job).await;
    let Outcome::Completed(completion) = outcome(&report) else {
        panic!("{report:?}")
    };
    let none = sluice_shared::domain::Span::seconds(0);
    let pieces = rig
        .live
        .read(job.job, StreamId::START, 100, none)
        .await
        .unwrap();
    let text: Vec<&str> = pieces
        .iter()
        .map(|(_, piece)| match piece {
            Piece::Text { attempt: 1, text } => text.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(text.len() > 2);
    assert_eq!(
        text.concat(),
        completion.text,
        "all of it, before the reply"
    );
}

#[tokio::test]
async fn its_presence_says_what_is_in_its_hands() {
    let mut rig = Rig::start(SLOW, "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    let there = rig
        .presence(|presence| !presence.in_flight.is_empty())
        .await;
    assert_eq!(there.worker, "tester");
    assert_eq!(there.accounts, [account_id()]);
    assert_eq!(there.in_flight, [(job.job, job.attempt)]);
    rig.broker
        .control(&Control::Cancel {
            job: job.job,
            attempt: 1,
        })
        .await
        .unwrap();
    rig.presence(|presence| presence.in_flight.is_empty()).await;
    rig.stop().await.unwrap();
    assert!(rig.live.workers().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_runs_may_finish_when_the_worker_stops() {
    let mut rig = Rig::start("latency = \"300ms\"", "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    rig.reply_to(&job).await;
    rig.stop().await.unwrap();
    assert!(matches!(
        outcome(&rig.reply_to(&job).await),
        Outcome::Completed(_)
    ));
    assert_eq!(rig.broker.depth(&account_id()).await.unwrap().ready, 0);
}

#[tokio::test]
async fn what_does_not_finish_in_its_grace_is_handed_back_or_ended() {
    let mut rig = Rig::start(SLOW, "shutdown_grace = \"50ms\"").await;
    let (again, once) = (dispatch(ALO), dispatch(AMO));
    rig.dispatch(&again).await;
    rig.dispatch(&once).await;
    rig.reply().await;
    rig.reply().await;
    rig.stop().await.unwrap();
    let mut ends = [rig.reply().await, rig.reply().await];
    ends.sort_by_key(|reply| reply.job != again.job);
    // Cancelled without being asked for: the API puts it back, and its charge stands.
    assert!(matches!(
        ends[0].report,
        Report::Finished {
            started_at: Some(_),
            outcome: Outcome::Cancelled,
            ..
        }
    ));
    assert_eq!(outcome(&ends[1].report).error().unwrap().0, "worker_lost");
    assert_eq!(
        rig.broker.depth(&account_id()).await.unwrap().ready,
        0,
        "all was acked"
    );
}

#[tokio::test]
async fn a_worker_that_stops_takes_nothing_new() {
    let mut rig = Rig::start(&format!("{SLOW}\nmax_concurrency = 1"), "").await;
    let (running, waiting) = (dispatch(ALO), dispatch(ALO));
    rig.dispatch(&running).await;
    rig.reply_to(&running).await;
    rig.dispatch(&waiting).await;
    rig.shutdown.cancel();
    // At once, and not when the last prompt has ended: others must get what comes meanwhile.
    until(async || rig.broker.depth(&account_id()).await.unwrap().consumers == 0).await;
    assert_eq!(rig.live.workers().await.unwrap()[0].in_flight.len(), 1);
    let cancel = Control::Cancel {
        job: running.job,
        attempt: 1,
    };
    rig.broker.control(&cancel).await.unwrap();
    rig.stop().await.unwrap();
    // It never left its queue: another worker will not even see a redelivery.
    let mut next = rig.broker.consume(&account_id(), 1).await.unwrap();
    let delivery = in_time(next.next()).await.unwrap();
    assert_eq!(
        (delivery.dispatch.job, delivery.redelivered),
        (waiting.job, false)
    );
}

#[tokio::test]
async fn a_worker_that_dies_gives_back_what_it_held() {
    let mut rig = Rig::start(SLOW, "").await;
    let job = dispatch(ALO);
    rig.dispatch(&job).await;
    rig.reply_to(&job).await;
    let broker = rig.broker.clone();
    drop(rig);
    until(async || broker.depth(&account_id()).await.unwrap().ready == 1).await;
}

#[tokio::test]
async fn an_account_that_cannot_be_built_stops_no_other() {
    let broken = "[accounts.broken]\nprovider = \"anthropic\"\n\
                  api_key_env = \"SLUICE_TEST_NO_SUCH_VARIABLE\"";
    let rig = Rig::start(broken, "").await;
    let there = rig.presence(|presence| !presence.accounts.is_empty()).await;
    assert_eq!(there.accounts, [account_id()]);

    let mut config = configured(broken, "");
    config.worker.accounts = vec!["broken".into()];
    let (broker, live) = (Broker::in_process(), Live::memory());
    let ended = run(
        &config,
        Path::new("."),
        broker,
        live,
        CancellationToken::new(),
    )
    .await;
    assert!(
        ended
            .unwrap_err()
            .to_string()
            .contains("no account to serve")
    );
}

#[tokio::test]
async fn a_closed_broker_ends_the_worker() {
    let mut rig = Rig::start("", "").await;
    rig.broker.close().await;
    assert!(matches!(
        rig.broker.ready().await,
        Ok(()) | Err(BrokerError::Unavailable(_))
    ));
    rig.shutdown = CancellationToken::new();
    rig.stop().await.unwrap();
}

#[tokio::test]
async fn ten_thousand_run_at_once_on_one_account() {
    let mut rig = Rig::start("latency = \"1s\"\nmax_concurrency = 10000", "").await;
    let jobs: Vec<_> = (0..10_000).map(|_| dispatch(ALO)).collect();
    for result in rig.broker.dispatch(&jobs).await {
        result.unwrap();
    }
    rig.presence(|presence| presence.in_flight.len() == 10_000)
        .await;
    let mut ends = 0;
    while ends < jobs.len() {
        if let Report::Finished { outcome, .. } = rig.reply().await.report {
            assert!(matches!(outcome, Outcome::Completed(_)));
            ends += 1;
        }
    }
}
