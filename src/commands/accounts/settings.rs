//! The settings of an account on the command line, and its secrets beside it: what stands in a
//! command line can be read by everyone on the machine.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use serde_json::{Map, Value};
use sluice_shared::roll::SECRETS;

use crate::Failure;

/// The settings of an account.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Settings {
    /// A model that it offers; may be given again [default: any]
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,

    /// A tag that jobs can ask for; may be given again
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,

    /// Prompts at once, at most [default: 8]
    #[arg(long, value_name = "N")]
    max_concurrency: Option<u32>,

    /// Its share under the weighted strategy [default: 1]
    #[arg(long, value_name = "N")]
    weight: Option<u32>,

    /// Any other setting, such as `base_url=http://gpu:8000` or `latency=1s`; a value in JSON is
    /// taken as JSON. May be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// A secret (api_key, oauth_token, env), read from a file, or from standard input for `-`; of
    /// env it is a JSON object. May be given again
    #[arg(long = "secret", value_name = "KEY=FILE")]
    secrets: Vec<String>,

    /// A secret, read from a variable of this command. May be given again
    #[arg(long = "secret-env", value_name = "KEY=VARIABLE")]
    secret_variables: Vec<String>,
}

impl Settings {
    /// All of it, as the API takes it.
    pub(super) fn read(&self) -> Result<Map<String, Value>, Failure> {
        let mut settings = Map::new();
        let lists = [("models", &self.models), ("tags", &self.tags)];
        for (key, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            settings.insert(key.into(), names.clone().into());
        }
        let numbers = [
            ("max_concurrency", self.max_concurrency),
            ("weight", self.weight),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                settings.insert(key.into(), number.into());
            }
        }
        for pair in &self.set {
            let (key, value) = pair_of("--set", pair)?;
            if SECRETS.contains(&key) {
                return Err(Failure::usage(format!(
                    "--set {key}: others on this machine can read a command line; use --secret \
                     {key}=FILE, --secret {key}=- or --secret-env {key}=VARIABLE"
                )));
            }
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            settings.insert(key.into(), value);
        }
        for pair in &self.secrets {
            let (key, file) = pair_of("--secret", pair)?;
            let text = match file {
                "-" => io::read_to_string(io::stdin().lock().take(MOST_SECRET)),
                path => fs::read_to_string(Path::new(path)),
            };
            let text = text.map_err(|source| Failure::Io {
                what: format!("--secret {key}: {file}"),
                source,
            })?;
            settings.insert(key.into(), secret(key, &text)?);
        }
        for pair in &self.secret_variables {
            let (key, name) = pair_of("--secret-env", pair)?;
            let text = std::env::var(name)
                .map_err(|_| Failure::usage(format!("--secret-env {key}: {name} is not set")))?;
            settings.insert(key.into(), secret(key, &text)?);
        }
        Ok(settings)
    }
}

/// A secret that is longer is none.
const MOST_SECRET: u64 = 1 << 20;

fn pair_of<'a>(flag: &str, pair: &'a str) -> Result<(&'a str, &'a str), Failure> {
    // Not the text itself in the message: someone may have put a secret there.
    pair.split_once('=')
        .filter(|(key, value)| !key.is_empty() && !value.is_empty())
        .ok_or_else(|| Failure::usage(format!("{flag}: write KEY=VALUE")))
}

fn secret(key: &str, text: &str) -> Result<Value, Failure> {
    if !SECRETS.contains(&key) {
        let known = SECRETS.join(", ");
        return Err(Failure::usage(format!(
            "`{key}` is no secret; these are: {known}"
        )));
    }
    if key == "env" {
        return serde_json::from_str(text)
            .map_err(|_| Failure::usage("the secret `env` is not a JSON object of texts"));
    }
    Ok(text.trim().into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    fn read(line: &[&str]) -> Result<Value, Failure> {
        let line = Line::parse_from(["x"].iter().chain(line));
        line.settings.read().map(Value::Object)
    }

    #[test]
    fn settings_are_read_as_the_api_takes_them() {
        let settings = read(&[
            "--model",
            "m1",
            "--model",
            "m2",
            "--weight",
            "3",
            "--set",
            "tokens=5",
            "--set",
            "latency=1s",
            "--set",
            "argv=[\"cat\"]",
        ]);
        assert_eq!(
            settings.unwrap(),
            json!({
                "models": ["m1", "m2"], "weight": 3, "tokens": 5, "latency": "1s", "argv": ["cat"],
            })
        );
    }

    #[test]
    fn a_secret_is_read_from_a_file_and_never_from_the_command_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "sk-x\n").unwrap();
        let argument = format!("api_key={}", file.path().display());
        assert_eq!(
            read(&["--secret", &argument]).unwrap(),
            json!({"api_key": "sk-x"})
        );
        for line in [
            ["--set", "api_key=sk-hidden"],
            ["--secret", "sk-hidden"],
            ["--secret-env", "sk-hidden"],
        ] {
            let error = read(&line).unwrap_err().to_string();
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
