//! The list of jobs: its filters and its pages.

use std::collections::BTreeMap;

use sluice_shared::{
    api::{NewJob, Scope},
    clock,
    domain::JobId,
};

use crate::harness::{Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    the_list_shows_what_its_filters_let_through,
    notes_are_found_whatever_their_names,
    pages_hold_every_job_once,
    a_query_that_makes_no_sense_is_refused,
);

const CONFIG: &str = r#"
[accounts.one]
provider = "simulated"
models = ["m1"]
[accounts.two]
provider = "simulated"
models = ["m2"]
faults = { rejected = 1.0 }
"#;

fn on(model: &str, notes: &[(&str, &str)]) -> NewJob {
    let note = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let metadata: BTreeMap<String, String> = notes.iter().map(note).collect();
    NewJob {
        model: Some(model.into()),
        metadata,
        ..prompt("x")
    }
}

async fn the_list_shows_what_its_filters_let_through(mode: Mode) {
    let cluster = Cluster::start(mode, CONFIG).await;
    let a = cluster.submit(&on("m1", &[("team", "red")])).await;
    let b = cluster
        .submit(&on("m2", &[("team", "blue"), ("run", "7")]))
        .await;
    cluster.wait_all(&[a, b]).await;
    let between = clock::now();
    let (_, other) = cluster.api().new_key("other", &[Scope::Submit]).await;
    let later = NewJob {
        delay: Some("1h".parse().unwrap()),
        ..on("m1", &[("team", "blue")])
    };
    let c = other.submit(&later).await.id;
    assert!(cluster.job(c).await.created_at >= between);

    let cases: [(&str, &[JobId]); 17] = [
        ("", &[c, b, a]),
        ("state=queued", &[c]),
        ("state=succeeded", &[a]),
        ("state=succeeded,failed", &[b, a]),
        ("state=running", &[]),
        ("account=one", &[a]),
        ("account=two", &[b]),
        ("client=other", &[c]),
        ("client=admin", &[b, a]),
        ("model=m1", &[c, a]),
        ("model=none", &[]),
        ("metadata.team=blue", &[c, b]),
        ("metadata.team=blue&metadata.run=7", &[b]),
        ("metadata.team=green", &[]),
        ("state=failed&model=m2&metadata.run=7", &[b]),
        (&format!("from={between}"), &[c]),
        (&format!("to={between}"), &[b, a]),
    ];
    for (query, expected) in cases {
        for api in cluster.apis() {
            let found: Vec<JobId> = api
                .list(query)
                .await
                .jobs
                .iter()
                .map(|job| job.id)
                .collect();
            assert_eq!(found, expected, "{query}");
        }
    }
    let page = cluster.api().list("").await;
    assert!(page.next_cursor.is_none());
    assert!(
        page.jobs
            .iter()
            .all(|job| job.request.is_none() && job.attempts.is_none())
    );
}

/// The two databases read paths into JSON differently; a note's name is never such a path.
async fn notes_are_found_whatever_their_names(mode: Mode) {
    let cluster = Cluster::start(mode, CONFIG).await;
    for name in [
        "a.b", "$", "$.team", "[0]", "0", "a\"b", "a'b", "größe", "a b", "a%b", "{x}",
    ] {
        let id = cluster.submit(&on("m1", &[(name, "found")])).await;
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair(&format!("metadata.{name}"), "found")
            .finish();
        let jobs = cluster.api().list(&query).await.jobs;
        let found: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        assert_eq!(found, [id], "{name}");
        assert_eq!(jobs[0].metadata[name], "found");
    }
}

async fn pages_hold_every_job_once(mode: Mode) {
    let cluster = Cluster::start(mode, CONFIG).await;
    let mut ids = cluster.submit_many(&vec![on("m1", &[]); 23]).await;
    let first = cluster.api().list("limit=10").await;
    assert_eq!(first.jobs.len(), 10);
    // What is submitted meanwhile is newer than the page, and moves nothing.
    let newer = cluster.submit(&on("m1", &[])).await;
    let second = first.next_cursor.unwrap();
    let second = cluster
        .api()
        .list(&format!("limit=10&cursor={second}"))
        .await;
    let third = second.next_cursor.clone().unwrap();
    let third = cluster
        .api()
        .list(&format!("limit=10&cursor={third}"))
        .await;
    assert_eq!((third.jobs.len(), &third.next_cursor), (3, &None));
    let pages = [first.jobs, second.jobs, third.jobs].concat();
    ids.reverse();
    assert_eq!(pages.iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    assert_eq!(cluster.api().list("limit=1").await.jobs[0].id, newer);
    assert_eq!(cluster.api().list_all("limit=7&model=m1").await.len(), 24);
}

async fn a_query_that_makes_no_sense_is_refused(mode: Mode) {
    let cluster = Cluster::start(mode, CONFIG).await;
    for query in [
        "cursor=rubbish",
        "cursor=%00",
        "limit=0",
        "limit=-1",
        "limit=many",
        "limit=501",
        "state=sleeping",
        "state=queued,",
        "account=Not An Id",
        "from=yesterday",
        "to=12",
        "colour=red",
        "metadata=x",
        "limit=1&limit=2",
    ] {
        let problem = cluster
            .api()
            .get(&format!("/api/jobs?{query}"))
            .await
            .problem();
        assert!((400..500).contains(&problem.status), "{query}: {problem:?}");
    }
    for path in [
        "not-an-id",
        "123",
        "0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d4g",
        "%00",
        "%ff",
        "..%2f",
    ] {
        let problem = cluster
            .api()
            .get(&format!("/api/jobs/{path}"))
            .await
            .problem();
        assert!((400..=404).contains(&problem.status), "{path}: {problem:?}");
    }
}
