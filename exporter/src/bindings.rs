//! The bindings of a Worker as environment variables.

use crate::env;
use crate::log::log_warning;
use js_sys::Reflect;
use std::collections::HashMap;
use wasm_bindgen::JsValue;
use worker::Env;

/// The values of all variables that are set.
pub(crate) fn read(env: &Env) -> HashMap<&'static str, String> {
    let mut values = HashMap::new();
    for variable in env::variables() {
        let binding = Reflect::get(env, &variable.into()).unwrap_or_default();
        if binding.is_undefined() || binding.is_null() {
            continue;
        }
        if let Some(text) = text(&binding) {
            values.insert(variable, text);
        } else {
            log_warning!(
                name: "DirectExporter.BindingIgnored",
                variable = variable,
                message = "neither text nor number nor boolean"
            );
        }
    }
    values
}

fn text(binding: &JsValue) -> Option<String> {
    let number = || binding.as_f64().map(|number| number.to_string());
    let boolean = || binding.as_bool().map(|boolean| boolean.to_string());
    binding.as_string().or_else(number).or_else(boolean)
}
