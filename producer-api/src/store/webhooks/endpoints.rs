//! Endpoints, and what deliveries are signed with.

use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QuerySelect, sea_query::OnConflict,
};
use serde::{Deserialize, Serialize};
use sluice_shared::{
    api::DeliveryState,
    domain::{EventKind, Time},
};
use uuid::Uuid;

use super::{NewDeliveries, Occurrence, To, kept_endpoints, tell};
use crate::store::{
    Store, StoreError,
    entity::{webhook_delivery, webhook_endpoint, webhook_signer},
    parse_json, to_json,
};

/// An endpoint as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// Its id.
    pub id: Uuid,
    /// Where its deliveries go.
    pub url: String,
    /// What it is for.
    pub description: String,
    /// Which kinds it gets; none for all.
    pub events: Vec<EventKind>,
    /// Only of this client's jobs.
    pub client: Option<String>,
    /// Newest first.
    pub secrets: Vec<SealedSecret>,
    /// Whether its deliveries go out.
    pub enabled: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Since when nothing but failures came of it.
    pub failing_since: Option<Time>,
    /// When it was made.
    pub created_at: Time,
}

/// A secret, sealed with the master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// The seal.
    pub sealed: String,
    /// Until when it signs; none for the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

impl SealedSecret {
    /// Whether it signs at `now`.
    #[must_use]
    pub fn is_valid(&self, now: Time) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl TryFrom<webhook_endpoint::Model> for EndpointRow {
    type Error = StoreError;

    fn try_from(row: webhook_endpoint::Model) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            url: row.url,
            description: row.description,
            events: parse_json("events", &row.events)?,
            client: row.client,
            secrets: parse_json("secrets", &row.secrets)?,
            enabled: row.state == "enabled",
            reason: row.reason,
            failing_since: row.failing_since.map(Time::from_millis),
            created_at: Time::from_millis(row.created_at),
        })
    }
}

impl EndpointRow {
    fn model(&self) -> Result<webhook_endpoint::ActiveModel, StoreError> {
        let state = if self.enabled { "enabled" } else { "disabled" };
        Ok(webhook_endpoint::ActiveModel {
            id: Set(self.id),
            url: Set(self.url.clone()),
            description: Set(self.description.clone()),
            events: Set(to_json("events", &self.events)?),
            client: Set(self.client.clone()),
            secrets: Set(to_json("secrets", &self.secrets)?),
            state: Set(state.into()),
            reason: Set(self.reason.clone()),
            failing_since: Set(self.failing_since.map(Time::as_millis)),
            created_at: Set(self.created_at.as_millis()),
        })
    }
}

impl Store {
    /// Every endpoint, oldest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn webhooks(&self) -> Result<Vec<EndpointRow>, StoreError> {
        kept_endpoints(&self.read).await
    }

    /// One endpoint.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn webhook(&self, id: Uuid) -> Result<Option<EndpointRow>, StoreError> {
        webhook_endpoint::Entity::find_by_id(id)
            .filter(webhook_endpoint::Column::State.ne("removed"))
            .one(&self.read)
            .await?
            .map(EndpointRow::try_from)
            .transpose()
    }

    /// Registers an endpoint. It gets events of what is settled from then on, by any API process.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_webhook(&self, endpoint: &EndpointRow) -> Result<(), StoreError> {
        webhook_endpoint::Entity::insert(endpoint.model()?)
            .exec_without_returning(&self.write)
            .await?;
        Ok(())
    }

    /// Changes an endpoint; none when there is no such one. One that is disabled by it has its
    /// waiting deliveries held.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn change_webhook(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut EndpointRow) + Send,
    ) -> Result<Option<EndpointRow>, StoreError> {
        let tx = self.begin().await?;
        let Some(row) = webhook_endpoint::Entity::find_by_id(id)
            .filter(webhook_endpoint::Column::State.ne("removed"))
            .lock_exclusive()
            .one(&tx)
            .await?
        else {
            return Ok(None);
        };
        let mut endpoint = EndpointRow::try_from(row)?;
        change(&mut endpoint);
        webhook_endpoint::Entity::update(endpoint.model()?)
            .exec(&tx)
            .await?;
        if !endpoint.enabled {
            hold(&tx, id).await?;
        }
        tx.commit().await?;
        Ok(Some(endpoint))
    }

    /// Removes an endpoint, and its deliveries with it. Whether there was one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn remove_webhook(&self, id: Uuid) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let removed = webhook_endpoint::Entity::update_many()
            .col_expr(webhook_endpoint::Column::State, "removed".into())
            .col_expr(webhook_endpoint::Column::Secrets, "[]".into())
            .filter(webhook_endpoint::Column::Id.eq(id))
            .filter(webhook_endpoint::Column::State.ne("removed"))
            .exec(&tx)
            .await?;
        hold(&tx, id).await?;
        tx.commit().await?;
        Ok(removed.rows_affected > 0)
    }

    /// Sends a test to an endpoint. Gives the delivery's id.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn try_webhook(
        &self,
        endpoint: &EndpointRow,
        data: String,
        now: Time,
    ) -> Result<Uuid, StoreError> {
        let test = Occurrence::other(EventKind::WebhookTest, data);
        let tx = self.begin().await?;
        let mut new = NewDeliveries::default();
        new.push(Uuid::now_v7(), &test, &To::Endpoint(endpoint));
        let id = new.ids[0].first().copied().unwrap_or_default();
        new.write(&tx, now).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// What the webhooks are signed with that this client gives its jobs.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn webhook_signer(
        &self,
        client: &str,
    ) -> Result<Option<Vec<SealedSecret>>, StoreError> {
        webhook_signer::Entity::find_by_id(client)
            .one(&self.read)
            .await?
            .map(|row| parse_json("secrets", &row.secrets))
            .transpose()
    }

    /// Gives a client its first secret, unless it has one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_webhook_signer(
        &self,
        client: &str,
        secret: SealedSecret,
    ) -> Result<(), StoreError> {
        let on_conflict = OnConflict::column(webhook_signer::Column::Client)
            .do_nothing()
            .to_owned();
        webhook_signer::Entity::insert(signer(client, &[secret])?)
            .on_conflict(on_conflict)
            .exec_without_returning(&self.write)
            .await?;
        Ok(())
    }

    /// Changes what a client's webhooks are signed with.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn change_webhook_signer(
        &self,
        client: &str,
        change: impl FnOnce(&mut Vec<SealedSecret>) + Send,
    ) -> Result<(), StoreError> {
        let tx = self.begin().await?;
        let row = webhook_signer::Entity::find_by_id(client)
            .lock_exclusive()
            .one(&tx)
            .await?;
        let mut secrets: Vec<SealedSecret> = match row {
            Some(row) => parse_json("secrets", &row.secrets)?,
            None => Vec::new(),
        };
        change(&mut secrets);
        let on_conflict = OnConflict::column(webhook_signer::Column::Client)
            .update_column(webhook_signer::Column::Secrets)
            .to_owned();
        webhook_signer::Entity::insert(signer(client, &secrets)?)
            .on_conflict(on_conflict)
            .exec_without_returning(&tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }
}

fn signer(
    client: &str,
    secrets: &[SealedSecret],
) -> Result<webhook_signer::ActiveModel, StoreError> {
    Ok(webhook_signer::ActiveModel {
        client: Set(client.to_owned()),
        secrets: Set(to_json("secrets", &secrets)?),
    })
}

/// Holds what waits for an endpoint.
async fn hold(db: &impl ConnectionTrait, endpoint: Uuid) -> Result<(), StoreError> {
    webhook_delivery::Entity::update_many()
        .col_expr(
            webhook_delivery::Column::State,
            DeliveryState::Held.as_str().into(),
        )
        .filter(webhook_delivery::Column::Endpoint.eq(endpoint))
        .filter(webhook_delivery::Column::State.eq(DeliveryState::Pending.as_str()))
        .exec(db)
        .await?;
    Ok(())
}

/// Disables an endpoint for `reason`, and tells the others. Whether it was enabled.
pub(super) async fn disable(
    tx: &DatabaseTransaction,
    id: Uuid,
    reason: &str,
    now: Time,
) -> Result<bool, StoreError> {
    let disabled = webhook_endpoint::Entity::update_many()
        .col_expr(webhook_endpoint::Column::State, "disabled".into())
        .col_expr(webhook_endpoint::Column::Reason, Some(reason).into())
        .filter(webhook_endpoint::Column::Id.eq(id))
        .filter(webhook_endpoint::Column::State.eq("enabled"))
        .exec(tx)
        .await?;
    if disabled.rows_affected == 0 {
        return Ok(false);
    }
    hold(tx, id).await?;
    let data = serde_json::json!({ "webhook": id, "reason": reason });
    let news = Occurrence {
        except: Some(id),
        ..Occurrence::other(EventKind::WebhookDisabled, data.to_string())
    };
    tell(tx, &[news], true, now).await?;
    Ok(true)
}
