//! The API over HTTP, typed: one method a route.
//!
//! The key comes from `SLUICE_API_KEY`, else from the first admin key in the data folder.
//! Methods make one request each and say what happened; [`Client::submit`] and [`Client::wait`]
//! also bear a server that goes away for a while, since both are safe to repeat.

mod changes;
mod error;
mod query;
mod wire;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, header::CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use sluice_shared::{
    api::{
        AccountChange, AccountList, AccountTest, AccountView, CreatedKey, Forecast, Health,
        JobPage, JobView, KeyChange, KeyList, KeyView, NewAccount, NewJob, NewKey, NewRouting,
        Problem, Receipt, Receipts, RoutingView,
    },
    domain::{AccountId, JobId},
};
use url::Url;
use uuid::Uuid;

pub use changes::Changes;
pub use error::{ClientError, KeySource};
pub use query::{ForecastQuery, JobQuery};

use self::wire::{excerpt, is_loopback, parse_url, quoted, retry_after, root_cause};
use crate::home::Home;

/// Where the API is unless someone says otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:3000";

/// How long a request may take, besides what it asks the server to wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one long poll asks the server to wait.
const POLL: Duration = Duration::from_secs(30);
/// Tries of a submit that may have been lost on its way.
const SUBMIT_TRIES: u32 = 6;

/// A connection to one API.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
    key: Option<SecretString>,
    key_source: KeySource,
}

impl Client {
    /// A client of the API at `url`, with the key of this environment.
    ///
    /// # Errors
    /// When the URL or the key cannot be used.
    pub fn from_environment(url: &str, home: &Home) -> Result<Self, ClientError> {
        if let Ok(key) = std::env::var("SLUICE_API_KEY")
            && !key.trim().is_empty()
        {
            return Self::new(url, Some(key.trim().into()), KeySource::Variable);
        }
        let file = home.admin_key_file();
        match home.admin_key() {
            Ok(Some(key)) => Self::new(url, Some(key), KeySource::File(file)),
            Ok(None) => Self::new(url, None, KeySource::None(file)),
            Err(error) => Err(ClientError::BadKey(error.to_string())),
        }
    }

    /// A client of the API at `url`.
    ///
    /// # Errors
    /// When the URL or the key cannot be used.
    pub fn new(
        url: &str,
        key: Option<SecretString>,
        key_source: KeySource,
    ) -> Result<Self, ClientError> {
        let url = parse_url(url)?;
        if let Some(key) = &key
            && !key
                .expose_secret()
                .bytes()
                .all(|byte| byte.is_ascii_graphic())
        {
            return Err(ClientError::BadKey(format!(
                "the API key from {key_source} holds characters that no key has"
            )));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Duration::from_secs(30));
        if url.scheme() == "http" {
            // Without TLS there is no need of the system's certificates, which a small container
            // may not even have.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&url) {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| ClientError::Setup(error.to_string()))?;
        Ok(Self {
            http,
            url,
            key,
            key_source,
        })
    }

    /// Where the API is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Submits one job. `key` makes the submit safe to repeat; when there is none, one is made
    /// up, so that a connection that breaks at a bad moment costs neither a job nor a duplicate.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn submit(&self, job: &NewJob, key: Option<&str>) -> Result<Receipt, ClientError> {
        let body =
            serde_json::to_vec(job).map_err(|error| ClientError::Setup(error.to_string()))?;
        let key = key.map_or_else(|| format!("cli-{}", Uuid::now_v7()), str::to_owned);
        let mut tries = 1;
        loop {
            match self.post_jobs(body.clone(), &key).await {
                Err(error)
                    if error.is_transient()
                        && !error.is_refused_connection()
                        && tries < SUBMIT_TRIES =>
                {
                    tokio::time::sleep(error.pause(tries)).await;
                    tries += 1;
                }
                receipt => return receipt,
            }
        }
    }

    /// Submits a JSON array of jobs as one, once.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn submit_array(&self, body: Vec<u8>, key: &str) -> Result<Receipts, ClientError> {
        self.post_jobs(body, key).await
    }

    async fn post_jobs<T: DeserializeOwned>(
        &self,
        body: Vec<u8>,
        key: &str,
    ) -> Result<T, ClientError> {
        let request = self
            .request(Method::POST, "api/jobs")
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", quoted(key)?)
            .body(body);
        self.answer(request).await
    }

    /// A job. With `wait` the server answers when the job has ended, or after that time.
    ///
    /// # Errors
    /// When there is no such job, or the API cannot be asked.
    pub async fn job(&self, id: JobId, wait: Option<Duration>) -> Result<JobView, ClientError> {
        let mut request = self.request(Method::GET, &format!("api/jobs/{id}"));
        if let Some(wait) = wait {
            request = request
                .query(&[("wait", humantime::format_duration(wait).to_string())])
                .timeout(wait + REQUEST_TIMEOUT);
        }
        self.answer(request).await
    }

    /// A job that has ended: waits for its end, however long that takes and whatever the
    /// connection does meanwhile. `notice` hears of trouble, once for each trouble.
    ///
    /// # Errors
    /// When there is no such job, or the API says no.
    pub async fn wait(
        &self,
        id: JobId,
        mut notice: impl FnMut(&ClientError),
    ) -> Result<JobView, ClientError> {
        let mut failures = 0;
        loop {
            match self.job(id, Some(POLL)).await {
                Ok(job) if job.state.is_terminal() => return Ok(job),
                Ok(_) => failures = 0,
                Err(error) if error.is_transient() => {
                    failures += 1;
                    if failures == 1 {
                        notice(&error);
                    }
                    tokio::time::sleep(error.pause(failures)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A page of jobs.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn jobs(&self, query: &JobQuery) -> Result<JobPage, ClientError> {
        self.answer(self.request(Method::GET, "api/jobs").query(&query.pairs()))
            .await
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// When there is no such job, it has ended, or the API cannot be asked.
    pub async fn cancel(&self, id: JobId) -> Result<JobView, ClientError> {
        self.answer(self.request(Method::POST, &format!("api/jobs/{id}/cancel")))
            .await
    }

    /// Submits an ended job again, as a new one linked to it.
    ///
    /// # Errors
    /// When there is no such job, it has not ended, or the API cannot be asked.
    pub async fn retry(&self, id: JobId) -> Result<Receipt, ClientError> {
        self.answer(self.request(Method::POST, &format!("api/jobs/{id}/retry")))
            .await
    }

    /// What would become of a batch.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn forecast(&self, query: &ForecastQuery) -> Result<Forecast, ClientError> {
        let request = self.request(Method::GET, "api/forecast");
        self.answer(request.query(&query.pairs())).await
    }

    /// Every account.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn accounts(&self) -> Result<AccountList, ClientError> {
        self.answer(self.request(Method::GET, "api/accounts")).await
    }

    /// Takes no new jobs for the account until it is resumed.
    ///
    /// # Errors
    /// When there is no such account, or the API cannot be asked.
    pub async fn pause(&self, id: &AccountId) -> Result<AccountView, ClientError> {
        self.answer(self.request(Method::POST, &format!("api/accounts/{id}/pause")))
            .await
    }

    /// Puts an account back to work: ends a pause, a refused credential, an empty purse.
    ///
    /// # Errors
    /// When there is no such account, or the API cannot be asked.
    pub async fn resume(&self, id: &AccountId) -> Result<AccountView, ClientError> {
        self.answer(self.request(Method::POST, &format!("api/accounts/{id}/resume")))
            .await
    }

    /// How accounts are chosen.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn routing(&self) -> Result<RoutingView, ClientError> {
        self.answer(self.request(Method::GET, "api/routing")).await
    }

    /// Chooses how accounts are chosen, in place of what was chosen before.
    ///
    /// # Errors
    /// When it cannot be so, or the API cannot be asked.
    pub async fn set_routing(&self, chosen: &NewRouting) -> Result<RoutingView, ClientError> {
        self.answer(self.request(Method::PUT, "api/routing").json(chosen))
            .await
    }

    /// An account.
    ///
    /// # Errors
    /// When there is no such account, or the API cannot be asked.
    pub async fn account(&self, id: &AccountId) -> Result<AccountView, ClientError> {
        self.answer(self.request(Method::GET, &format!("api/accounts/{id}")))
            .await
    }

    /// Makes an account.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn add_account(&self, account: &NewAccount) -> Result<AccountView, ClientError> {
        self.answer(self.request(Method::POST, "api/accounts").json(account))
            .await
    }

    /// Changes an account that was made by the API.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn change_account(
        &self,
        id: &AccountId,
        change: &AccountChange,
    ) -> Result<AccountView, ClientError> {
        let request = self.request(Method::PATCH, &format!("api/accounts/{id}"));
        self.answer(request.json(change)).await
    }

    /// Removes an account that was made by the API.
    ///
    /// # Errors
    /// When there is no such account, it is not empty, or the API cannot be asked.
    pub async fn remove_account(&self, id: &AccountId) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("api/accounts/{id}")))
            .await
    }

    /// Takes no new jobs for the account, and waits that long until it is empty.
    ///
    /// # Errors
    /// When there is no such account, or the API cannot be asked.
    pub async fn drain(
        &self,
        id: &AccountId,
        wait: Option<Duration>,
    ) -> Result<AccountView, ClientError> {
        let mut request = self.request(Method::POST, &format!("api/accounts/{id}/drain"));
        if let Some(wait) = wait {
            request = request
                .query(&[("wait", humantime::format_duration(wait).to_string())])
                .timeout(wait + REQUEST_TIMEOUT);
        }
        self.answer(request).await
    }

    /// Makes one tiny real call on the account.
    ///
    /// # Errors
    /// When there is no such account, no worker serves it, or the API cannot be asked.
    pub async fn try_account(&self, id: &AccountId) -> Result<AccountTest, ClientError> {
        self.answer(self.request(Method::POST, &format!("api/accounts/{id}/test")))
            .await
    }

    /// Every API key, without the secrets.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn keys(&self) -> Result<KeyList, ClientError> {
        self.answer(self.request(Method::GET, "api/keys")).await
    }

    /// Makes an API key.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn create_key(&self, key: &NewKey) -> Result<CreatedKey, ClientError> {
        self.answer(self.request(Method::POST, "api/keys").json(key))
            .await
    }

    /// Changes the weight and quota of an API key's client.
    ///
    /// # Errors
    /// When there is no such key, or the API says no or cannot be asked.
    pub async fn change_key(&self, id: Uuid, change: &KeyChange) -> Result<KeyView, ClientError> {
        let request = self.request(Method::PATCH, &format!("api/keys/{id}"));
        self.answer(request.json(change)).await
    }

    /// Revokes an API key.
    ///
    /// # Errors
    /// When there is no such key, or the API cannot be asked.
    pub async fn revoke_key(&self, id: Uuid) -> Result<(), ClientError> {
        self.done(self.request(Method::DELETE, &format!("api/keys/{id}")))
            .await
    }

    /// How the whole is doing. A server that is down says so with a 503, which is an answer too.
    /// The second value is the server's clock.
    ///
    /// # Errors
    /// When the API cannot be asked.
    pub async fn health(&self) -> Result<(Health, Option<String>), ClientError> {
        let request = self
            .request(Method::GET, "health")
            .timeout(Duration::from_secs(10));
        let response = self.send(request).await?;
        let date = response
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| date.to_str().ok())
            .map(str::to_owned);
        let status = response.status();
        if status.is_success() || status == StatusCode::SERVICE_UNAVAILABLE {
            Ok((self.body(response).await?, date))
        } else {
            Err(self.refusal(response).await)
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/{path}", self.url.path().trim_end_matches('/')));
        let request = self.http.request(method, url).timeout(REQUEST_TIMEOUT);
        match &self.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        request.send().await.map_err(|error| self.lost(&error))
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        if response.status().is_success() {
            self.body(response).await
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// For an answer without a body.
    async fn done(&self, request: RequestBuilder) -> Result<(), ClientError> {
        let response = self.send(request).await?;
        if response.status().is_success() {
            Ok(())
        } else {
            Err(self.refusal(response).await)
        }
    }

    async fn body<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let status = response.status().as_u16();
        let bytes = response.bytes().await.map_err(|error| self.lost(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::NotSluice {
            url: self.url.clone(),
            status,
            excerpt: format!("{error}: {}", excerpt(&bytes)),
        })
    }

    async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let bytes = match response.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => return self.lost(&error),
        };
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => ClientError::Refused {
                problem: Box::new(problem),
                retry_after,
                key_source: self.key_source.clone(),
            },
            Err(_) => ClientError::NotSluice {
                url: self.url.clone(),
                status: status.as_u16(),
                excerpt: excerpt(&bytes),
            },
        }
    }

    fn lost(&self, error: &reqwest::Error) -> ClientError {
        let cause = root_cause(error);
        if error.is_connect() {
            ClientError::NoAnswer {
                url: self.url.clone(),
                cause,
            }
        } else {
            ClientError::Lost {
                url: self.url.clone(),
                cause,
            }
        }
    }
}
