//! gRPC as the semantic conventions for RPC see it: names of methods and of status codes.

use ::http::{HeaderMap, Uri, header};

/// Whether these are the headers of a gRPC request. Not those of gRPC-Web, whose trailers are inside of the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return false;
    };
    match kind.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';' | b' ')),
        None => false,
    }
}

/// The method that is called: the path, without what stands before it.
pub(crate) fn method(uri: &Uri) -> String {
    let path = uri.path();
    path.strip_prefix('/').unwrap_or(path).to_owned()
}

/// What `grpc-status` says, in the headers of a response or in its trailers. `None` if it is not there.
pub(crate) fn status(headers: &HeaderMap) -> Option<&'static str> {
    let code = headers.get("grpc-status")?.to_str().ok();
    let name = code.and_then(|code| NAMES.get(code.parse::<usize>().ok()?));
    Some(name.copied().unwrap_or("UNKNOWN"))
}

/// Whether a server is to blame.
pub(crate) fn is_server_error(status: &str) -> bool {
    matches!(
        status,
        "UNKNOWN"
            | "DEADLINE_EXCEEDED"
            | "UNIMPLEMENTED"
            | "INTERNAL"
            | "UNAVAILABLE"
            | "DATA_LOSS"
    )
}

/// By their codes.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;

    /// Scenario: headers as gRPC, gRPC-Web, other clients and broken ones send them.
    /// Guarantees: only gRPC is taken for it, and each status has its name; what is none is `UNKNOWN`.
    #[test]
    fn status_codes_have_the_names_of_the_conventions() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        for (code, expected) in [
            ("0", "OK"),
            ("1", "CANCELLED"),
            ("5", "NOT_FOUND"),
            ("16", "UNAUTHENTICATED"),
            ("17", "UNKNOWN"),
            ("-1", "UNKNOWN"),
            ("ok", "UNKNOWN"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from_static(code));
            assert_eq!(status(&headers), Some(expected), "{code}");
        }
        assert_eq!(status(&HeaderMap::new()), None);
    }
}
