//! A foreign request, taken apart field by field: what is known is taken out, and the rest is the
//! provider's.

use std::marker::PhantomData;

use serde_json::{Map, Value};

use super::fault::Fault;
use crate::http::{
    json,
    problem::{Code, clip},
};

/// The fields of a request that nobody has taken yet.
#[derive(Debug)]
pub(in crate::http) struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of a body, without those that are null.
    pub(in crate::http) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut fields = json::parse(bytes, PhantomData::<Map<String, Value>>, Code::InvalidJob)?;
        fields.retain(|_, value| !value.is_null());
        Ok(Self(fields))
    }

    /// Takes a field out, whatever it is.
    pub(in crate::http) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Takes a text out.
    pub(in crate::http) fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// Takes a text out that must be there.
    pub(in crate::http) fn needed_text(&mut self, name: &str) -> Result<String, Fault> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    /// Takes a truth out; what is not there is false.
    pub(in crate::http) fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Takes an array out.
    pub(in crate::http) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong(name, "an array", &other)),
        }
    }

    /// Takes an object out.
    pub(in crate::http) fn object(&mut self, name: &str) -> Result<Option<Self>, Fault> {
        self.take(name)
            .map(|value| Self::of(name, value))
            .transpose()
    }

    /// The fields of the object at `path`.
    pub(in crate::http) fn of(path: &str, value: Value) -> Result<Self, Fault> {
        match value {
            Value::Object(mut fields) => {
                fields.retain(|_, value| !value.is_null());
                Ok(Self(fields))
            }
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// Refuses fields that nobody has taken.
    pub(in crate::http) fn none_left(&self, path: &str) -> Result<(), Fault> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Fault::unsupported(
                format!("{path}.{name}"),
                "is not carried by Sluice",
            )),
        }
    }

    /// What is left, for the provider.
    pub(in crate::http) fn rest(self) -> Map<String, Value> {
        self.0
    }
}

/// A field that must be there is not.
pub(in crate::http) fn missing(name: &str) -> Fault {
    Fault::invalid(name, "is missing")
}

/// A field is of another kind than it must be.
pub(in crate::http) fn wrong(name: &str, expected: &str, found: &Value) -> Fault {
    let found = match found {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => clip(&number.to_string()),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    Fault::invalid(name, format!("is {found}, expected {expected}"))
}
