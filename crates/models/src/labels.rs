//! Labels in a Hugging Face `config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Labels of a model whose configuration says nothing of them.
const UNSAID: usize = 2;

/// Number and names, from what a configuration says of either.
pub(crate) fn from_hf(
    number: Option<usize>,
    names: Option<BTreeMap<usize, String>>,
) -> (usize, BTreeMap<usize, String>) {
    let names = names.unwrap_or_default();
    let named = if names.is_empty() { UNSAID } else { names.len() };
    (number.unwrap_or(named), names)
}

/// Adds the keys that say the same.
pub(crate) fn to_hf(config: &mut Map<String, Value>, number: usize, names: &BTreeMap<usize, String>) {
    let name = |id| name(id, names);
    let id2label: BTreeMap<String, String> = (0..number).map(|id| (id.to_string(), name(id))).collect();
    let label2id: BTreeMap<String, usize> = (0..number).map(|id| (name(id), id)).collect();
    config.insert("id2label".to_owned(), json!(id2label));
    config.insert("label2id".to_owned(), json!(label2id));
    if number == 0 {
        // An empty `id2label` alone would mean the default number of labels.
        config.insert("num_labels".to_owned(), 0.into());
    }
}

pub(crate) fn name(id: usize, names: &BTreeMap<usize, String>) -> String {
    names.get(&id).cloned().unwrap_or_else(|| format!("LABEL_{id}"))
}
