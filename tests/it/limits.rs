//! Limits, as the provider sees them: it keeps the book of what arrives and when, and no interval
//! may hold more than its limit, nor a backlog leave much of it unused.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sluice_shared::{
    api::{AccountWindows, JobView, NewJob},
    domain::State,
};

use crate::{
    harness::{Cluster, Mode, Service, bounded_by, eventually, eventually_within, prompt, rest},
    stub::{Play, Stub},
};

const LIMIT: Duration = Duration::from_secs(240);

/// How much of a limit a backlog must use when the machine is this test's alone, as for
/// `make limits`. What is lost is the time that calls and their reports are under way.
const LEAST_USE: f64 = 0.95;

/// The same as one of many tests at once, in a debug build: less than this is no lack of speed.
const LEAST_USE_AMONG_OTHERS: f64 = 0.8;

/// An account whose requests are limited.
#[derive(Clone, Copy, Debug)]
struct Limited {
    name: &'static str,
    most: usize,
    window: Duration,
}

const fn limited(name: &'static str, most: usize, seconds: u64) -> Limited {
    Limited {
        name,
        most,
        window: Duration::from_secs(seconds),
    }
}

impl Limited {
    fn config(&self, stub: &Stub) -> String {
        format!(
            "[accounts.{name}]\nprovider = \"openai\"\nbase_url = \"{}\"\napi_key = \"sk-{name}\"\n\
             default_model = \"m\"\nmax_concurrency = 40\n\
             limits = {{ requests = {}, window = \"{}s\" }}\n",
            stub.url(),
            self.most,
            self.window.as_secs(),
            name = self.name,
        )
    }

    fn arrivals(&self, stub: &Stub) -> Vec<Instant> {
        stub.arrivals(&format!("sk-{}", self.name))
    }

    /// Fails when any interval of the window's length holds more than the limit.
    fn never_exceeded(&self, stub: &Stub) {
        let arrivals = self.arrivals(stub);
        for pair in arrivals.windows(self.most + 1) {
            let apart = pair[self.most] - pair[0];
            assert!(
                apart >= self.window,
                "{self:?}: {} calls within {apart:?}, the first one {:?} after the beginning",
                self.most + 1,
                pair[0] - arrivals[0]
            );
        }
    }

    /// The share of the limit that was used between two moments, by how soon after each other
    /// whole windows of calls came; `None` when there was not even one.
    fn share_used(&self, stub: &Stub, from: Instant, until: Instant) -> Option<f64> {
        let within = |at: &Instant| (from..until).contains(at);
        let arrivals: Vec<Instant> = self.arrivals(stub).into_iter().filter(within).collect();
        let windows = arrivals.len().saturating_sub(1) / self.most;
        let took = *arrivals.get(windows * self.most)? - *arrivals.first()?;
        let allowed = self.window * u32::try_from(windows).unwrap();
        (windows > 0).then(|| allowed.as_secs_f64() / took.as_secs_f64())
    }
}

/// Submits more jobs than each account may run in the time that a test takes.
async fn backlog(cluster: &Cluster, accounts: &[Limited], seconds: u64) {
    for account in accounts {
        let windows = Duration::from_secs(seconds).as_secs_f64() / account.window.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let count = (windows.ceil() as usize + 2) * account.most;
        let job = NewJob {
            account: Some(account.name.parse().unwrap()),
            ..prompt("x")
        };
        for _ in 0..count.div_ceil(500) {
            cluster.submit_many(&vec![job.clone(); 500]).await;
        }
    }
}

fn assert_used(size: &Size, stub: &Stub, from: Instant, until: Instant, when: &str) {
    let mut table = String::new();
    let mut least: f64 = 1.0;
    for account in &size.accounts {
        if let Some(share) = account.share_used(stub, from, until) {
            table += &format!("{account:?}: {:.1} %\n", share * 100.0);
            least = least.min(share);
        }
    }
    eprintln!("{when}:\n{table}");
    assert!(least >= size.least_use, "{when}:\n{table}");
}

/// How large a run is.
struct Size {
    apis: usize,
    workers: usize,
    accounts: Vec<Limited>,
    /// How long nothing is killed, before and after.
    calm: Duration,
    limit: Duration,
    least_use: f64,
}

impl Size {
    /// Small, as one of many tests; `SLUICE_TEST_SIZE=full` asks for more.
    fn of_environment() -> Self {
        if std::env::var("SLUICE_TEST_SIZE").is_ok_and(|size| size == "full") {
            return Self::full();
        }
        Self {
            apis: 2,
            workers: 3,
            accounts: vec![
                limited("two", 30, 2),
                limited("five", 40, 5),
                limited("nine", 150, 9),
                limited("sixty", 200, 60),
            ],
            calm: Duration::from_secs(20),
            limit: LIMIT,
            least_use: LEAST_USE_AMONG_OTHERS,
        }
    }

    /// Twelve accounts, some 20,000 jobs.
    fn full() -> Self {
        let windows = [2, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60];
        let name = |index: usize| -> &'static str { format!("account-{index}").leak() };
        let account = |(index, seconds): (usize, u64)| {
            limited(name(index), usize::try_from(seconds * 9).unwrap(), seconds)
        };
        Self {
            apis: 3,
            workers: 6,
            accounts: windows.into_iter().enumerate().map(account).collect(),
            calm: Duration::from_secs(80),
            limit: Duration::from_secs(900),
            least_use: LEAST_USE,
        }
    }
}

/// Named so that it runs beside no other of its kind.
mod fault {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_window_is_exceeded_and_nearly_all_of_it_is_used_whatever_is_killed() {
        let size = Size::of_environment();
        bounded_by(size.limit, Box::pin(survive(&size))).await;
    }
}

async fn survive(size: &Size) {
    let accounts = &size.accounts;
    let stub = Stub::start(|ask| Play::Slowly(10, format!("echo: {}", ask.prompt))).await;
    let config: String = accounts
        .iter()
        .map(|account| account.config(&stub))
        .collect();
    let private = [Service::Postgres, Service::Redis];
    let mut cluster = Cluster::distributed(&config, size.apis, size.workers, &private).await;
    backlog(&cluster, accounts, 2 * size.calm.as_secs() + 40).await;

    let begun = Instant::now();
    rest(size.calm).await;
    assert_used(size, &stub, begun, begun + size.calm, "in calm");

    cluster.kill9("api-1");
    rest(Duration::from_millis(700)).await;
    cluster.start_again("api-1");
    rest(Duration::from_secs(2)).await;
    cluster.kill9_service(Service::Redis).await;
    rest(Duration::from_secs(1)).await;
    cluster.start_service(Service::Redis).await;
    rest(Duration::from_secs(2)).await;
    cluster.kill9_service(Service::Postgres).await;
    rest(Duration::from_secs(1)).await;
    cluster.start_service(Service::Postgres).await;
    cluster.kill9("worker-2");
    rest(Duration::from_secs(1)).await;
    cluster.start_again("worker-2");
    rest(Duration::from_secs(8)).await;

    let recovered = Instant::now();
    rest(size.calm).await;
    for account in accounts {
        account.never_exceeded(&stub);
    }
    assert_used(size, &stub, recovered, recovered + size.calm, "afterwards");
    for account in accounts {
        let path = format!("/api/accounts/{}/windows", account.name);
        let shown: AccountWindows = cluster.api().get(&path).await.is(200);
        let window = &shown.limits[0];
        let most = u64::try_from(account.most).unwrap();
        assert_eq!(window.limit, most, "{shown:?}");
        assert!(window.used + window.reserved <= most, "{shown:?}");
        assert!(window.left > 0 || window.resets_at.is_some() || window.reserved > 0);
    }
}

#[tokio::test]
async fn a_limit_holds_over_a_restart_of_the_one_process() {
    bounded_by(LIMIT, async {
        let account = limited("three", 20, 3);
        let stub = Stub::start(|ask| Play::Slowly(10, ask.prompt.clone())).await;
        let mut cluster = Cluster::embedded(&account.config(&stub)).await;
        backlog(&cluster, &[account], 30).await;
        for calls in [30, 70, 110] {
            eventually(&format!("{calls} calls"), async || {
                (account.arrivals(&stub).len() >= calls).then_some(())
            })
            .await;
            cluster.kill9("up");
            cluster.start_again("up");
            cluster.until_up().await;
        }
        account.never_exceeded(&stub);
    })
    .await;
}

/// How long the throttle of the test lasts, and for how long a call may still be under way when it
/// begins.
const THROTTLE: Duration = Duration::from_secs(8);
const UNDER_WAY: Duration = Duration::from_secs(1);
const ATTEMPTS_AT_ONCE: usize = 4;

/// When an account began to refuse.
type Begun = Arc<Mutex<Option<Instant>>>;

/// A provider at which the account `a` is throttled from its hundredth call on, for a while.
async fn throttling(begun: Begun) -> Stub {
    let calls = AtomicUsize::new(0);
    Stub::start(move |ask| {
        let answer = || Play::Slowly(100, format!("echo: {}", ask.prompt));
        if ask.key != "sk-a" || calls.fetch_add(1, Ordering::Relaxed) < 100 {
            return answer();
        }
        let since = begun
            .lock()
            .unwrap()
            .get_or_insert_with(Instant::now)
            .elapsed();
        match THROTTLE.checked_sub(since) {
            Some(left) => Play::Throttle(left.as_secs() + 1),
            None => answer(),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_account_is_left_alone_until_its_time_and_no_job_notices() {
    bounded_by(LIMIT, async {
        let begun = Begun::default();
        let stub = throttling(begun.clone()).await;
        let config: String = ["a", "b", "c"]
            .map(|name| {
                format!(
                    "[accounts.{name}]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
                     api_key = \"sk-{name}\"\ndefault_model = \"m\"\n\
                     max_concurrency = {ATTEMPTS_AT_ONCE}\n",
                    stub.url()
                )
            })
            .concat();
        let cluster = Cluster::distributed(&config, 2, 3, &[]).await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.extend(cluster.submit_many(&vec![prompt("x"); 500]).await);
        }
        let since = eventually("the account is throttled", async || *begun.lock().unwrap()).await;
        eventually_within(UNDER_WAY, "its jobs have moved", async || {
            let account = cluster.api().account("a").await;
            (account.in_flight == 0 && account.cooldown_until.is_some()).then_some(())
        })
        .await;
        let shown: AccountWindows = cluster.api().get("/api/accounts/a/windows").await.is(200);
        assert_eq!(shown.cooldowns.len(), 1, "{shown:?}");
        let pinned = cluster
            .submit(&NewJob {
                account: Some("a".parse().unwrap()),
                ..prompt("pinned")
            })
            .await;
        let waits = cluster
            .until(pinned, "says what it waits for", |job| {
                job.waiting_until.is_some()
            })
            .await;
        assert_eq!(waits.waiting_until, Some(shown.cooldowns[0].until));
        assert!(
            waits.waiting_for.as_ref().unwrap().contains("slow down"),
            "{waits:?}"
        );

        let jobs: Vec<JobView> = cluster.wait_all(&ids).await;
        for job in &jobs {
            assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
        }
        assert_eq!(cluster.wait(pinned).await.state, State::Succeeded);
        eventually("it is back", async || {
            let last = *stub.arrivals("sk-a").last().unwrap();
            (last > since + THROTTLE + Duration::from_secs(1)).then_some(())
        })
        .await;

        let arrivals = stub.arrivals("sk-a");
        let between = |from: Duration, until: Duration| {
            let within = |at: &&Instant| (since + from..since + until).contains(*at);
            arrivals.iter().filter(within).count()
        };
        assert_eq!(between(UNDER_WAY, THROTTLE), 0, "no call before its time");
        let at_once = between(Duration::ZERO, UNDER_WAY);
        assert!(
            at_once <= 2 * ATTEMPTS_AT_ONCE,
            "{at_once} calls were refused"
        );
        // One canary, and the others after its answer.
        let back: Vec<Instant> = arrivals
            .into_iter()
            .filter(|at| *at > since + THROTTLE)
            .collect();
        assert!(
            back[1] - back[0] >= Duration::from_millis(100),
            "no flood at the end"
        );
        for other in ["sk-b", "sk-c"] {
            let arrivals = stub.arrivals(other);
            let a_second = |from: Instant, until: Instant| {
                let count = arrivals
                    .iter()
                    .filter(|at| (from..until).contains(*at))
                    .count();
                f64::from(u32::try_from(count).unwrap()) / (until - from).as_secs_f64()
            };
            // By its own rate before, whatever the machine is busy with.
            let (before, meanwhile) = (
                a_second(arrivals[0], since),
                a_second(since, since + THROTTLE),
            );
            assert!(
                meanwhile >= before / 2.0,
                "{other} went on with {meanwhile:.0} calls/s of {before:.0} before"
            );
        }
    })
    .await;
}

async fn a_refused_credential_takes_its_account_out_and_its_jobs_elsewhere(mode: Mode) {
    let stub = Stub::start(|ask| match ask.key.as_str() {
        "sk-bad" => Play::Refuse(401, "invalid_api_key"),
        _ => Play::Answer(ask.prompt.clone()),
    })
    .await;
    let config: String = ["bad", "good"]
        .map(|name| {
            format!(
                "[accounts.{name}]\nprovider = \"openai\"\nbase_url = \"{}\"\n\
                 api_key = \"sk-{name}\"\ndefault_model = \"m\"\n",
                stub.url()
            )
        })
        .concat();
    let cluster = Cluster::start(mode, &config).await;
    let before = Instant::now();
    let ids = cluster.submit_many(&vec![prompt("x"); 20]).await;
    for job in cluster.wait_all(&ids).await {
        assert_eq!((job.state, job.failures), (State::Succeeded, 0), "{job:?}");
    }
    assert!(before.elapsed() < Duration::from_secs(10));
    let pinned = NewJob {
        account: Some("bad".parse().unwrap()),
        ..prompt("pinned")
    };
    let waiting = cluster.submit(&pinned).await;
    let job = cluster
        .until(waiting, "says why", |job| job.waiting_for.is_some())
        .await;
    assert!(job.waiting_for.unwrap().contains("auth_failed"));
    assert_eq!(job.waiting_until, None, "that is for someone to end");
}

crate::harness::on_every_mode!(a_refused_credential_takes_its_account_out_and_its_jobs_elsewhere);
