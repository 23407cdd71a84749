//! Sign-ins of the dashboard: sessions of API keys, and links that are good for one sign-in.

use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter};
use sluice_shared::domain::Time;
use uuid::Uuid;

use super::{
    KeyRow, Store, StoreError,
    entity::{api_key, session},
};

impl Store {
    /// Keeps a session of a key until `expires_at`, by the hash of its token.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_session(
        &self,
        hash: &str,
        key: Uuid,
        now: Time,
        expires_at: Time,
    ) -> Result<(), StoreError> {
        insert(&self.write, (hash, key), false, now, expires_at).await
    }

    /// Keeps a link of a key that signs in once, until `expires_at`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn insert_link(
        &self,
        hash: &str,
        key: Uuid,
        now: Time,
        expires_at: Time,
    ) -> Result<(), StoreError> {
        insert(&self.write, (hash, key), true, now, expires_at).await
    }

    /// Uses a link up. The key that it stands for, the first time and before its end.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn take_link(&self, hash: &str, now: Time) -> Result<Option<KeyRow>, StoreError> {
        let Some(link) = find(&self.write, hash, true, now).await? else {
            return Ok(None);
        };
        // Of two who come at once, one deletes it.
        let taken = session::Entity::delete_by_id(hash.to_owned())
            .exec(&self.write)
            .await?;
        if taken.rows_affected == 0 {
            return Ok(None);
        }
        valid_key(&self.write, link.key).await
    }

    /// The key of a session that has not ended, unless the key was revoked.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn key_by_session(
        &self,
        hash: &str,
        now: Time,
    ) -> Result<Option<KeyRow>, StoreError> {
        match find(&self.read, hash, false, now).await? {
            Some(session) => valid_key(&self.read, session.key).await,
            None => Ok(None),
        }
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn delete_session(&self, hash: &str) -> Result<(), StoreError> {
        session::Entity::delete_by_id(hash.to_owned())
            .exec(&self.write)
            .await?;
        Ok(())
    }
}

async fn insert(
    db: &impl ConnectionTrait,
    (hash, key): (&str, Uuid),
    is_link: bool,
    now: Time,
    expires_at: Time,
) -> Result<(), StoreError> {
    session::Entity::delete_many()
        .filter(session::Column::ExpiresAt.lte(now.as_millis()))
        .exec(db)
        .await?;
    session::Entity::insert(session::ActiveModel {
        hash: Set(hash.to_owned()),
        key: Set(key),
        is_link: Set(is_link),
        created_at: Set(now.as_millis()),
        expires_at: Set(expires_at.as_millis()),
    })
    .exec_without_returning(db)
    .await?;
    Ok(())
}

async fn find(
    db: &impl ConnectionTrait,
    hash: &str,
    is_link: bool,
    now: Time,
) -> Result<Option<session::Model>, StoreError> {
    let found = session::Entity::find_by_id(hash.to_owned())
        .filter(session::Column::IsLink.eq(is_link))
        .filter(session::Column::ExpiresAt.gt(now.as_millis()))
        .one(db)
        .await?;
    Ok(found)
}

async fn valid_key(db: &impl ConnectionTrait, id: Uuid) -> Result<Option<KeyRow>, StoreError> {
    api_key::Entity::find_by_id(id)
        .filter(api_key::Column::RevokedAt.is_null())
        .one(db)
        .await?
        .map(KeyRow::try_from)
        .transpose()
}
