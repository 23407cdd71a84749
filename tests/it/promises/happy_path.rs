//! A prompt goes in, an account runs it, the result comes back.

use std::time::{Duration, Instant};

use serde_json::json;
use sluice_shared::{
    api::{NewJob, Receipt},
    clock,
    domain::{Message, Role, State},
};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    a_prompt_comes_back_answered,
    a_conversation_runs_as_it_was_given,
    a_receipt_does_not_wait_for_the_job,
    an_array_comes_back_in_its_order,
    an_array_is_accepted_whole_or_not_at_all,
    a_long_poll_answers_as_soon_as_the_job_ends,
    a_long_poll_ends_in_time,
    text_in_any_script_comes_back_as_it_was,
);

async fn a_prompt_comes_back_answered(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let before = clock::now();

    let answer = cluster.apis()[0]
        .post("/api/jobs", &prompt("Say hello, please."))
        .await;
    let location = answer.header("location").unwrap().to_owned();
    let receipt: Receipt = answer.is(202);
    assert_eq!(
        (&receipt.url, location),
        (&format!("/api/jobs/{}", receipt.id), receipt.url.clone())
    );
    assert_eq!(receipt.state, State::Queued);

    let job = cluster.wait(receipt.id).await;
    assert_eq!(
        (job.id, job.state, job.error.as_ref()),
        (receipt.id, State::Succeeded, None)
    );
    let result = job.result.as_ref().unwrap();
    assert_eq!(result.text, "Say hello, please.");
    assert_eq!(
        (result.usage.input_tokens, result.usage.output_tokens),
        (3, 3)
    );
    assert_eq!((job.client.as_str(), job.lane.as_str()), ("admin", "any"));
    assert_eq!(
        (job.attempt, job.failures, job.cancel_requested),
        (1, 0, false)
    );
    let request = job.request.as_ref().unwrap();
    assert_eq!(
        request["messages"][0],
        json!({ "role": "user", "content": "Say hello, please." })
    );

    let [attempt] = job.attempts.as_deref().unwrap() else {
        panic!("one attempt: {job:?}")
    };
    assert_eq!((attempt.number, attempt.outcome.as_str()), (1, "completed"));
    assert_eq!(Some(&attempt.account), job.account.as_ref());
    assert_eq!(attempt.usage, Some(result.usage));
    assert!(
        attempt
            .worker
            .as_ref()
            .is_some_and(|worker| !worker.is_empty())
    );
    let course = [
        Some(before),
        Some(job.created_at),
        Some(attempt.dispatched_at),
        attempt.started_at,
        Some(attempt.finished_at),
        job.finished_at,
        Some(clock::now()),
    ];
    assert!(
        course.iter().all(Option::is_some) && course.is_sorted(),
        "{course:?}"
    );
}

async fn a_conversation_runs_as_it_was_given(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let say = |role, content: &str| Message {
        role,
        content: content.into(),
    };
    let turns = vec![
        say(Role::User, "One."),
        say(Role::Assistant, "Two."),
        say(Role::User, "Three."),
    ];
    let job = NewJob {
        messages: Some(turns.clone()),
        system: Some("Count.".into()),
        model: Some("any-model".into()),
        session: Some("a session".into()),
        ..NewJob::default()
    };
    let job = cluster.run(&job).await;
    let request = job.request.unwrap();
    assert_eq!(request["messages"], serde_json::to_value(&turns).unwrap());
    assert_eq!(request["system"], "Count.");
    assert_eq!(
        (job.model.as_deref(), job.session.as_deref()),
        (Some("any-model"), Some("a session"))
    );
    let result = job.result.unwrap();
    assert_eq!(result.model.as_deref(), Some("any-model"));
    assert_eq!(result.text, "User: One.\n\nAssistant: Two.\n\nUser: Three.");
}

async fn a_receipt_does_not_wait_for_the_job(mode: Mode) {
    let slow = "[accounts.slow]\nprovider = \"simulated\"\nlatency = \"10m\"";
    let cluster = Cluster::start(mode, slow).await;
    let before = Instant::now();
    let id = cluster.submit(&prompt("take your time")).await;
    assert!(before.elapsed() < Duration::from_secs(5));
    let job = cluster
        .until(id, "is on its way", |job| job.state.is_in_flight())
        .await;
    assert_eq!((job.account.unwrap().as_str(), job.result), ("slow", None));
    cluster.api().cancel(id).await;
    cluster.wait(id).await;
}

async fn an_array_comes_back_in_its_order(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let jobs: Vec<NewJob> = (0..1000)
        .map(|number| prompt(format!("number {number}")))
        .collect();
    let ids = cluster.submit_many(&jobs).await;
    assert_eq!(ids.len(), jobs.len());
    assert!(ids.is_sorted(), "ids sort as their jobs were given");
    for (number, job) in cluster.wait_all(&ids).await.into_iter().enumerate() {
        assert_eq!(job.result.unwrap().text, format!("number {number}"));
    }
    assert_eq!(cluster.api().list_all("limit=500").await.len(), jobs.len());
}

async fn an_array_is_accepted_whole_or_not_at_all(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let api = cluster.api();
    let bad = [
        prompt("a"),
        NewJob {
            priority: Some(101),
            ..prompt("b")
        },
        prompt("c"),
    ];
    let problem = api.post("/api/jobs", &bad).await.problem();
    assert_eq!(
        (problem.status, problem.errors[0].field.as_str()),
        (422, "[1].priority")
    );
    let nobodys = [
        prompt("a"),
        NewJob {
            model: None,
            tags: vec!["no".into()],
            ..prompt("b")
        },
    ];
    assert_eq!(api.post("/api/jobs", &nobodys).await.problem().status, 422);
    let too_many = vec![prompt("x"); 1001];
    let problem = api.post("/api/jobs", &too_many).await.problem();
    assert!((400..500).contains(&problem.status), "{problem:?}");
    assert_eq!(
        api.post("/api/jobs", &json!([])).await.problem().status,
        422
    );
    assert!(cluster.api().list_all("limit=100").await.is_empty());
}

/// Wake-ups between processes bring an answer in some milliseconds; the poll behind them comes
/// twice a second. The median tells them apart, however busy the machine is at times.
async fn a_long_poll_answers_as_soon_as_the_job_ends(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nlatency = \"300ms\"";
    let cluster = Cluster::start(mode, config).await;
    let mut late = Vec::new();
    for round in 0..15 {
        let id = cluster.submit(&prompt(format!("round {round}"))).await;
        let job = cluster.other_api(id).poll(id, "30s").await;
        assert_eq!(job.state, State::Succeeded);
        late.push(clock::now().since(job.finished_at.unwrap()));
    }
    late.sort_unstable();
    assert!(
        late[late.len() / 2] < Duration::from_millis(150),
        "{late:?}"
    );
}

async fn a_long_poll_ends_in_time(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let id = cluster
        .submit(&NewJob {
            delay: Some("1h".parse().unwrap()),
            ..prompt("later")
        })
        .await;
    let before = Instant::now();
    let job = cluster.other_api(id).poll(id, "700ms").await;
    assert_eq!(job.state, State::Queued);
    let took = before.elapsed();
    assert!(
        took >= Duration::from_millis(700) && took < Duration::from_secs(10),
        "{took:?}"
    );
    cluster
        .api()
        .get(&format!("/api/jobs/{id}?wait=61s"))
        .await
        .problem();
    let done = cluster.run(&prompt("now")).await;
    let before = Instant::now();
    cluster.api().poll(done.id, "30s").await;
    assert!(before.elapsed() < Duration::from_secs(10));
}

async fn text_in_any_script_comes_back_as_it_was(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let texts = [
        "Grüße, 世界! 🎉 שלום \u{202e}abc\u{202c}",
        " leading and trailing \n\n",
        "tab\tbell\u{7}escape\u{1b}[31m",
        "quotes ' \" \\ $1 {} %s ${HOME} `id`",
        &"long ".repeat(100_000),
    ];
    let jobs: Vec<NewJob> = texts.iter().map(|text| prompt(*text)).collect();
    let ids = cluster.submit_many(&jobs).await;
    for (text, job) in texts.iter().zip(cluster.wait_all(&ids).await) {
        assert!(
            job.result.is_some_and(|result| result.text == *text),
            "{:.40}",
            text
        );
    }
}
