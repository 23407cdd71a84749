//! Lanes: which accounts a job may run on, in which order, and when it is bound.

use sluice_shared::{api::NewJob, domain::State};

use crate::harness::{Cluster, Mode, eventually, on_every_mode, prompt};

on_every_mode!(
    a_job_runs_only_where_its_lane_allows,
    a_lane_without_any_account_is_refused_by_name,
    a_waiting_job_is_bound_to_no_account,
    a_busy_lane_delays_only_its_own_jobs,
    higher_priorities_go_first_and_older_before_newer,
    jobs_of_any_lane_use_every_account,
);

const LANES: &str = r#"
[accounts.alpha]
provider = "simulated"
models = ["m1", "m2"]
tags = ["fast", "eu"]
[accounts.beta]
provider = "simulated"
models = ["m2"]
tags = ["eu"]
[accounts.gamma]
provider = "simulated"
tags = ["us"]
"#;

fn lane(account: &str, model: &str, tags: &[&str]) -> NewJob {
    NewJob {
        account: (!account.is_empty()).then(|| account.parse().unwrap()),
        model: (!model.is_empty()).then(|| model.into()),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..prompt("where?")
    }
}

async fn a_job_runs_only_where_its_lane_allows(mode: Mode) {
    let cluster = Cluster::start(mode, LANES).await;
    let cases: [(NewJob, &[&str]); 7] = [
        (lane("beta", "", &[]), &["beta"]),
        (lane("", "m1", &[]), &["alpha", "gamma"]),
        (lane("", "m1", &["eu"]), &["alpha"]),
        (lane("", "", &["eu"]), &["alpha", "beta"]),
        (lane("", "", &["eu", "fast"]), &["alpha"]),
        (lane("", "m2", &["eu"]), &["alpha", "beta"]),
        (lane("gamma", "unheard-of", &["us"]), &["gamma"]),
    ];
    for (job, accounts) in cases {
        let ids = cluster.submit_many(&vec![job.clone(); 8]).await;
        let mut used: Vec<String> = Vec::new();
        for job in cluster.wait_all(&ids).await {
            used.push(job.account.unwrap().to_string());
        }
        used.sort();
        used.dedup();
        assert_eq!(used, accounts, "{job:?}");
    }
}

async fn a_lane_without_any_account_is_refused_by_name(mode: Mode) {
    let cluster = Cluster::start(mode, LANES).await;
    let cases = [
        (lane("delta", "", &[]), "delta"),
        (lane("", "", &["asia"]), "asia"),
        (lane("", "", &["us", "eu"]), "us"),
        (lane("beta", "m1", &[]), "m1"),
        (lane("alpha", "", &["us"]), "us"),
    ];
    for (job, named) in cases {
        let problem = cluster
            .api()
            .post("/api/jobs", &job)
            .await
            .refused(422, "no_such_lane");
        assert!(problem.detail.contains(named), "{named}: {problem:?}");
    }
    assert!(cluster.api().list("").await.jobs.is_empty());
}

const ONE_AT_A_TIME: &str = r#"
[accounts.narrow]
provider = "simulated"
latency = "10m"
max_concurrency = 1
[accounts.wide]
provider = "simulated"
"#;

async fn a_waiting_job_is_bound_to_no_account(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_AT_A_TIME).await;
    let ids = cluster.submit_many(&vec![lane("narrow", "", &[]); 5]).await;
    let states = eventually("the account is at work", async || {
        let mut jobs = Vec::new();
        for id in &ids {
            jobs.push(cluster.job(*id).await);
        }
        jobs.iter()
            .any(|job| job.state.is_in_flight())
            .then_some(jobs)
    })
    .await;
    let bound = states.iter().filter(|job| job.account.is_some()).count();
    assert_eq!(bound, 1, "{states:?}");
    for job in states.iter().filter(|job| job.state == State::Queued) {
        assert_eq!((job.attempt, job.dispatched_at), (0, None));
    }
    assert_eq!(cluster.api().account("narrow").await.in_flight, 1);
    end(&cluster, &ids).await;
    assert_eq!(cluster.api().account("narrow").await.in_flight, 0);
}

async fn end(cluster: &Cluster, ids: &[sluice_shared::domain::JobId]) {
    // The ones that wait first, or each would take the place of the one before.
    for id in ids.iter().rev() {
        cluster.api().cancel(*id).await;
    }
    cluster.wait_all(ids).await;
}

async fn a_busy_lane_delays_only_its_own_jobs(mode: Mode) {
    let cluster = Cluster::start(mode, ONE_AT_A_TIME).await;
    let urgent = NewJob {
        priority: Some(100),
        ..lane("narrow", "", &[])
    };
    let busy = cluster.submit_many(&vec![urgent; 20]).await;
    let others = cluster.submit_many(&vec![lane("wide", "", &[]); 20]).await;
    for job in cluster.wait_all(&others).await {
        assert_eq!(job.state, State::Succeeded);
    }
    end(&cluster, &busy).await;
}

async fn higher_priorities_go_first_and_older_before_newer(mode: Mode) {
    let config = "[accounts.a]\nprovider = \"simulated\"\nlatency = \"25ms\"\nmax_concurrency = 1";
    let cluster = Cluster::start(mode, config).await;
    // While the account rests, the backlog is laid out.
    cluster.api().pause("a").await;
    let priorities = [0, 5, -100, 5, 100, 0, -1, 99];
    let mut ids = Vec::new();
    for priority in priorities {
        ids.push(
            cluster
                .submit(&NewJob {
                    priority: Some(priority),
                    ..prompt("x")
                })
                .await,
        );
    }
    cluster.api().resume("a").await;
    let mut ran: Vec<_> = cluster.wait_all(&ids).await;
    ran.sort_by_key(|job| job.started_at);
    let mut asked: Vec<(i16, usize)> = priorities.into_iter().zip(0..).collect();
    asked.sort_by_key(|(priority, age)| (-priority, *age));
    let expected: Vec<_> = asked.into_iter().map(|(_, age)| ids[age]).collect();
    let order: Vec<_> = ran.iter().map(|job| job.id).collect();
    assert_eq!(order, expected, "{ran:#?}");
}

async fn jobs_of_any_lane_use_every_account(mode: Mode) {
    let cluster = Cluster::start(mode, LANES).await;
    let ids = cluster.submit_many(&vec![prompt("anywhere"); 300]).await;
    let jobs = cluster.wait_all(&ids).await;
    for account in ["alpha", "beta", "gamma"] {
        let share = jobs
            .iter()
            .filter(|job| job.account.as_ref().unwrap().as_str() == account);
        let share = share.count();
        assert!(
            (50..200).contains(&share),
            "{account} had {share} of 300 in turn"
        );
    }
}
