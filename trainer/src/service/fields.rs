//! A document's fields, each looked at by itself, so that all that is wrong is told at once.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::spec::{Gate, Publish};
use crate::job::EvaluationData;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// All that is wrong with a document.
#[derive(Clone, Debug, Default)]
pub struct Faults(pub(super) Vec<Fault>);

impl Faults {
    /// Takes note of one.
    #[allow(clippy::needless_pass_by_value, reason = "sentences are made on the spot")]
    pub fn note(&mut self, field: &str, reason: impl ToString) {
        self.0.push(Fault { field: field.to_owned(), reason: reason.to_string() });
    }

    /// Whether something is wrong with one of `fields`, or with a part of it.
    #[must_use]
    pub fn concern(&self, fields: &[&str]) -> bool {
        let is_part = |part: &str| part.is_empty() || part.starts_with(['.', '[']);
        let concerns = |fault: &Fault, field: &str| fault.field.strip_prefix(field).is_some_and(is_part);
        self.0.iter().any(|fault| fields.iter().any(|field| concerns(fault, field)))
    }

    /// Whether `fault` is that of a field which is only for what another field asks for, and that one is wrong.
    #[must_use]
    pub fn is_why(&self, fault: &Fault) -> bool {
        let Some((_, wanted)) = fault.reason.split_once("is only for ") else { return false };
        let words: Vec<&str> = wanted.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        self.0.iter().any(|wrong| words.contains(&wrong.field.split('.').next().unwrap_or_default()))
    }

    /// `value`, if nothing is wrong.
    ///
    /// # Errors
    /// All that is.
    pub fn or<T>(self, value: Option<T>) -> Result<T, Vec<Fault>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "sentences are made on the spot")]
pub(super) fn fault(field: &str, reason: impl ToString) -> Fault {
    Fault { field: field.to_owned(), reason: reason.to_string() }
}

/// `fields` over `needed` as a `T`; of those that are no part of one, or not as they should be, each is named behind
/// `around`.
pub(super) fn each<T: for<'de> Deserialize<'de>>(
    fields: &Map<String, Value>,
    needed: &Map<String, Value>,
    around: &str,
    faults: &mut Faults,
) -> Option<T> {
    let mut all = needed.clone();
    for (field, value) in fields {
        let mut alone = needed.clone();
        alone.insert(field.clone(), value.clone());
        let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) else {
            all.insert(field.clone(), value.clone());
            continue;
        };
        let name = format!("{around}{field}");
        if is_wrong_inside(&name, value, faults) {
            continue;
        }
        let text = error.to_string();
        let unknown = text.starts_with(&format!("unknown field `{field}`"));
        faults.note(&name, if unknown { "there is no such field" } else { text.as_str() });
    }
    serde_json::from_value(Value::Object(all))
        .map_err(|error| together(&error.to_string(), around, faults))
        .ok()
}

/// Whether `value` has fields of its own, and something is wrong with some of them.
fn is_wrong_inside(name: &str, value: &Value, faults: &mut Faults) -> bool {
    let Value::Object(fields) = value else { return false };
    let (before, around) = (faults.0.len(), format!("{name}."));
    let none = Map::new();
    match name {
        "evaluation" => drop(each::<EvaluationData>(fields, &none, &around, faults)),
        "publish.gate" => drop(each::<Gate>(fields, &none, &around, faults)),
        "publish" => {
            if !fields.contains_key("alias") {
                faults.note("publish.alias", "it is missing");
            }
            let needed = Map::from_iter([("alias".to_owned(), json!("."))]);
            drop(each::<Publish>(fields, &needed, &around, faults));
        }
        _ => {}
    }
    faults.0.len() > before
}

/// Fields that are right by themselves are not together: one was given by two of its names.
fn together(error: &str, around: &str, faults: &mut Faults) {
    match error.split('`').nth(1).filter(|_| error.starts_with("duplicate field")) {
        Some(field) => faults.note(&format!("{around}{field}"), "it is given twice, by two of its names"),
        None => faults.note("spec", error),
    }
}
