//! A client of one API process, as plain as a user's own.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde::{Serialize, de::DeserializeOwned};
use sluice_shared::{
    api::{
        AccountView, CreatedKey, JobPage, JobView, NewJob, NewKey, Problem, Receipt, Receipts,
        Scope,
    },
    domain::JobId,
};

use super::http;

/// How long a request may take, besides what it asks the server to wait.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client with a key.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Where the API is, without a slash at the end.
    pub(crate) url: String,
    /// Its key; empty for none.
    pub(crate) key: String,
    http: reqwest::Client,
}

/// What came back, whatever it was.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Client {
    pub(crate) fn new(url: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            key: key.into(),
            http: http(),
        }
    }

    /// The same API with another key.
    pub(crate) fn with_key(&self, key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            ..self.clone()
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .timeout(TIMEOUT);
        if self.key.is_empty() {
            request
        } else {
            request.bearer_auth(&self.key)
        }
    }

    /// The answer to a request; an error when there is none.
    pub(crate) async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer {
            status,
            headers,
            body: response.text().await?,
        })
    }

    /// The answer to a request, which there must be.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request)
            .await
            .unwrap_or_else(|error| panic!("no answer: {error:?}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// A post without a body.
    pub(crate) async fn act(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, path)).await
    }

    pub(crate) async fn submit(&self, job: &NewJob) -> Receipt {
        self.post("/api/jobs", job).await.is(202)
    }

    pub(crate) async fn submit_many(&self, jobs: &[NewJob]) -> Vec<Receipt> {
        self.post("/api/jobs", &jobs).await.is::<Receipts>(202).jobs
    }

    pub(crate) async fn job(&self, id: JobId) -> JobView {
        self.get(&format!("/api/jobs/{id}")).await.is(200)
    }

    /// The job when it has ended, or as it is after `wait`.
    pub(crate) async fn poll(&self, id: JobId, wait: &str) -> JobView {
        self.get(&format!("/api/jobs/{id}?wait={wait}"))
            .await
            .is(200)
    }

    pub(crate) async fn cancel(&self, id: JobId) -> Answer {
        self.act(&format!("/api/jobs/{id}/cancel")).await
    }

    pub(crate) async fn retry(&self, id: JobId) -> Answer {
        self.act(&format!("/api/jobs/{id}/retry")).await
    }

    /// A page of the list; `query` is what follows the question mark.
    pub(crate) async fn list(&self, query: &str) -> JobPage {
        self.get(&format!("/api/jobs?{query}")).await.is(200)
    }

    /// Every job that the filter `query` lets through, newest first, page by page.
    pub(crate) async fn list_all(&self, query: &str) -> Vec<JobView> {
        let mut page = self.list(query).await;
        let mut jobs = page.jobs;
        while let Some(cursor) = page.next_cursor {
            page = self.list(&format!("{query}&cursor={cursor}")).await;
            jobs.append(&mut page.jobs);
        }
        jobs
    }

    pub(crate) async fn accounts(&self) -> Vec<AccountView> {
        let list: sluice_shared::api::AccountList = self.get("/api/accounts").await.is(200);
        list.accounts
    }

    pub(crate) async fn account(&self, id: &str) -> AccountView {
        let accounts = self.accounts().await;
        accounts
            .into_iter()
            .find(|account| account.id.as_str() == id)
            .expect("the account is listed")
    }

    pub(crate) async fn pause(&self, account: &str) -> AccountView {
        self.act(&format!("/api/accounts/{account}/pause"))
            .await
            .is(200)
    }

    pub(crate) async fn resume(&self, account: &str) -> AccountView {
        self.act(&format!("/api/accounts/{account}/resume"))
            .await
            .is(200)
    }

    /// Makes a key and gives it with a client that has it.
    pub(crate) async fn new_key(&self, name: &str, scopes: &[Scope]) -> (CreatedKey, Client) {
        let wish = NewKey {
            name: name.into(),
            scopes: scopes.to_vec(),
            weight: None,
            quota: None,
        };
        let created: CreatedKey = self.post("/api/keys", &wish).await.is(201);
        let client = self.with_key(&created.key);
        (created, client)
    }

    /// The value of a metric, summed over its labels; 0 when it has not been counted yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status, 200);
        let values = answer.body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }
}

impl Answer {
    /// The body, of an answer that must have this status.
    pub(crate) fn is<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(self.status, status, "{}", self.body);
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the answer: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The problem document of a refusal, which must be a whole one.
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem: Problem = self.is(self.status);
        assert_eq!(problem.status, self.status);
        let words = [
            &problem.r#type,
            &problem.title,
            &problem.detail,
            &problem.code,
        ];
        assert!(words.iter().all(|text| !text.is_empty()), "{problem:?}");
        problem
    }

    /// The problem document of a refusal with this status and code.
    pub(crate) fn refused(&self, status: u16, code: &str) -> Problem {
        let problem = self.problem();
        assert_eq!(
            (self.status, problem.code.as_str()),
            (status, code),
            "{problem:?}"
        );
        problem
    }
}

/// A job that asks for nothing but this prompt.
pub(crate) fn prompt(text: impl Into<String>) -> NewJob {
    NewJob {
        prompt: Some(text.into()),
        ..NewJob::default()
    }
}
