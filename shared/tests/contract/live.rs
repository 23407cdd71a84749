//! Every live plane: news, presence and streams, for as long as they are of use.

use std::time::Duration;

use sluice_shared::{
    domain::{JobId, Span, Time},
    live::{Live, Piece, Presence, StreamId, Wake},
    roll::{Entry, Roll},
};
use tokio::time::Instant;

use crate::harness::{eventually, live_memory, live_redis, soon};

/// Makes a test of `$test` for each live plane.
macro_rules! on_every_live_plane {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::live_memory()).await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::live_redis()).await;
            })+
        }
    };
}

on_every_live_plane!(
    a_wake_up_reaches_every_listener,
    a_worker_is_there_until_it_leaves,
    a_worker_that_falls_silent_is_gone,
    a_beat_replaces_the_one_before,
    a_stream_is_read_from_any_place,
    streams_are_apart,
    a_waiting_read_is_woken,
    many_readers_of_one_stream_are_woken,
    a_wait_ends_without_news,
    a_stream_ends_with_its_time,
    a_quota_is_taken_until_it_is_spent,
    a_quota_starts_anew,
    the_roll_is_kept_until_it_is_replaced,
    it_is_ready,
);

pub(crate) const MINUTE: Span = Span::seconds(60);

pub(crate) fn text(text: &str) -> Piece {
    Piece::Text {
        attempt: 1,
        text: text.into(),
    }
}

pub(crate) fn presence() -> Presence {
    Presence {
        worker: format!("worker-{}", JobId::generate()),
        host: "host".into(),
        pid: 1,
        version: "0.1.0".into(),
        since: Time::from_millis(1),
        beat_at: Time::from_millis(2),
        accounts: vec!["one".parse().unwrap()],
        serves_all: false,
        troubles: Default::default(),
        in_flight: vec![(JobId::generate(), 1)],
    }
}

pub(crate) async fn find(live: &Live, worker: &str) -> Option<Presence> {
    live.workers()
        .await
        .unwrap()
        .into_iter()
        .find(|presence| presence.worker == worker)
}

async fn a_wake_up_reaches_every_listener(live: Live) {
    let (mut one, mut other) = (live.wakes(), live.wakes());
    drop(live.wakes());
    let wake = Wake::Ended {
        jobs: vec![JobId::generate(), JobId::generate()],
    };
    for listener in [&mut one, &mut other] {
        // Other tests wake their own.
        soon(async {
            loop {
                live.wake(&wake).await.unwrap();
                let heard = tokio::time::timeout(Duration::from_millis(100), listener.recv());
                if heard.await.ok().flatten().as_ref() == Some(&wake) {
                    return;
                }
            }
        })
        .await;
    }
}

async fn a_worker_is_there_until_it_leaves(live: Live) {
    let (one, other) = (presence(), presence());
    live.beat(&one, MINUTE).await.unwrap();
    live.beat(&other, MINUTE).await.unwrap();
    assert_eq!(find(&live, &one.worker).await.as_ref(), Some(&one));
    live.leave(&one.worker).await.unwrap();
    live.leave(&one.worker).await.unwrap();
    assert_eq!(find(&live, &one.worker).await, None);
    assert_eq!(find(&live, &other.worker).await.as_ref(), Some(&other));
    live.leave(&other.worker).await.unwrap();
}

async fn a_worker_that_falls_silent_is_gone(live: Live) {
    let presence = presence();
    live.beat(&presence, Span::from_millis(300)).await.unwrap();
    assert!(find(&live, &presence.worker).await.is_some());
    eventually(|| async { find(&live, &presence.worker).await.is_none().then_some(()) }).await;
    live.beat(&presence, MINUTE).await.unwrap();
    assert!(find(&live, &presence.worker).await.is_some());
    live.leave(&presence.worker).await.unwrap();
}

async fn a_beat_replaces_the_one_before(live: Live) {
    let mut presence = presence();
    live.beat(&presence, MINUTE).await.unwrap();
    presence.in_flight.clear();
    presence.beat_at = Time::from_millis(3);
    live.beat(&presence, MINUTE).await.unwrap();
    assert_eq!(
        find(&live, &presence.worker).await.as_ref(),
        Some(&presence)
    );
    live.leave(&presence.worker).await.unwrap();
}

async fn a_stream_is_read_from_any_place(live: Live) {
    let job = JobId::generate();
    let pieces = [text("a"), text("ü\n\"b\""), text(""), text("c"), Piece::End];
    live.append(job, &pieces[..2], MINUTE).await.unwrap();
    live.append(job, &[], MINUTE).await.unwrap();
    live.append(job, &pieces[2..], MINUTE).await.unwrap();
    let all = live
        .read(job, StreamId::START, 100, Span::from_millis(0))
        .await
        .unwrap();
    assert!(all.is_sorted_by(|(one, _), (other, _)| one < other));
    assert_eq!(
        all.iter()
            .map(|(_, piece)| piece.clone())
            .collect::<Vec<_>>(),
        pieces
    );
    for (seen, (id, _)) in all.iter().enumerate() {
        let rest = live
            .read(job, *id, 100, Span::from_millis(0))
            .await
            .unwrap();
        assert_eq!(rest, all[seen + 1..]);
    }
    let two = live.read(job, all[0].0, 2, MINUTE).await.unwrap();
    assert_eq!(two, all[1..3]);
}

async fn streams_are_apart(live: Live) {
    let (one, other) = (JobId::generate(), JobId::generate());
    live.append(one, &[text("a")], MINUTE).await.unwrap();
    let pieces = live
        .read(other, StreamId::START, 100, Span::from_millis(0))
        .await
        .unwrap();
    assert_eq!(pieces, []);
}

async fn a_waiting_read_is_woken(live: Live) {
    let job = JobId::generate();
    let mut after = StreamId::START;
    for round in 0..20 {
        let piece = text(&round.to_string());
        let reading = live.read(job, after, 100, MINUTE);
        let appending = async {
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            live.append(job, std::slice::from_ref(&piece), MINUTE)
                .await
                .unwrap();
        };
        let (read, ()) = soon(futures::future::join(reading, appending)).await;
        let read = read.unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].1, piece);
        after = read[0].0;
    }
}

async fn many_readers_of_one_stream_are_woken(live: Live) {
    let jobs: Vec<_> = (0..10).map(|_| JobId::generate()).collect();
    // More than there are connections.
    let readers = jobs.iter().cycle().take(100).map(|job| {
        let live = live.clone();
        async move { live.read(*job, StreamId::START, 100, MINUTE).await.unwrap() }
    });
    let appending = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for job in &jobs {
            live.append(*job, &[Piece::End], MINUTE).await.unwrap();
        }
    };
    let reading = futures::future::join_all(readers);
    let (read, ()) = soon(futures::future::join(reading, appending)).await;
    assert!(
        read.iter()
            .all(|pieces| pieces.len() == 1 && pieces[0].1 == Piece::End)
    );
}

async fn a_wait_ends_without_news(live: Live) {
    let start = Instant::now();
    let wait = Span::from_millis(150);
    let read = soon(live.read(JobId::generate(), StreamId::START, 1, wait))
        .await
        .unwrap();
    assert_eq!(read, []);
    assert!(start.elapsed() >= wait.0);
}

async fn a_stream_ends_with_its_time(live: Live) {
    let job = JobId::generate();
    live.append(job, &[text("a")], Span::from_millis(300))
        .await
        .unwrap();
    let read = || live.read(job, StreamId::START, 1, Span::from_millis(0));
    assert_eq!(read().await.unwrap().len(), 1);
    eventually(|| async { read().await.unwrap().is_empty().then_some(()) }).await;
}

async fn it_is_ready(live: Live) {
    live.ready().await.unwrap();
}

async fn a_quota_is_taken_until_it_is_spent(live: Live) {
    let (one, other) = (JobId::generate().to_string(), JobId::generate().to_string());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (live, name) = (live.clone(), one.clone());
        tasks.spawn(async move { live.take(&name, 20, MINUTE).await.unwrap() });
    }
    let taken = tasks.join_all().await;
    let mut left: Vec<u32> = taken.iter().filter_map(|taken| taken.left).collect();
    left.sort_unstable();
    assert_eq!(left, (0..20).collect::<Vec<_>>());
    assert!(taken.iter().all(|taken| taken.resets_in <= MINUTE));
    assert_eq!(live.take(&other, 20, MINUTE).await.unwrap().left, Some(19));
}

async fn a_quota_starts_anew(live: Live) {
    let name = JobId::generate().to_string();
    let window = Span::from_millis(300);
    assert_eq!(live.take(&name, 1, window).await.unwrap().left, Some(0));
    let spent = live.take(&name, 1, window).await.unwrap();
    assert_eq!(spent.left, None);
    eventually(async || live.take(&name, 1, window).await.unwrap().left).await;
}

async fn the_roll_is_kept_until_it_is_replaced(live: Live) {
    let roll = |revision: i64, names: &[&str]| {
        let entry = |name: &&str| {
            let sealed = format!("v1.{name}");
            (name.parse().unwrap(), Entry { revision, sealed })
        };
        Roll {
            revision,
            accounts: names.iter().map(entry).collect(),
        }
    };
    // Whatever another run of the tests has left there goes first.
    for roll in [roll(7, &["one", "two"]), roll(8, &["two"]), roll(9, &[])] {
        live.keep_roll(&roll).await.unwrap();
        assert_eq!(live.roll_revision().await.unwrap(), Some(roll.revision));
        assert_eq!(live.roll().await.unwrap(), Some(roll));
    }
}
