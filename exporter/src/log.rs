//! Where the exporter says what is wrong.
//!
//! Natively it goes to `tracing`, by way of OpenTelemetry's own macros. In Workers it goes to the console as one line:
//! there is rarely a subscriber there, and one that exports spans itself would be entered again.

#[cfg(not(target_family = "wasm"))]
macro_rules! log_warning {
    ($($event:tt)*) => {
        opentelemetry::otel_warn!($($event)*)
    };
}

/// Something was lost.
#[cfg(not(target_family = "wasm"))]
macro_rules! log_failure {
    ($($event:tt)*) => {
        opentelemetry::otel_warn!($($event)*)
    };
}

#[cfg(target_family = "wasm")]
macro_rules! log_warning {
    (name: $name:expr, $($key:ident = $value:expr),+ $(,)?) => {
        $crate::log::console::warn(&$crate::log::line($name, &[$((stringify!($key), &$value)),+]))
    };
}

/// Something was lost.
#[cfg(target_family = "wasm")]
macro_rules! log_failure {
    (name: $name:expr, $($key:ident = $value:expr),+ $(,)?) => {
        $crate::log::console::error(&$crate::log::line($name, &[$((stringify!($key), &$value)),+]))
    };
}

pub(crate) use {log_failure, log_warning};

/// An event on one line, whatever is in its values.
#[cfg(any(test, target_family = "wasm"))]
pub(crate) fn line(name: &str, fields: &[(&str, &dyn std::fmt::Debug)]) -> String {
    use std::fmt::Write;

    let mut line = format!("{}: {name}", env!("CARGO_PKG_NAME"));
    for (key, value) in fields {
        // Writing to memory does not fail.
        let _ = write!(line, " {key}={value:?}");
    }
    line
}

#[cfg(target_family = "wasm")]
pub(crate) mod console {
    use wasm_bindgen::JsValue;
    use wasm_bindgen::prelude::wasm_bindgen;

    pub(crate) fn warn(line: &str) {
        let _ = console_warn(line);
    }

    pub(crate) fn error(line: &str) {
        let _ = console_error(line);
    }

    // An application can replace these functions by ones that throw.
    #[wasm_bindgen]
    extern "C" {
        #[wasm_bindgen(catch, js_namespace = console, js_name = warn)]
        fn console_warn(line: &str) -> Result<(), JsValue>;

        #[wasm_bindgen(catch, js_namespace = console, js_name = error)]
        fn console_error(line: &str) -> Result<(), JsValue>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: numbers, and texts with quotes and line breaks.
    /// Guarantees: one line that starts with the crate's name, each value told apart from the next.
    #[test]
    fn event_is_one_line_that_starts_with_the_name_of_the_crate() {
        let fields: [(&str, &dyn std::fmt::Debug); 3] =
            [("status", &500), ("error", &"a \"b\"\nc"), ("text", &"")];
        assert_eq!(
            line("Some.Event", &fields),
            r#"opentelemetry-otlp-direct: Some.Event status=500 error="a \"b\"\nc" text="""#
        );
    }
}
