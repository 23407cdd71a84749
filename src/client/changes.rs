//! State changes of all jobs, as they come.

use reqwest::Method;
use sluice_shared::{api::JobChanges, domain::State};

use super::{Client, ClientError, sse::Events};

/// An open stream of changes.
#[derive(Debug)]
pub struct Changes<'a>(Events<'a>);

impl Client {
    /// Watches all jobs from now on: their coming into these states.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn changes(&self, states: &[State]) -> Result<Changes<'_>, ClientError> {
        let names: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let request = self.request(Method::GET, "api/events");
        let request = request.query(&[("state", names.join(","))]);
        self.events(request, None).await.map(Changes)
    }
}

impl Changes<'_> {
    /// The next changes; `None` when the stream has ended or broken off: open another.
    ///
    /// # Errors
    /// When what comes is nothing that Sluice sends.
    pub async fn next(&mut self) -> Result<Option<JobChanges>, ClientError> {
        let Some(event) = self.0.next().await? else {
            return Ok(None);
        };
        let changes = serde_json::from_slice(&event.data);
        changes.map(Some).map_err(|error| self.0.strange(&error))
    }
}
