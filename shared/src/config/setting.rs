//! A setting of an account that cannot be, and why.

use std::fmt;

/// A setting of an account that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The setting; empty when it is about the whole.
    pub key: String,
    /// What is wrong with it, and what to do. Never repeats a secret.
    pub problem: String,
}

impl SettingError {
    /// A bad value at `key`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => f.write_str(&self.problem),
            key => write!(f, "{key}: {}", self.problem),
        }
    }
}

impl std::error::Error for SettingError {}

impl From<String> for SettingError {
    /// From `key: problem`.
    fn from(text: String) -> Self {
        match text.split_once(": ") {
            Some((key, problem)) if !key.contains(' ') => Self::new(key, problem),
            _ => Self::new("", text),
        }
    }
}
