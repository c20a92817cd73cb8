//! Lines on the console of the Worker, where its user looks. Not through `tracing`: a subscriber there may be one that makes
//! spans, and would come back to us.

use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

// An application can replace these functions by ones that throw.
#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_namespace = console, js_name = error)]
    fn console_error(line: &str) -> Result<(), JsValue>;

    #[wasm_bindgen(catch, js_namespace = console, js_name = warn)]
    fn console_warn(line: &str) -> Result<(), JsValue>;

    #[wasm_bindgen(catch, js_namespace = console, js_name = log)]
    fn console_log(line: &str) -> Result<(), JsValue>;
}

pub(crate) fn error(line: &str) {
    let _ = console_error(&named(line));
}

pub(crate) fn warn(line: &str) {
    let _ = console_warn(&named(line));
}

pub(crate) fn log(line: &str) {
    let _ = console_log(&named(line));
}

/// One line, whatever is in it, that says whose it is.
fn named(line: &str) -> String {
    let line = line.replace(['\n', '\r'], " ");
    format!("{}: {line}", env!("CARGO_PKG_NAME"))
}
