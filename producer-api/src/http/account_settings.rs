//! What a request says about an account: which settings may be shown, which are secrets, and
//! whether all of it together is an account. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sluice_shared::{
    config::{AccountConfig, SettingError},
    domain::AccountId,
    roll::SECRETS,
};

use super::{
    json::plain_words,
    problem::{ApiError, Code},
};

/// Settings that say where a secret goes or who can read it there. To change one of them under a
/// secret that is kept would be a way to read the secret back.
const HOLD_SECRETS: [&str; 7] = [
    "provider",
    "base_url",
    "bin",
    "config_dir",
    "argv",
    "pass_env",
    "allow_tools",
];

/// All settings of an account together, as JSON, in bytes.
const MOST_BYTES: usize = 64 * 1024;

/// Models of an account, and tags.
const MOST_NAMES: usize = 200;

/// Longest name of a model or a tag, in bytes.
const MOST_NAME: usize = 200;

/// Settings that were checked, and the secrets that came with them.
pub(super) struct Checked {
    pub(super) account: AccountConfig,
    /// Fit to be shown.
    pub(super) settings: Map<String, Value>,
    /// The secrets that were given now, by name.
    pub(super) new_secrets: BTreeMap<String, Value>,
    /// The secrets kept from before, by name, sealed.
    pub(super) kept_secrets: BTreeMap<String, String>,
}

/// An account's settings after a change: what is `given` wins, and `null` takes a setting away. A
/// new account is a change of nothing.
pub(super) fn change(
    id: &AccountId,
    before: &Map<String, Value>,
    mut kept_secrets: BTreeMap<String, String>,
    given: Map<String, Value>,
) -> Result<Checked, ApiError> {
    let mut settings = before.clone();
    let mut new_secrets = BTreeMap::new();
    for (name, value) in given {
        let is_secret = SECRETS.contains(&name.as_str());
        if is_secret {
            kept_secrets.remove(&name);
        }
        match value {
            Value::Null => {
                settings.remove(&name);
            }
            Value::String(text) if is_secret && text.trim().is_empty() => {
                return Err(invalid(&SettingError::new(name, "holds nothing")));
            }
            value if is_secret => {
                new_secrets.insert(name, value);
            }
            value => {
                settings.insert(name, value);
            }
        }
    }
    if let Some(name) = kept_secrets.keys().next() {
        let moved = HOLD_SECRETS
            .into_iter()
            .find(|holder| before.get(*holder) != settings.get(*holder));
        if let Some(holder) = moved {
            let problem = format!(
                "cannot be changed alone: give `{name}` again with it, since a secret that is kept \
                 goes nowhere else than where it was given for"
            );
            return Err(invalid(&SettingError::new(holder, problem)));
        }
    }
    let mut whole = settings.clone();
    for name in kept_secrets.keys() {
        // Sealed: that there is one is all that the rules ask.
        let stand_in = if name == "env" { json!({}) } else { json!("*") };
        whole.insert(name.clone(), stand_in);
    }
    whole.extend(new_secrets.clone());
    let account = account(id, whole).map_err(|error| invalid(&error))?;
    Ok(Checked {
        account,
        settings,
        new_secrets,
        kept_secrets,
    })
}

fn account(id: &AccountId, whole: Map<String, Value>) -> Result<AccountConfig, SettingError> {
    let bytes = Value::Object(whole.clone()).to_string().len();
    if bytes > MOST_BYTES {
        let problem = format!("all settings together have {bytes} bytes; the most is {MOST_BYTES}");
        return Err(SettingError::new("", problem));
    }
    let account = AccountConfig::from_settings(id, whole)?;
    for (key, names) in [("models", &account.models), ("tags", &account.tags)] {
        if names.len() > MOST_NAMES {
            let problem = format!("are {}; the most is {MOST_NAMES}", names.len());
            return Err(SettingError::new(key, problem));
        }
        let is_none = |name: &String| {
            name.trim().is_empty() || name.len() > MOST_NAME || name.contains(char::is_control)
        };
        if let Some(at) = names.iter().position(is_none) {
            let problem = format!("is empty, longer than {MOST_NAME} bytes, or not on one line");
            return Err(SettingError::new(format!("{key}[{at}]"), problem));
        }
    }
    if let Some(url) = account.provider.base_url()
        && (!url.username().is_empty() || url.password().is_some())
    {
        let problem = "may hold no user and no password; give a key as `api_key`";
        return Err(SettingError::new("base_url", problem));
    }
    Ok(account)
}

fn invalid(error: &SettingError) -> ApiError {
    let field = match error.key.as_str() {
        "" => "body",
        key => key,
    };
    ApiError::field(Code::InvalidAccount, field, plain_words(&error.problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!() };
        map
    }

    fn new(settings: Value) -> Result<Checked, ApiError> {
        let id = "a".parse().unwrap();
        change(&id, &Map::new(), BTreeMap::new(), object(settings))
    }

    fn at_fault(refused: Result<Checked, ApiError>) -> String {
        let error = refused.err().expect("it is refused");
        assert_eq!(error.code(), Code::InvalidAccount);
        assert!(
            !format!("{error:?}").contains("hunter2"),
            "{error:?} shows a secret"
        );
        error.errors()[0].field.clone()
    }

    #[test]
    fn secrets_are_taken_apart() {
        let checked = new(json!({
            "provider": "openai", "api_key": "sk-x", "weight": 2, "default_model": null,
        }));
        let checked = checked.ok().unwrap();
        assert_eq!(
            Value::Object(checked.settings),
            json!({"provider": "openai", "weight": 2})
        );
        assert_eq!(
            checked.new_secrets,
            [("api_key".into(), json!("sk-x"))].into()
        );
        assert_eq!(checked.account.weight, 2);
    }

    #[test]
    fn a_setting_that_cannot_be_is_named_and_a_secret_is_not_repeated() {
        for (settings, field) in [
            (json!({}), "provider"),
            (json!({"provider": "hal"}), "provider"),
            (json!({"provider": 7}), "provider"),
            (json!({"provider": "simulated", "latncy": "1s"}), "latncy"),
            (
                json!({"provider": "simulated", "latency": "fast"}),
                "latency",
            ),
            (json!({"provider": "simulated", "weight": 0}), "weight"),
            (json!({"provider": "simulated", "weight": "x"}), "weight"),
            (json!({"provider": "simulated", "tags": [""]}), "tags[0]"),
            (
                json!({"provider": "simulated", "api_key": "hunter2"}),
                "api_key",
            ),
            (json!({"provider": "anthropic"}), "api_key_env"),
            (
                json!({"provider": "anthropic", "api_key": ["hunter2"]}),
                "api_key",
            ),
            (json!({"provider": "anthropic", "api_key": " "}), "api_key"),
            (
                json!({"provider": "openai", "base_url": "http://u:hunter2@host"}),
                "base_url",
            ),
            (json!({"provider": "command"}), "argv"),
            (
                json!({"provider": "command", "argv": ["a"], "env": {"A": {"hunter2": 1}}}),
                "env",
            ),
            (
                json!({"provider": "claude-cli", "password": "hunter2"}),
                "password",
            ),
        ] {
            let named = at_fault(new(settings.clone()));
            assert!(named.starts_with(field), "{settings}: {named}");
        }
    }

    #[test]
    fn a_kept_secret_goes_nowhere_else() {
        let id = "a".parse().unwrap();
        let before = object(json!({"provider": "openai", "base_url": "http://good"}));
        let kept: BTreeMap<String, String> = [("api_key".into(), "v1.x".into())].into();
        let turn = |given| change(&id, &before, kept.clone(), object(given));
        let moved = json!({"base_url": "http://evil"});
        assert_eq!(at_fault(turn(moved)), "base_url");
        assert_eq!(at_fault(turn(json!({"base_url": null}))), "base_url");
        let both = turn(json!({"base_url": "http://new", "api_key": "sk-new"}));
        assert!(both.ok().unwrap().kept_secrets.is_empty());
        let other = turn(json!({"weight": 4})).ok().unwrap();
        assert_eq!(other.kept_secrets, kept);
        let none = turn(json!({"base_url": "http://new", "api_key": null}));
        assert!(none.ok().unwrap().kept_secrets.is_empty());
    }
}
