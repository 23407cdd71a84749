//! What deliveries are signed with: 32 random bytes, sealed with the master key where they are
//! kept, and bound to whom they sign for.

use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};
use sluice_shared::{
    domain::{Span, Time},
    seal::MasterKey,
};
use standardwebhooks::Webhook;
use uuid::Uuid;

use crate::store::SealedSecret;

/// What every secret begins with.
const PREFIX: &str = "whsec_";
const BYTES: usize = 32;

/// Secrets that may be valid at once.
const MOST_VALID: usize = 2;

/// A secret that is open.
#[derive(Clone, Debug)]
pub struct Secret(SecretString);

impl Secret {
    /// The secret in `text`, as [`fresh`] makes them.
    #[must_use]
    pub fn new(text: SecretString) -> Self {
        Self(text)
    }

    /// The signature of a body: `v1,` and what the libraries of Standard Webhooks compare. `None`
    /// when this is no secret.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &str) -> Option<String> {
        let webhook = Webhook::new(self.0.expose_secret()).ok()?;
        webhook.sign(id, timestamp, body.as_bytes()).ok()
    }
}

/// A new secret.
#[must_use]
pub fn fresh() -> SecretString {
    let bytes: [u8; BYTES] = rand::random();
    format!("{PREFIX}{}", STANDARD.encode(bytes)).into()
}

/// Seals a secret for an endpoint.
#[must_use]
pub fn sealed_for_webhook(key: &MasterKey, id: Uuid, secret: &SecretString) -> SealedSecret {
    seal(key, &webhook_context(id), secret)
}

/// Seals a secret for the webhooks that a client gives its jobs.
#[must_use]
pub fn sealed_for_client(key: &MasterKey, client: &str, secret: &SecretString) -> SealedSecret {
    seal(key, &client_context(client), secret)
}

/// Puts a new secret before those that there are; the one before it signs for `keep` longer.
pub fn rotate(secrets: &mut Vec<SealedSecret>, new: SealedSecret, keep: Span, now: Time) {
    let end = now + keep.0;
    for before in secrets.iter_mut() {
        before.until = Some(before.until.map_or(end, |until| until.min(end)));
    }
    secrets.retain(|secret| secret.is_valid(now));
    secrets.insert(0, new);
    secrets.truncate(MOST_VALID);
}

pub(super) fn open_for_webhook(key: &MasterKey, id: Uuid, sealed: &str) -> Option<Secret> {
    key.open(&webhook_context(id), sealed).ok().map(Secret)
}

pub(super) fn open_for_client(key: &MasterKey, client: &str, sealed: &str) -> Option<Secret> {
    key.open(&client_context(client), sealed).ok().map(Secret)
}

/// Those of the secrets that sign at `now` and can be opened, newest first.
pub(super) fn valid(
    sealed: &[SealedSecret],
    now: Time,
    open: impl Fn(&str) -> Option<Secret>,
) -> Vec<Secret> {
    let valid = sealed.iter().filter(|secret| secret.is_valid(now));
    valid.filter_map(|secret| open(&secret.sealed)).collect()
}

fn seal(key: &MasterKey, context: &[u8], secret: &SecretString) -> SealedSecret {
    SealedSecret {
        sealed: key.seal(context, secret.expose_secret().as_bytes()),
        until: None,
    }
}

fn webhook_context(id: Uuid) -> Vec<u8> {
    format!("sluice webhook secret\0{id}").into_bytes()
}

fn client_context(client: &str) -> Vec<u8> {
    format!("sluice webhook secret of a client\0{client}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(name: &str) -> SealedSecret {
        SealedSecret {
            sealed: name.into(),
            until: None,
        }
    }

    fn names(secrets: &[SealedSecret], at: i64) -> Vec<&str> {
        let valid = secrets
            .iter()
            .filter(|secret| secret.is_valid(Time::from_millis(at)));
        valid.map(|secret| secret.sealed.as_str()).collect()
    }

    #[test]
    fn two_secrets_sign_while_one_takes_the_place_of_the_other() {
        let mut secrets = vec![sealed("a")];
        let (at, day) = (Time::from_millis(0), Span::from_millis(100));
        rotate(&mut secrets, sealed("b"), day, at);
        assert_eq!(names(&secrets, 99), ["b", "a"]);
        assert_eq!(names(&secrets, 100), ["b"]);
        rotate(&mut secrets, sealed("c"), day, Time::from_millis(50));
        assert_eq!(names(&secrets, 99), ["c", "b"]);
        rotate(
            &mut secrets,
            sealed("d"),
            Span::from_millis(0),
            Time::from_millis(60),
        );
        assert_eq!(names(&secrets, 61), ["d"]);
    }

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned().into());
        let body = r#"{"test": 2432232314}"#;
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(
            signature.as_deref(),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
    }

    #[test]
    fn a_seal_opens_for_its_own_endpoint_only() {
        let key = MasterKey::generate();
        let (id, secret) = (Uuid::now_v7(), fresh());
        let sealed = sealed_for_webhook(&key, id, &secret).sealed;
        assert!(open_for_webhook(&key, id, &sealed).is_some());
        assert!(open_for_webhook(&key, Uuid::now_v7(), &sealed).is_none());
        assert!(open_for_client(&key, &id.to_string(), &sealed).is_none());
        assert!(!format!("{secret:?}{:?}", Secret::new(secret.clone())).contains(PREFIX));
    }
}
