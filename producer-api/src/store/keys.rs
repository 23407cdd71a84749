//! API keys. Only their hashes are kept.

use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use sluice_shared::{api::Scope, domain::Time};
use uuid::Uuid;

use super::{Store, StoreError, entity::api_key, parse_json, to_json};

/// An API key, without its secret.
#[derive(Clone, Debug)]
pub struct KeyRow {
    /// Its id.
    pub id: Uuid,
    /// Its name: the client that jobs are counted for.
    pub name: String,
    /// The beginning of the key.
    pub prefix: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Time,
    /// When it was revoked.
    pub revoked_at: Option<Time>,
}

/// What became of a wish to revoke a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It is revoked.
    Done,
    /// There is no such key, or it was revoked before.
    Unknown,
    /// It is the last one that may make keys, and stays.
    LastAdmin,
}

impl TryFrom<api_key::Model> for KeyRow {
    type Error = StoreError;

    fn try_from(row: api_key::Model) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            name: row.name,
            prefix: row.prefix,
            scopes: parse_json("scopes", &row.scopes)?,
            created_at: Time::from_millis(row.created_at),
            revoked_at: row.revoked_at.map(Time::from_millis),
        })
    }
}

impl Store {
    /// Keeps a key by its hash.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_key(&self, key: &KeyRow, hash: &str) -> Result<(), StoreError> {
        api_key::Entity::insert(api_key::ActiveModel {
            id: Set(key.id),
            name: Set(key.name.clone()),
            prefix: Set(key.prefix.clone()),
            hash: Set(hash.to_owned()),
            scopes: Set(to_json("scopes", &key.scopes)?),
            created_at: Set(key.created_at.as_millis()),
            revoked_at: Set(None),
        })
        .exec_without_returning(&self.write)
        .await?;
        Ok(())
    }

    /// The key with this hash, if it is not revoked.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn key_by_hash(&self, hash: &str) -> Result<Option<KeyRow>, StoreError> {
        api_key::Entity::find()
            .filter(
                api_key::Column::Hash
                    .eq(hash)
                    .and(api_key::Column::RevokedAt.is_null()),
            )
            .one(&self.read)
            .await?
            .map(KeyRow::try_from)
            .transpose()
    }

    /// The key with this id, revoked or not.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn key(&self, id: Uuid) -> Result<Option<KeyRow>, StoreError> {
        api_key::Entity::find_by_id(id)
            .one(&self.read)
            .await?
            .map(KeyRow::try_from)
            .transpose()
    }

    /// Every key, newest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        let rows = api_key::Entity::find()
            .order_by_desc(api_key::Column::CreatedAt)
            .all(&self.read)
            .await?;
        rows.into_iter().map(KeyRow::try_from).collect()
    }

    /// Whether there is any key that works.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn has_keys(&self) -> Result<bool, StoreError> {
        let keys = api_key::Entity::find()
            .filter(api_key::Column::RevokedAt.is_null())
            .count(&self.read)
            .await?;
        Ok(keys > 0)
    }

    /// Revokes a key, unless nobody could make keys without it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn revoke_key(&self, id: Uuid, now: Time) -> Result<Revoked, StoreError> {
        let tx = self.begin().await?;
        // All that are valid, so that two admins who revoke each other wait for one another.
        let valid = api_key::Entity::find()
            .filter(api_key::Column::RevokedAt.is_null())
            .order_by_asc(api_key::Column::Id)
            .lock_exclusive()
            .all(&tx)
            .await?;
        let valid: Vec<KeyRow> = valid
            .into_iter()
            .map(KeyRow::try_from)
            .collect::<Result<_, _>>()?;
        let is_admin = |key: &KeyRow| key.scopes.contains(&Scope::Admin);
        let Some(key) = valid.iter().find(|key| key.id == id) else {
            return Ok(Revoked::Unknown);
        };
        if is_admin(key) && !valid.iter().any(|other| other.id != id && is_admin(other)) {
            return Ok(Revoked::LastAdmin);
        }
        api_key::Entity::update_many()
            .col_expr(api_key::Column::RevokedAt, Some(now.as_millis()).into())
            .filter(api_key::Column::Id.eq(id))
            .exec(&tx)
            .await?;
        tx.commit().await?;
        Ok(Revoked::Done)
    }
}
