//! One attempt: a straight pipeline from a delivery to one report, panics included.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use sluice_shared::{
    clock,
    domain::{Delivery, Figure, JobId, Outcome, ThrottleKind, Time},
    message::{Dispatch, Report},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    account::Account,
    engine::Engine,
    hands::{cooling, returned},
    provider::{Prompt, Sink},
    replies::Then,
};

/// How long a provider may take to stop when it is told to.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long an ended attempt waits for its last text to reach the live plane, so that it comes
/// before the job's end. Only while the live plane answers.
const LAST_TEXT: Duration = Duration::from_millis(100);

/// How old an announcement may be when its provider is called: what it charges begins then.
const FRESH: Duration = Duration::from_secs(1);

/// One attempt in this worker's hands.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) job: JobId,
    pub(crate) number: u32,
    pub(crate) account: Arc<Account>,
    pub(crate) delivery: Delivery,
    pub(crate) timeout: Duration,
    pub(crate) received: Instant,
    cancel: CancellationToken,
    cause: AtomicU8,
    begun: OnceLock<Begun>,
    ended: AtomicBool,
    /// What its provider has said about its own limits; not told yet.
    learned: Mutex<Vec<Figure>>,
}

/// When the provider was called, by the wall clock and by one that never jumps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(crate) at: Time,
    pub(crate) instant: Instant,
}

/// Why an attempt is stopped; a later one outranks an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    /// It is far over its time.
    Overdue = 1,
    /// The worker goes away.
    Shutdown = 2,
    /// Someone asked for it.
    Request = 3,
}

impl Attempt {
    pub(crate) fn new(account: Arc<Account>, dispatch: &Dispatch) -> Self {
        Self {
            job: dispatch.job,
            number: dispatch.attempt,
            account,
            delivery: dispatch.delivery,
            timeout: dispatch.timeout.0,
            received: Instant::now(),
            cancel: CancellationToken::new(),
            cause: AtomicU8::new(0),
            begun: OnceLock::new(),
            ended: AtomicBool::new(false),
            learned: Mutex::new(Vec::new()),
        }
    }

    /// What its provider has said about its own limits since the last time.
    pub(crate) fn take_learned(&self) -> Vec<Figure> {
        std::mem::take(&mut *self.learned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the provider to stop.
    pub(crate) fn stop(&self, cause: Cause) {
        self.cause.fetch_max(cause as u8, Ordering::AcqRel);
        self.cancel.cancel();
    }

    /// Its provider is called now.
    pub(crate) fn begin(&self) {
        self.begun.get_or_init(|| Begun {
            at: clock::now(),
            instant: Instant::now(),
        });
    }

    /// When the provider was called; `None` when it was not yet.
    pub(crate) fn begun(&self) -> Option<Begun> {
        self.begun.get().copied()
    }

    /// Its last report is made.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn cause(&self) -> Option<Cause> {
        match self.cause.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Cause::Overdue),
            2 => Some(Cause::Shutdown),
            _ => Some(Cause::Request),
        }
    }

    fn finished(&self, outcome: Outcome) -> Report {
        let begun = self.begun();
        Report::Finished {
            started_at: begun.map(|begun| begun.at),
            // The span between them is what counts, and a clock that is set must not change it.
            finished_at: begun.map_or_else(clock::now, |begun| begun.at + begun.instant.elapsed()),
            outcome,
        }
    }
}

/// Runs an attempt and sends its last report.
pub(crate) async fn run(engine: Arc<Engine>, attempt: Arc<Attempt>, dispatch: Box<Dispatch>) {
    let span = span(&attempt, &dispatch);
    let meters = &attempt.account.meters;
    meters.in_flight.increment(1.0);
    let conducted = conduct(&engine, &attempt, &dispatch).instrument(span.clone());
    let report = catch_panic(&attempt, conducted).await;
    meters.in_flight.decrement(1.0);
    attempt.end();
    // Without a report the attempt stays unacked: whoever gets it next says so.
    if let Some(report) = report {
        let outcome = name(&report);
        span.record("outcome", outcome);
        meters.count(outcome);
        if let Some(begun) = attempt.begun() {
            meters
                .duration
                .record(begun.instant.elapsed().as_secs_f64());
        }
        engine.replies.send(&attempt, report, Then::Settle);
    }
}

/// Not an `async fn`: that would keep `conducted` twice in every attempt's memory.
fn catch_panic<'a>(
    attempt: &'a Attempt,
    conducted: impl Future<Output = Option<Report>> + 'a,
) -> impl Future<Output = Option<Report>> + 'a {
    AssertUnwindSafe(conducted).catch_unwind().map(|caught| {
        caught.unwrap_or_else(|_| {
            // Not the panic's own words: they may quote the prompt.
            tracing::error!(
                job = %attempt.job, attempt = attempt.number, account = %attempt.account.id,
                "the provider's adapter panicked; please report it"
            );
            Some(attempt.finished(Outcome::failed("panic", "the provider's adapter panicked")))
        })
    })
}

/// The attempt's last report; `None` when it was not begun and it is unknown whether the truth
/// plane was told that it is about to be.
async fn conduct(engine: &Engine, attempt: &Attempt, dispatch: &Dispatch) -> Option<Report> {
    if attempt.delivery == Delivery::AtMostOnce && !announce(engine, attempt).await {
        return None;
    }
    match attempt.cause() {
        Some(Cause::Request) => return Some(attempt.finished(Outcome::Cancelled)),
        Some(_) => return Some(returned()),
        None if engine.hands.is_draining() => return Some(returned()),
        None if attempt.account.is_cooling(Instant::now()) => return Some(cooling()),
        None => {}
    }
    attempt.begin();
    let outcome = call(engine, attempt, dispatch).await;
    let outcome = verdict(outcome, attempt.cause(), attempt.delivery);
    cool(&attempt.account, &outcome);
    tracing::debug!(outcome = outcome.name(), "attempt ended");
    Some(attempt.finished(outcome))
}

/// What an outcome means for what is still on its way to the account. For how long it takes no
/// new jobs, the truth plane says.
fn cool(account: &Account, outcome: &Outcome) {
    let until = match outcome {
        // One family of models cools alone, and its jobs learn it from the provider.
        Outcome::Throttled {
            throttle: ThrottleKind::Model,
            ..
        } => return,
        Outcome::Throttled { until, .. } | Outcome::Overloaded { until, .. } => *until,
        Outcome::AuthFailed { .. } | Outcome::OutOfCredit { .. } => {
            return account.cool(Instant::now(), Duration::MAX);
        }
        _ => return,
    };
    let span = until.map_or(SHORT_REST, |until| until.since(clock::now()));
    account.cool(Instant::now(), span);
}

/// The shortest rest that the truth plane gives an account when no time is named.
const SHORT_REST: Duration = Duration::from_secs(2);

/// Tells the truth plane that the provider is about to be called, and waits until that is
/// certain. False when the worker goes away first.
async fn announce(engine: &Engine, attempt: &Attempt) -> bool {
    loop {
        let at = clock::now();
        let mut confirmed = engine
            .replies
            .send_and_confirm(attempt, Report::Started { at });
        let told = tokio::select! {
            biased;
            told = &mut confirmed => told,
            () = attempt.cancel.cancelled() => match attempt.cause() {
                // A report that overtakes the announcement would make it look like a late start.
                Some(Cause::Request) => confirmed.await,
                _ => return false,
            },
        };
        let stopping = attempt.cancel.is_cancelled() || engine.hands.is_draining();
        match told {
            Err(_) => return false,
            Ok(()) if stopping || clock::now().since(at) <= FRESH => return true,
            // The broker was away meanwhile, and the charge would begin too early.
            Ok(()) => {}
        }
    }
}

/// Calls the provider, and streams its text as it comes.
async fn call(engine: &Engine, attempt: &Attempt, dispatch: &Dispatch) -> Outcome {
    let (sink, text) = Sink::new();
    let mut stream = pin!(engine.streams.pump(attempt.job, attempt.number, text));
    let mut streaming = true;
    let outcome = {
        let prompt = Prompt {
            job: attempt.job,
            attempt: attempt.number,
            session: dispatch.session.as_deref(),
            request: &dispatch.request,
            timeout: attempt.timeout,
        };
        let mut run = pin!(attempt.account.provider.run(prompt, &attempt.cancel, &sink));
        loop {
            tokio::select! {
                biased;
                outcome = &mut run => break outcome,
                () = attempt.cancel.cancelled() => {
                    break timeout(STOP_GRACE, run).await.unwrap_or(Outcome::Cancelled);
                }
                () = &mut stream, if streaming => streaming = false,
            }
        }
    };
    *attempt
        .learned
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = sink.take_learned();
    drop(sink);
    if streaming && !engine.streams.are_down() {
        // Too late is no fault: the text is in the result as well.
        drop(timeout(LAST_TEXT, stream).await);
    }
    outcome
}

/// What an outcome amounts to, given why the attempt was stopped, if it was.
fn verdict(outcome: Outcome, cause: Option<Cause>, delivery: Delivery) -> Outcome {
    match (outcome, cause) {
        (Outcome::Cancelled, Some(Cause::Shutdown)) if delivery == Delivery::AtMostOnce => {
            Outcome::failed("worker_lost", "its worker was stopped while the prompt ran")
        }
        (Outcome::Cancelled, Some(Cause::Request | Cause::Shutdown)) => Outcome::Cancelled,
        (Outcome::Cancelled, Some(Cause::Overdue)) => {
            Outcome::failed("timeout", "the provider did not end in time")
        }
        // Nobody asked: to take it as it is would run the job again at once, for ever.
        (Outcome::Cancelled, None) => Outcome::failed(
            "provider_stopped",
            "the provider stopped without being asked to",
        ),
        (outcome, _) => outcome,
    }
}

/// The report's name in the metrics.
pub(crate) fn name(report: &Report) -> &'static str {
    match report {
        Report::Finished { outcome, .. } => outcome.name(),
        Report::Redelivered => "redelivered",
        Report::Returned { .. } => "returned",
        Report::Started { .. } => "started",
        Report::Leased { .. } => "leased",
    }
}

fn span(attempt: &Attempt, dispatch: &Dispatch) -> Span {
    let span = tracing::debug_span!(
        parent: None, "attempt", job = %attempt.job, attempt = attempt.number,
        account = %attempt.account.id, outcome = tracing::field::Empty
    );
    if let Some(traceparent) = &dispatch.traceparent
        && !span.is_disabled()
    {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.clone())]);
        let parent =
            opentelemetry::global::get_text_map_propagator(|context| context.extract(&carrier));
        // Without a layer for traces there is nothing to belong to.
        drop(span.set_parent(parent));
    }
    span
}

#[cfg(test)]
mod tests {
    use sluice_shared::{broker::Broker, config::Config, domain, live::Live};
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        replies::Publisher,
        testing::{absent_broker, account, dispatch, outcome, until},
    };

    fn engine(account: &Arc<Account>, broker: Broker, live: Live) -> (Arc<Engine>, Publisher) {
        let settings = Config::from_toml("").unwrap().worker;
        let accounts = vec![account.clone()];
        let (engine, publisher) = Engine::new("tester".into(), settings, accounts, broker, live);
        (Arc::new(engine), publisher)
    }

    #[test]
    fn why_it_was_stopped_decides_what_it_amounts_to() {
        let mut table = String::new();
        let causes = [
            None,
            Some(Cause::Overdue),
            Some(Cause::Shutdown),
            Some(Cause::Request),
        ];
        for delivery in [Delivery::AtLeastOnce, Delivery::AtMostOnce] {
            for cause in causes {
                let outcome = verdict(Outcome::Cancelled, cause, delivery);
                let (code, _) = outcome.error().unwrap();
                table += &format!("{delivery:?} {cause:?}: {} ({code})\n", outcome.name());
                // A provider that was quicker than the stop has the last word.
                let failed = Outcome::failed("x", "");
                assert_eq!(verdict(failed.clone(), cause, delivery), failed);
            }
        }
        insta::assert_snapshot!(table, @r"
        AtLeastOnce None: failed (provider_stopped)
        AtLeastOnce Some(Overdue): failed (timeout)
        AtLeastOnce Some(Shutdown): cancelled (cancelled)
        AtLeastOnce Some(Request): cancelled (cancelled)
        AtMostOnce None: failed (provider_stopped)
        AtMostOnce Some(Overdue): failed (timeout)
        AtMostOnce Some(Shutdown): failed (worker_lost)
        AtMostOnce Some(Request): cancelled (cancelled)
        ");
    }

    #[test]
    fn an_at_most_once_job_that_began_never_runs_again_after_a_stop() {
        let job = domain::Job {
            state: domain::State::Running,
            attempt: 1,
            failures: 0,
            losses: 0,
            max_attempts: 9,
            delivery: Delivery::AtMostOnce,
            cancel_requested: false,
        };
        for cause in [None, Some(Cause::Overdue), Some(Cause::Shutdown)] {
            let outcome = verdict(Outcome::Cancelled, cause, Delivery::AtMostOnce);
            let end = job.finished(1, &outcome, Time::EPOCH, 0.5).unwrap();
            assert_eq!(end.state, domain::State::Failed, "{cause:?}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_outcome() {
        let attempt = Attempt::new(account(""), &dispatch(Delivery::AtLeastOnce));
        attempt.begin();
        let report = catch_panic(&attempt, async { panic!("the prompt: hunter2") })
            .await
            .unwrap();
        let Report::Finished {
            started_at: Some(_),
            outcome,
            ..
        } = &report
        else {
            panic!("{report:?}")
        };
        assert_eq!(outcome.error().unwrap().0, "panic");
        assert!(!format!("{report:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn at_most_once_calls_no_provider_before_started_is_confirmed() {
        let account = account("");
        let (engine, publisher) = engine(&account, absent_broker().await, Live::memory());
        let mut tasks = JoinSet::new();
        tasks.spawn(publisher.run(CancellationToken::new()));
        let dispatch = dispatch(Delivery::AtMostOnce);
        let attempt = Arc::new(Attempt::new(account, &dispatch));
        let mut running = JoinSet::new();
        running.spawn(run(engine.clone(), attempt.clone(), Box::new(dispatch)));
        until(async || engine.replies.pending() > 0).await;
        attempt.stop(Cause::Shutdown);
        running.join_next().await.unwrap().unwrap();
        assert!(attempt.begun().is_none());
        assert_eq!(
            engine.replies.pending(),
            1,
            "it is unknown whether Started was heard"
        );
    }

    #[tokio::test]
    async fn a_dead_live_plane_holds_no_attempt_up() {
        // It takes connections and never says a word.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}/", listener.local_addr().unwrap()).into();
        let live = Live::connect(&sluice_shared::config::Redis { url }).unwrap();
        let account = account("latency = \"120ms\"");
        let (engine, _publisher) = engine(&account, Broker::in_process(), live);
        let dispatch = dispatch(Delivery::AtLeastOnce);
        let attempt = Attempt::new(account, &dispatch);
        let report = conduct(&engine, &attempt, &dispatch).await.unwrap();
        assert!(matches!(outcome(&report), Outcome::Completed(_)));
        assert!(
            !engine.streams.are_down(),
            "it waited for the live plane to be given up"
        );
    }

    #[test]
    fn its_span_belongs_to_the_trace_of_its_job() {
        use opentelemetry::trace::{TraceContextExt, TracerProvider};
        use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
        use tracing_subscriber::layer::SubscriberExt;

        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let mut dispatch = dispatch(Delivery::AtLeastOnce);
        dispatch.traceparent = Some(format!("00-{trace}-b7ad6b7169203331-01"));
        let span = span(&Attempt::new(account(""), &dispatch), &dispatch);
        let context = span.context();
        assert_eq!(context.span().span_context().trace_id().to_string(), trace);
    }

    /// Ten thousand at once must fit into a small machine.
    #[tokio::test]
    async fn an_attempt_takes_little_memory() {
        let account = account("");
        let (engine, _publisher) = engine(&account, Broker::in_process(), Live::memory());
        let dispatch = dispatch(Delivery::AtLeastOnce);
        let attempt = Arc::new(Attempt::new(account, &dispatch));
        let task = run(engine, attempt, Box::new(dispatch));
        assert!(
            size_of_val(&task) <= 8 * 1024,
            "{} bytes",
            size_of_val(&task)
        );
    }
}
