//! Who may do what: API keys.
//!
//! A key is 32 random bytes, so a plain SHA-256 keeps it as safe as a slow hash would: there is
//! nothing to guess. Only the hash is stored.

use std::{
    collections::HashMap,
    future::Future,
    io::Write,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sluice_shared::{
    api::{KeyView, Scope},
    clock,
    domain::Time,
};
use uuid::Uuid;

use crate::store::{ClientRow, KeyRow, Store, StoreError};

/// What every key begins with, so that leaked ones can be searched for.
const PREFIX: &str = "sluice_";

/// How much of a key is shown, to tell keys apart.
const SHOWN: usize = 14;

/// How long a key that was looked up is taken for valid without asking again; a revoked key works
/// on other API processes for at most this long.
const FRESH: Duration = Duration::from_secs(10);

/// How long it is so while the database cannot be asked.
const STALE: Duration = Duration::from_secs(600);

/// How long a look-up may take.
const LOOK_UP: Duration = Duration::from_secs(2);

/// Keys remembered, at most.
const MOST: usize = 10_000;

/// How long a sign-in of the dashboard lasts.
pub const SESSION: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a link that signs in once is good for.
const LINK: Duration = Duration::from_secs(3600);

/// The id of the first admin key. It is fixed, so that two API processes that start at the same
/// time make one key, not two.
const FIRST_KEY: Uuid = Uuid::from_u128(1);

/// Who is asking.
#[derive(Clone, Debug)]
pub struct Client {
    /// The key's id.
    pub key: Uuid,
    /// The key's name: the client that jobs are counted for.
    pub name: Arc<str>,
    /// What it may do at most; each scope includes those before it.
    pub scope: Scope,
    /// Requests that it may make in a minute.
    pub requests_per_minute: Option<u32>,
}

impl Client {
    /// Whether it may do what needs `scope`.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scope >= scope
    }
}

impl From<(KeyRow, ClientRow)> for Client {
    fn from((row, set): (KeyRow, ClientRow)) -> Self {
        Self {
            scope: row.scopes.iter().copied().max().unwrap_or(Scope::Read),
            key: row.id,
            name: row.name.into(),
            requests_per_minute: set.quota.requests_per_minute,
        }
    }
}

/// A new key: its secret and what is stored of it.
#[derive(Debug)]
pub struct MintedKey {
    /// The secret, to be shown once.
    pub secret: SecretString,
    /// What is stored.
    pub row: KeyRow,
    /// By what it is found.
    pub hash: String,
}

impl MintedKey {
    /// Makes a key.
    #[must_use]
    pub fn generate(name: String, scopes: Vec<Scope>, now: Time) -> Self {
        let secret = format!("{PREFIX}{}", token());
        Self::of(secret.into(), Uuid::now_v7(), name, scopes, now)
    }

    fn of(secret: SecretString, id: Uuid, name: String, scopes: Vec<Scope>, now: Time) -> Self {
        let text = secret.expose_secret();
        let prefix = text.chars().take(SHOWN).collect();
        let hash = hash(text);
        let row = KeyRow {
            id,
            name,
            prefix,
            scopes,
            created_at: now,
            revoked_at: None,
        };
        Self { secret, row, hash }
    }
}

/// What the API shows of a key.
#[must_use]
pub fn view(row: KeyRow, client: ClientRow) -> KeyView {
    KeyView {
        id: row.id,
        name: row.name,
        prefix: row.prefix,
        scopes: row.scopes,
        weight: client.weight,
        quota: client.quota,
        created_at: row.created_at,
        revoked_at: row.revoked_at,
    }
}

/// What nobody can guess.
fn token() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Looks keys up, and remembers them for a while; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    known: Arc<Mutex<HashMap<String, (Time, Client)>>>,
}

impl Keys {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Time, Client)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has this key; `None` for a key that is not valid.
    ///
    /// # Errors
    /// When the database cannot be reached and the key is not remembered.
    pub async fn client(&self, store: &Store, secret: &str) -> Result<Option<Client>, StoreError> {
        let hash = hash(secret);
        self.look_up(store, &hash, store.key_by_hash(&hash)).await
    }

    /// Who is signed in with this token; `None` when nobody is.
    ///
    /// # Errors
    /// When the database cannot be reached and the session is not remembered.
    pub async fn signed_in(
        &self,
        store: &Store,
        token: &str,
    ) -> Result<Option<Client>, StoreError> {
        let hash = hash(token);
        self.look_up(store, &hash, store.key_by_session(&hash, clock::now()))
            .await
    }

    async fn look_up(
        &self,
        store: &Store,
        hash: &str,
        question: impl Future<Output = Result<Option<KeyRow>, StoreError>>,
    ) -> Result<Option<Client>, StoreError> {
        let now = clock::now();
        let remembered = self.known().get(hash).cloned();
        if let Some((at, client)) = &remembered
            && now.since(*at) < FRESH
        {
            return Ok(Some(client.clone()));
        }
        // A database that neither answers nor refuses is as good as away.
        let looked_up = tokio::time::timeout(LOOK_UP, with_quota(store, question))
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable("it does not answer".into())));
        let row = match (looked_up, remembered) {
            (Err(_), Some((at, client))) if now.since(at) < STALE => return Ok(Some(client)),
            (answer, _) => answer?,
        };
        let mut known = self.known();
        let Some(found) = row else {
            known.remove(hash);
            return Ok(None);
        };
        let client = Client::from(found);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(hash.to_owned(), (now, client.clone()));
        Ok(Some(client))
    }

    /// Signs a key's client in. The token, which is told to the client and kept nowhere.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn sign_in(&self, store: &Store, client: &Client) -> Result<String, StoreError> {
        let token = token();
        let now = clock::now();
        store
            .insert_session(&hash(&token), client.key, now, now + SESSION)
            .await?;
        Ok(token)
    }

    /// Ends a session. Other API processes may take it for valid for at most 10 s more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn sign_out(&self, store: &Store, token: &str) -> Result<(), StoreError> {
        let hash = hash(token);
        store.delete_session(&hash).await?;
        self.known().remove(&hash);
        Ok(())
    }

    /// Uses up a link that signs in once. Who it is for; `None` when it is not good any more.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn take_link(&self, store: &Store, link: &str) -> Result<Option<Client>, StoreError> {
        let hash = hash(link);
        let found = with_quota(store, store.take_link(&hash, clock::now())).await?;
        Ok(found.map(Client::from))
    }

    /// Forgets a key that was revoked here.
    pub fn forget(&self, key: Uuid) {
        self.known().retain(|_, (_, client)| client.key != key);
    }

    /// Forgets the keys of a client that was changed here.
    pub fn forget_client(&self, name: &str) {
        self.known().retain(|_, (_, client)| *client.name != *name);
    }
}

/// The key that is found, with what is set for its client.
async fn with_quota(
    store: &Store,
    question: impl Future<Output = Result<Option<KeyRow>, StoreError>>,
) -> Result<Option<(KeyRow, ClientRow)>, StoreError> {
    let Some(key) = question.await? else {
        return Ok(None);
    };
    let client = store.client(&key.name).await?;
    Ok(Some((key, client)))
}

/// Why the first key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FirstKeyError {
    /// The file cannot be written or read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes the first admin key when there is no key at all, and keeps it in `admin.key` (mode 0600)
/// in the data folder. Gives it when it was made just now, to be shown once.
///
/// # Errors
/// When the file or the database fails.
pub async fn first_key(store: &Store, home: &Path) -> Result<Option<SecretString>, FirstKeyError> {
    if store.has_keys().await? {
        return Ok(None);
    }
    let path = home.join("admin.key");
    let failed = |source| FirstKeyError::File {
        path: path.clone(),
        source,
    };
    // The file comes first: a key that is stored but written nowhere could never be used.
    let fresh = MintedKey::generate(String::new(), Vec::new(), clock::now()).secret;
    let secret: SecretString = match keep(&path, fresh.expose_secret()) {
        Ok(()) => fresh,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::read_to_string(&path)
                .map_err(failed)?
                .trim()
                .into()
        }
        Err(error) => return Err(failed(error)),
    };
    let now = clock::now();
    let key = MintedKey::of(
        secret.clone(),
        FIRST_KEY,
        "admin".into(),
        vec![Scope::Admin],
        now,
    );
    match store.insert_key(&key.row, &key.hash).await {
        Ok(()) => Ok(Some(secret)),
        // Another process was faster; with the same data folder it used the same file.
        Err(error) => {
            if store.has_keys().await? {
                Ok(None)
            } else {
                Err(error.into())
            }
        }
    }
}

/// Makes a link's token that signs in once, as the key in `admin.key`; `None` when there is no such
/// file, or its key is revoked.
///
/// # Errors
/// When the database cannot be reached.
pub async fn sign_in_link(store: &Store, home: &Path) -> Result<Option<String>, StoreError> {
    let Ok(secret) = std::fs::read_to_string(home.join("admin.key")) else {
        return Ok(None);
    };
    let Some(key) = store.key_by_hash(&hash(secret.trim())).await? else {
        return Ok(None);
    };
    let (link, now) = (token(), clock::now());
    store
        .insert_link(&hash(&link), key.id, now, now + LINK)
        .await?;
    Ok(Some(link))
}

/// Writes a new file that only its owner can read, whole or not at all.
fn keep(path: &Path, secret: &str) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{secret}")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(())
}
