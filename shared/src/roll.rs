//! The roll: the accounts made at run time, on their way from the truth plane to the workers.
//!
//! Each account travels sealed as a whole, so that only a holder of the master key can read one or
//! add one; its secrets are sealed once more inside, by whoever was given them, and stay closed to
//! all but the worker. The API keeps the newest roll in the live plane, and puts it there again
//! when the live plane has lost it.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    config::{AccountConfig, SettingError},
    domain::AccountId,
    seal::MasterKey,
};

/// The settings that are secrets. Everything else about an account may be shown.
pub const SECRETS: [&str; 3] = ["api_key", "oauth_token", "env"];

/// Every account made at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// Grows with every change.
    pub revision: i64,
    /// Each by name.
    pub accounts: BTreeMap<AccountId, Entry>,
}

/// One account of the roll.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The roll's revision at its last change.
    pub revision: i64,
    /// Its [`Definition`], sealed.
    pub sealed: String,
}

/// What is known of an account made at run time, as the truth plane keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// Its settings, named as in the configuration, but for its secrets.
    pub settings: Map<String, Value>,
    /// Its secrets by name, each sealed.
    pub secrets: BTreeMap<String, String>,
}

/// Why a worker cannot use an entry. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The whole is not to be opened.
    #[error(
        "this worker's master key is not the one of the API: give both the same SLUICE_MASTER_KEY"
    )]
    Sealed,
    /// A secret is not to be opened.
    #[error(
        "its {0} was sealed with another master key: start with that key again, or set it anew"
    )]
    SecretSealed(String),
    /// It is of another version.
    #[error("another version of Sluice made it: {0}")]
    Unreadable(SettingError),
}

fn context(id: &AccountId, revision: i64) -> Vec<u8> {
    format!("sluice account\0{id}\0{revision}").into_bytes()
}

fn secret_context(id: &AccountId, name: &str) -> Vec<u8> {
    format!("sluice account secret\0{id}\0{name}").into_bytes()
}

impl Definition {
    /// Seals one secret of the account. `env` is an object, the others are text.
    #[must_use]
    pub fn seal_secret(key: &MasterKey, id: &AccountId, name: &str, secret: &Value) -> String {
        key.seal(&secret_context(id, name), secret.to_string().as_bytes())
    }

    /// The entry of the roll.
    #[must_use]
    pub fn entry(&self, key: &MasterKey, id: &AccountId, revision: i64) -> Entry {
        // Maps of text and JSON: it cannot fail.
        let plain = serde_json::to_vec(self).unwrap_or_default();
        Entry {
            revision,
            sealed: key.seal(&context(id, revision), &plain),
        }
    }
}

impl Entry {
    /// The account with its secrets, as a configuration file would have given it.
    ///
    /// # Errors
    /// When a seal does not open, or what is inside is not understood here.
    pub fn open(&self, key: &MasterKey, id: &AccountId) -> Result<AccountConfig, EntryError> {
        let plain = key
            .open(&context(id, self.revision), &self.sealed)
            .map_err(|_| EntryError::Sealed)?;
        let definition: Definition = serde_json::from_str(plain.expose_secret())
            .map_err(|_| EntryError::Unreadable(SettingError::new("", "its form is unknown")))?;
        let mut settings = definition.settings;
        for (name, sealed) in definition.secrets {
            let unopened = || EntryError::SecretSealed(name.clone());
            let secret = key
                .open(&secret_context(id, &name), &sealed)
                .map_err(|_| unopened())?;
            let secret = serde_json::from_str(secret.expose_secret()).map_err(|_| unopened())?;
            settings.insert(name, secret);
        }
        AccountConfig::from_settings(id, settings).map_err(EntryError::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Provider;

    fn definition(key: &MasterKey, id: &AccountId) -> Definition {
        let Value::Object(settings) = json!({"provider": "anthropic", "weight": 3}) else {
            panic!()
        };
        let sealed = Definition::seal_secret(key, id, "api_key", &json!("sk-hidden"));
        Definition {
            settings,
            secrets: [("api_key".to_owned(), sealed)].into(),
        }
    }

    #[test]
    fn an_account_comes_out_as_it_went_in() {
        let (key, id) = (MasterKey::generate(), "main".parse().unwrap());
        let definition = definition(&key, &id);
        let entry = definition.entry(&key, &id, 7);
        assert!(!serde_json::to_string(&entry).unwrap().contains("anthropic"));
        let account = entry.open(&key, &id).unwrap();
        assert_eq!(account.weight, 3);
        let Provider::Anthropic(api) = account.provider else {
            panic!()
        };
        assert_eq!(api.credential.value.unwrap().expose_secret(), "sk-hidden");
    }

    #[test]
    fn it_opens_under_its_name_and_revision_only() {
        let (key, id) = (MasterKey::generate(), "main".parse().unwrap());
        let entry = definition(&key, &id).entry(&key, &id, 7);
        let other = "other".parse().unwrap();
        assert_eq!(entry.open(&key, &other).unwrap_err(), EntryError::Sealed);
        let newer = Entry {
            revision: 8,
            ..entry
        };
        assert_eq!(newer.open(&key, &id).unwrap_err(), EntryError::Sealed);
    }

    #[test]
    fn a_secret_of_another_master_key_is_named() {
        let (old, new) = (MasterKey::generate(), MasterKey::generate());
        let id = "main".parse().unwrap();
        let entry = definition(&old, &id).entry(&new, &id, 7);
        let error = entry.open(&new, &id).unwrap_err();
        assert_eq!(error, EntryError::SecretSealed("api_key".into()));
        assert_eq!(entry.open(&old, &id).unwrap_err(), EntryError::Sealed);
    }
}
