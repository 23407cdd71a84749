//! Webhooks in the truth plane. **The promise.** An event is written in the transaction that
//! brings it about: none is sent of what did not happen, and none is lost of what did.
//!
//! Who does not use webhooks does not pay for them: a job's own is a column that is null, and
//! whether anyone has registered an endpoint is a look into an index that is empty, within the
//! statement that locks the jobs. Only when there is someone to tell are more statements run.

mod deliveries;
mod endpoints;
mod history;

use sea_orm::{ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, Statement};
use serde_json::json;
use sluice_shared::{
    api::{DeliveryState, JobWebhook},
    domain::{EventKind, JobId, State, Time},
};
use url::Url;
use uuid::Uuid;

pub use self::{
    deliveries::{ClaimedDelivery, Receiver, Then, Tried},
    endpoints::{EndpointRow, SealedSecret},
    history::{DeliveryFilter, DeliveryRow},
};
use super::{
    EndedBatch, NewRow, StoreError,
    bulk::{Column, Rows},
    entity::webhook_endpoint,
    parse_json, to_json,
};

/// Whether anyone has an endpoint: an expression, for a statement that is run anyway.
pub(super) const HAS_ENDPOINTS: &str =
    "EXISTS (SELECT 1 FROM webhook_endpoints WHERE state <> 'removed')";

/// What has happened within a transaction.
#[derive(Debug)]
pub(super) struct Occurrence {
    kind: EventKind,
    /// The job that it is about.
    job: Option<JobId>,
    /// Whose that is.
    client: Option<String>,
    /// The webhook that it has of its own, as JSON.
    own: Option<String>,
    /// What is sent, as JSON, when it is about no job.
    data: Option<String>,
    /// The endpoint that it is about, which is not told.
    except: Option<Uuid>,
}

impl Occurrence {
    /// A job of `client` with this webhook of its own has come into `state`; none for states that
    /// nobody is told of.
    pub(super) fn of_job(
        job: JobId,
        state: State,
        client: &str,
        own: Option<&str>,
    ) -> Option<Self> {
        Some(Self {
            kind: EventKind::of(state)?,
            job: Some(job),
            client: Some(client.to_owned()),
            own: own.map(str::to_owned),
            data: None,
            except: None,
        })
    }

    /// A batch has ended.
    pub(super) fn of_batch(ended: &EndedBatch) -> Result<Self, StoreError> {
        let data = json!({
            "id": ended.id,
            "name": ended.name,
            "client": ended.client,
            "counts": ended.counts,
            "ended_at": ended.ended_at,
            "url": format!("/api/batches/{}", ended.id),
        });
        Ok(Self {
            client: Some(ended.client.clone()),
            ..Self::other(EventKind::BatchEnded, to_json("batch", &data)?)
        })
    }

    /// Something about no job, in which `data` is told.
    fn other(kind: EventKind, data: String) -> Self {
        Self {
            kind,
            job: None,
            client: None,
            own: None,
            data: Some(data),
            except: None,
        }
    }

    fn concerns(&self, endpoint: &EndpointRow) -> bool {
        if self.except == Some(endpoint.id) || !self.kind.is_wanted(&endpoint.events) {
            return false;
        }
        endpoint.client.is_none() || endpoint.client == self.client
    }
}

/// Deliveries to be written together.
#[derive(Debug, Default)]
struct NewDeliveries {
    ids: [Vec<Uuid>; 4],
    texts: [Vec<String>; 6],
    rows: usize,
}

/// Where one goes.
enum To<'a> {
    Endpoint(&'a EndpointRow),
    Own { client: &'a str, url: &'a Url },
}

impl NewDeliveries {
    fn push(&mut self, event: Uuid, of: &Occurrence, to: &To<'_>) {
        let job = of.job.map_or(Uuid::nil(), |job| job.0);
        let (endpoint, client, url, target, state) = match to {
            To::Endpoint(endpoint) => {
                let state = match endpoint.enabled {
                    true => DeliveryState::Pending,
                    false => DeliveryState::Held,
                };
                let target = endpoint.id.to_string();
                (endpoint.id, String::new(), String::new(), target, state)
            }
            To::Own { client, url } => {
                let target = url.origin().ascii_serialization();
                let (client, url) = ((*client).to_owned(), url.to_string());
                (Uuid::nil(), client, url, target, DeliveryState::Pending)
            }
        };
        for (column, id) in self
            .ids
            .iter_mut()
            .zip([Uuid::now_v7(), event, job, endpoint])
        {
            column.push(id);
        }
        let texts = [
            of.kind.as_str().to_owned(),
            of.data.clone().unwrap_or_default(),
            client,
            url,
            target,
            state.as_str().to_owned(),
        ];
        for (column, text) in self.texts.iter_mut().zip(texts) {
            column.push(text);
        }
        self.rows += 1;
    }

    async fn write(self, tx: &DatabaseTransaction, now: Time) -> Result<usize, StoreError> {
        if self.rows == 0 {
            return Ok(0);
        }
        let [ids, events, jobs, endpoints] = self.ids.map(Column::Id);
        let [kinds, data, clients, urls, targets, states] = self.texts.map(Column::Text);
        Rows::new(
            &[
                "id",
                "event",
                "job",
                "endpoint",
                "event_type",
                "data",
                "client",
                "url",
                "target",
                "state",
                "at",
                "nil",
            ],
            vec![
                ids,
                events,
                jobs,
                endpoints,
                kinds,
                data,
                clients,
                urls,
                targets,
                states,
                Column::Number(vec![now.as_millis(); self.rows]),
                Column::Id(vec![Uuid::nil(); self.rows]),
            ],
        )
        .execute(
            tx,
            "INSERT INTO webhook_deliveries (id, event, event_type, event_at, job, data, \
             endpoint, client, url, target, state, claim, step, tries, due_at) \
             SELECT id, event, event_type, at, NULLIF(job, nil), NULLIF(data, ''), \
             NULLIF(endpoint, nil), NULLIF(client, ''), NULLIF(url, ''), target, state, \
             0, 0, 0, at FROM v",
        )
        .await?;
        Ok(self.rows)
    }
}

/// Keeps the webhooks that new jobs have of their own.
pub(super) async fn insert<'a>(
    tx: &DatabaseTransaction,
    rows: impl Iterator<Item = &'a NewRow>,
) -> Result<(), StoreError> {
    let (mut ids, mut webhooks) = (Vec::new(), Vec::new());
    for row in rows {
        if let Some(webhook) = &row.webhook {
            ids.push(row.id.0);
            webhooks.push(to_json("webhook", webhook)?);
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    Rows::new(
        &["job", "webhook"],
        vec![Column::Id(ids), Column::Text(webhooks)],
    )
    .execute(
        tx,
        "UPDATE jobs SET webhook = v.webhook FROM v WHERE jobs.id = v.job",
    )
    .await?;
    Ok(())
}

/// Whether anyone has an endpoint, asked for itself.
pub(super) async fn has_endpoints(db: &impl ConnectionTrait) -> Result<bool, StoreError> {
    let sql = format!("SELECT {HAS_ENDPOINTS}");
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await?;
    Ok(row.map_or(Ok(false), |row| row.try_get_by_index(0))?)
}

/// Writes what is to be told of these, as the transaction will have brought it about.
/// `has_endpoints` is what [`HAS_ENDPOINTS`] said within it. Gives how many deliveries there are.
pub(super) async fn tell(
    tx: &DatabaseTransaction,
    occurrences: &[Occurrence],
    has_endpoints: bool,
    now: Time,
) -> Result<usize, StoreError> {
    let has_own = |of: &Occurrence| of.own.is_some();
    if occurrences.is_empty() || !(has_endpoints || occurrences.iter().any(has_own)) {
        return Ok(0);
    }
    let endpoints = match has_endpoints {
        true => kept_endpoints(tx).await?,
        false => Vec::new(),
    };
    let mut new = NewDeliveries::default();
    for of in occurrences {
        let event = Uuid::now_v7();
        for endpoint in endpoints.iter().filter(|endpoint| of.concerns(endpoint)) {
            new.push(event, of, &To::Endpoint(endpoint));
        }
        if let (Some(client), Some(own)) = (&of.client, &of.own) {
            let own: JobWebhook = parse_json("webhook", own)?;
            if of.kind.is_wanted(&own.events)
                && let Ok(url) = Url::parse(&own.url)
            {
                new.push(event, of, &To::Own { client, url: &url });
            }
        }
    }
    new.write(tx, now).await
}

/// As [`tell`], of jobs that the transaction has just ended.
pub(super) async fn tell_of_ended(
    tx: &DatabaseTransaction,
    ended: &[Uuid],
    now: Time,
) -> Result<usize, StoreError> {
    if ended.is_empty() {
        return Ok(0);
    }
    let sql = format!(
        "SELECT jobs.id, jobs.state, jobs.client, jobs.webhook, {HAS_ENDPOINTS} \
         FROM v JOIN jobs ON jobs.id = v.id"
    );
    let rows = Rows::new(&["id"], vec![Column::Id(ended.to_vec())])
        .query(tx, &sql)
        .await?;
    let (mut news, mut has_endpoints) = (Vec::with_capacity(rows.len()), false);
    for row in rows {
        let state: String = row.try_get_by_index(1)?;
        let client: String = row.try_get_by_index(2)?;
        let own: Option<String> = row.try_get_by_index(3)?;
        has_endpoints = row.try_get_by_index(4)?;
        let job = JobId(row.try_get_by_index::<Uuid>(0)?);
        let known = State::from_name(&state);
        news.extend(
            known.and_then(|state| Occurrence::of_job(job, state, &client, own.as_deref())),
        );
    }
    tell(tx, &news, has_endpoints, now).await
}

/// Every endpoint that is not removed.
async fn kept_endpoints(db: &impl ConnectionTrait) -> Result<Vec<EndpointRow>, StoreError> {
    use sea_orm::{ColumnTrait, QueryOrder};
    webhook_endpoint::Entity::find()
        .filter(webhook_endpoint::Column::State.ne("removed"))
        .order_by_asc(webhook_endpoint::Column::Id)
        .all(db)
        .await?
        .into_iter()
        .map(EndpointRow::try_from)
        .collect()
}
