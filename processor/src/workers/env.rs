//! Settings from a Worker's bindings: it has no process environment.

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use percent_encoding::percent_decode_str;
use worker::Env;
use worker::js_sys::Reflect;
use worker::wasm_bindgen::JsValue;

use crate::config::Config;

impl Config {
    /// The settings in the bindings of a Worker, by the same names as in an environment, and the defaults for all others.
    ///
    /// A binding may be text, a number or a boolean, a plain variable or a secret. One of any other kind is ignored.
    #[must_use]
    pub fn from_worker_env(env: &Env) -> Self {
        Self::from_lookup(|name| binding(env, name))
    }
}

/// The text of a binding, if there is one that has a text.
pub(super) fn binding(env: &Env, name: &str) -> Option<String> {
    let value = Reflect::get(env, &JsValue::from_str(name)).ok()?;
    value
        .as_string()
        .or_else(|| value.as_f64().map(|number| number.to_string()))
        .or_else(|| value.as_bool().map(|boolean| boolean.to_string()))
}

/// What the bindings say of the resource: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) fn resource(env: &Env) -> Resource {
    let attributes = binding(env, "OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let builder = Resource::builder().with_attributes(parse_attributes(&attributes));
    match binding(env, "OTEL_SERVICE_NAME").filter(|name| !name.trim().is_empty()) {
        Some(name) => builder.with_service_name(name).build(),
        None => builder.build(),
    }
}

/// The same, and what tells this isolate from others, unless the bindings name something.
pub(crate) fn resource_of_instance(env: &Env) -> Resource {
    let resource = resource(env);
    if resource.get(&INSTANCE).is_some() {
        return resource;
    }
    let attributes = resource.iter();
    let attributes = attributes.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let instance = KeyValue::new(INSTANCE, instance_id());
    let builder = Resource::builder_empty().with_attributes(attributes.chain([instance]));
    builder.build()
}

const INSTANCE: Key = Key::from_static_str("service.instance.id");

/// A UUID of version 4.
fn instance_id() -> String {
    let mut id = RandomIdGenerator::default().new_trace_id().to_bytes();
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let hex = |part: &[u8]| -> String { part.iter().map(|byte| format!("{byte:02x}")).collect() };
    let parts = [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]];
    parts.map(hex).join("-")
}

/// `name=value,name=value` with percent-encoded values. What is not that is left out.
fn parse_attributes(list: &str) -> Vec<KeyValue> {
    let attribute = |entry: &str| {
        let (name, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some(KeyValue::new(name.trim().to_owned(), value.into_owned()))
    };
    list.split(',').filter_map(attribute).collect()
}
