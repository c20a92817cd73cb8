//! Credentials that were refused are left alone, each by itself.

use crate::support::{
    Collector, Received, Reply, builder, check_account, context_with, export, export_under,
    exporter, spans,
};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_otlp_direct::FailureReason::{CircuitOpen, Unauthorized};
use std::time::Duration;

fn refusing(token: &'static str, status: u16) -> Collector {
    Collector::answering(move |request: &Received, _| {
        let refused = request.header("authorization") == Some(token);
        Reply::status(if refused { status } else { 200 })
    })
}

/// Scenario: the token of one tenant is bad, that of another is good; both export again and again.
/// Guarantees: the bad one is sent once and then left alone, counted; the good one always arrives.
#[test]
fn refused_token_is_left_alone_and_never_stops_another() {
    for status in [401, 403] {
        let collector = refusing("Bearer bad", status);
        let exporter = exporter(&collector);
        let (bad, good) = (
            ExportToken::new("bad").unwrap(),
            ExportToken::new("good").unwrap(),
        );
        for _ in 0..3 {
            export_under(context_with(&bad), &exporter, spans(1)).unwrap_err();
            export_under(context_with(&good), &exporter, spans(1)).unwrap();
            export(&exporter, spans(1)).unwrap();
        }
        let authorizations = collector.authorizations();
        let sent = |token: &str| {
            authorizations
                .iter()
                .flatten()
                .filter(|a| *a == token)
                .count()
        };
        assert_eq!((sent("Bearer bad"), sent("Bearer good")), (1, 3));
        check_account(&exporter, 6, &[(Unauthorized, 1), (CircuitOpen, 2)]);
    }
}

/// Scenario: a refused token is refreshed.
/// Guarantees: the next export is sent at once.
#[test]
fn refreshed_token_is_tried_at_once() {
    let collector = refusing("Bearer stale", 401);
    let exporter = exporter(&collector);
    let token = ExportToken::new("stale").unwrap();
    let cx = context_with(&token);
    export_under(cx.clone(), &exporter, spans(1)).unwrap_err();
    let error = export_under(cx.clone(), &exporter, spans(1)).unwrap_err();
    assert!(error.to_string().contains("not sent"), "{error}");
    token.update("fresh").unwrap();
    export_under(cx, &exporter, spans(1)).unwrap();
    check_account(&exporter, 1, &[(Unauthorized, 1), (CircuitOpen, 1)]);
}

/// Scenario: the configured header is refused, a token in the context is not.
/// Guarantees: the token wins over the header, and the header's circuit does not stop it.
#[test]
fn token_wins_over_the_configured_header() {
    let collector = refusing("Bearer configured", 401);
    let exporter = builder(&collector.endpoint())
        .with_header("Authorization", "Bearer configured")
        .build()
        .unwrap();
    export(&exporter, spans(1)).unwrap_err();
    export(&exporter, spans(1)).unwrap_err();
    let token = ExportToken::new("token").unwrap();
    export_under(context_with(&token), &exporter, spans(1)).unwrap();
    let expected = ["Bearer configured", "Bearer token"].map(|token| Some(token.to_owned()));
    assert_eq!(collector.authorizations(), expected);
}

/// Scenario: a cooldown of zero.
/// Guarantees: refused credentials are sent each time.
#[test]
fn zero_cooldown_sends_each_time() {
    let collector = Collector::answering(|_, _| Reply::status(401));
    let exporter = builder(&collector.endpoint())
        .with_circuit_cooldown(Duration::ZERO)
        .build()
        .unwrap();
    export(&exporter, spans(1)).unwrap_err();
    export(&exporter, spans(1)).unwrap_err();
    assert_eq!(collector.received().len(), 2);
    check_account(&exporter, 0, &[(Unauthorized, 2)]);
}
