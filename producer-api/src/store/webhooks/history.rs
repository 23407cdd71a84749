//! Deliveries to look at, to send anew, and to forget.

use std::collections::HashMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement, Value,
};
use sluice_shared::{
    api::{DeliveryState, DeliveryTry, DeliveryView},
    domain::{EventKind, JobId, Time},
};
use uuid::Uuid;

use super::deliveries::ClaimedDelivery;
use crate::store::{
    Store, StoreError, count,
    entity::{webhook_delivery, webhook_endpoint, webhook_try},
};

/// Deliveries forgotten in one transaction, at most.
const MOST_FORGOTTEN: u64 = 1000;

/// Which deliveries to list.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Only to this endpoint.
    pub endpoint: Option<Uuid>,
    /// Only of this job.
    pub job: Option<JobId>,
    /// Only these kinds; empty means any.
    pub kinds: Vec<EventKind>,
    /// Only in these states; empty means any.
    pub states: Vec<DeliveryState>,
    /// Only of events since then.
    pub from: Option<Time>,
    /// Only of events before then.
    pub to: Option<Time>,
}

/// One delivery.
#[derive(Clone, Debug)]
pub struct DeliveryRow {
    /// As it is shown.
    pub view: DeliveryView,
    /// As it is sent.
    pub delivery: ClaimedDelivery,
    /// Its tries, oldest first.
    pub tries: Vec<DeliveryTry>,
}

impl Store {
    /// A page of deliveries, newest first, after `cursor`; one more than `limit` when there are.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        cursor: Option<Uuid>,
        limit: u64,
    ) -> Result<Vec<DeliveryView>, StoreError> {
        use webhook_delivery::Column;
        let mut select = webhook_delivery::Entity::find();
        if let Some(endpoint) = filter.endpoint {
            select = select.filter(Column::Endpoint.eq(endpoint));
        }
        if let Some(job) = filter.job {
            select = select.filter(Column::Job.eq(job.0));
        }
        if !filter.kinds.is_empty() {
            let names = filter.kinds.iter().map(|kind| kind.as_str());
            select = select.filter(Column::EventType.is_in(names));
        }
        if !filter.states.is_empty() {
            let names = filter.states.iter().map(|state| state.as_str());
            select = select.filter(Column::State.is_in(names));
        }
        if let Some(from) = filter.from {
            select = select.filter(Column::EventAt.gte(from.as_millis()));
        }
        if let Some(to) = filter.to {
            select = select.filter(Column::EventAt.lt(to.as_millis()));
        }
        if let Some(cursor) = cursor {
            select = select.filter(Column::Id.lt(cursor));
        }
        let rows = select
            .order_by_desc(Column::Id)
            .limit(limit + 1)
            .all(&self.read)
            .await?;
        let urls = self.urls(&rows).await?;
        rows.into_iter().map(|row| shown(row, &urls)).collect()
    }

    /// One delivery with its tries.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn delivery(&self, id: Uuid) -> Result<Option<DeliveryRow>, StoreError> {
        let Some(row) = webhook_delivery::Entity::find_by_id(id)
            .one(&self.read)
            .await?
        else {
            return Ok(None);
        };
        let tries = webhook_try::Entity::find()
            .filter(webhook_try::Column::Delivery.eq(id))
            .order_by_asc(webhook_try::Column::Number)
            .all(&self.read)
            .await?;
        let urls = self.urls(std::slice::from_ref(&row)).await?;
        Ok(Some(DeliveryRow {
            view: shown(row.clone(), &urls)?,
            delivery: ClaimedDelivery::of(row),
            tries: tries.into_iter().map(shown_try).collect(),
        }))
    }

    /// Sends one delivery anew that is not on its way. Whether it was so.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn replay_delivery(&self, id: Uuid, now: Time) -> Result<bool, StoreError> {
        let filter = "id = $2 AND state <> 'pending'";
        Ok(self.replay(filter, vec![id.into()], now).await? > 0)
    }

    /// Sends deliveries to an endpoint anew: of events in `[since, until)`, in these states.
    /// Gives how many.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn replay_deliveries(
        &self,
        endpoint: Uuid,
        since: Time,
        until: Time,
        states: &[DeliveryState],
        now: Time,
    ) -> Result<u64, StoreError> {
        let names: Vec<String> = states
            .iter()
            .filter(|state| **state != DeliveryState::Pending)
            .map(|state| format!("'{}'", state.as_str()))
            .collect();
        if names.is_empty() {
            return Ok(0);
        }
        let filter = format!(
            "endpoint = $2 AND event_at >= $3 AND event_at < $4 AND state IN ({})",
            names.join(", ")
        );
        let values = vec![
            endpoint.into(),
            since.as_millis().into(),
            until.as_millis().into(),
        ];
        self.replay(&filter, values, now).await
    }

    async fn replay(&self, filter: &str, values: Vec<Value>, now: Time) -> Result<u64, StoreError> {
        let sql = format!(
            "UPDATE webhook_deliveries SET state = 'pending', step = 0, claim = claim + 1, \
             due_at = $1, ended_at = NULL WHERE {filter}"
        );
        let values = [vec![now.as_millis().into()], values].concat();
        let backend = self.write.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        Ok(self.write.execute_raw(statement).await?.rows_affected())
    }

    /// Forgets deliveries of events before `before`, and those of endpoints that were removed;
    /// a bounded number. Whether there may be more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn forget_deliveries(&self, before: Time) -> Result<bool, StoreError> {
        use webhook_delivery::Column;
        let old = Column::EventAt
            .lt(before.as_millis())
            .and(Column::State.ne(DeliveryState::Pending.as_str()));
        let mut forgotten = self.forget(old).await?;
        let removed = webhook_endpoint::Entity::find()
            .filter(webhook_endpoint::Column::State.eq("removed"))
            .one(&self.read)
            .await?;
        if let Some(endpoint) = removed {
            let of_it = self.forget(Column::Endpoint.eq(endpoint.id)).await?;
            if of_it == 0 {
                webhook_endpoint::Entity::delete_by_id(endpoint.id)
                    .exec(&self.write)
                    .await?;
            }
            forgotten = Ord::max(forgotten, of_it);
        }
        Ok(forgotten == MOST_FORGOTTEN)
    }

    async fn forget(&self, which: sea_orm::sea_query::SimpleExpr) -> Result<u64, StoreError> {
        let ids: Vec<Uuid> = webhook_delivery::Entity::find()
            .select_only()
            .column(webhook_delivery::Column::Id)
            .filter(which)
            .limit(MOST_FORGOTTEN)
            .into_tuple()
            .all(&self.read)
            .await?;
        if ids.is_empty() {
            return Ok(0);
        }
        let tx = self.begin().await?;
        webhook_try::Entity::delete_many()
            .filter(webhook_try::Column::Delivery.is_in(ids.iter().copied()))
            .exec(&tx)
            .await?;
        webhook_delivery::Entity::delete_many()
            .filter(webhook_delivery::Column::Id.is_in(ids.iter().copied()))
            .exec(&tx)
            .await?;
        tx.commit().await?;
        Ok(ids.len() as u64)
    }

    /// Where the endpoints of these deliveries are now.
    async fn urls(
        &self,
        rows: &[webhook_delivery::Model],
    ) -> Result<HashMap<Uuid, String>, StoreError> {
        let mut ids: Vec<Uuid> = rows.iter().filter_map(|row| row.endpoint).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<(Uuid, String)> = webhook_endpoint::Entity::find()
            .select_only()
            .columns([webhook_endpoint::Column::Id, webhook_endpoint::Column::Url])
            .filter(webhook_endpoint::Column::Id.is_in(ids))
            .into_tuple()
            .all(&self.read)
            .await?;
        Ok(rows.into_iter().collect())
    }
}

fn shown(
    row: webhook_delivery::Model,
    urls: &HashMap<Uuid, String>,
) -> Result<DeliveryView, StoreError> {
    let unknown = |what: &str, name: &str| {
        StoreError::Internal(format!("{what} `{name}` of a delivery is not known"))
    };
    let state = DeliveryState::from_name(&row.state);
    let state = state.ok_or_else(|| unknown("state", &row.state))?;
    let kind = EventKind::from_name(&row.event_type);
    let kind = kind.ok_or_else(|| unknown("type", &row.event_type))?;
    let of_endpoint = row
        .endpoint
        .and_then(|endpoint| urls.get(&endpoint).cloned());
    Ok(DeliveryView {
        id: row.id,
        event: row.event,
        r#type: kind,
        event_at: Time::from_millis(row.event_at),
        job: row.job.map(JobId),
        webhook: row.endpoint,
        url: of_endpoint.or(row.url).unwrap_or_default(),
        state,
        tries: count(row.tries),
        next_try_at: (state == DeliveryState::Pending).then(|| Time::from_millis(row.due_at)),
        ended_at: row.ended_at.map(Time::from_millis),
    })
}

fn shown_try(row: webhook_try::Model) -> DeliveryTry {
    DeliveryTry {
        number: count(row.number),
        at: Time::from_millis(row.began_at),
        millis: u64::try_from(row.took_ms).unwrap_or(0),
        status: row.status.and_then(|status| u16::try_from(status).ok()),
        error: row.error,
        response: row.response,
    }
}
