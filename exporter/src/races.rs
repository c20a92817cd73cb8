//! Race models: two threads do what may happen at the same moment, and loom tries every interleaving of the locks that
//! exports share, a token's and that of the circuits. `cargo xtask races` runs them.
//!
//! The delivery is the real one, with a scripted client and without a timeout, which would be a timer's.

use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response, StatusCode, header};
use loom::thread;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::ExportToken;
use crate::delivery::{Body, Delivery, Limits};
use crate::endpoint::Endpoint;
use crate::error::ExportError;
use crate::retry::RetryPolicy;
use crate::signal::Signal;
use crate::sync::Mutex;

const OLD: &str = "Bearer old";
const NEW: &str = "Bearer new";

/// Answers 401 to one credential and 200 to all others, with the credential for a body.
#[derive(Debug)]
struct Scripted {
    refuses: &'static str,
    /// Part of the model, so that other threads get ahead while a request is under way.
    requests: Mutex<usize>,
}

#[async_trait::async_trait]
impl HttpClient for Scripted {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let credential = &request.headers()[header::AUTHORIZATION];
        let credential = credential.to_str()?.to_owned();
        let mut response = Response::new(Bytes::from(credential.clone()));
        if credential == self.refuses {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        *self.requests.lock().expect("not poisoned") += 1;
        Ok(response)
    }
}

/// One exporter, and the token of one request.
struct Model {
    client: Arc<Scripted>,
    delivery: Delivery,
    token: ExportToken,
}

impl Model {
    fn new(refuses: &'static str) -> Arc<Self> {
        let client = Arc::new(Scripted {
            refuses,
            requests: Mutex::new(0),
        });
        let limits = Limits {
            timeout: None,
            retry: RetryPolicy::default(),
            circuit_cooldown: Duration::from_secs(3600),
        };
        let endpoint = Endpoint::by_default(Signal::Traces).expect("the default is an endpoint");
        Arc::new(Self {
            delivery: Delivery::new(client.clone(), endpoint, HeaderMap::new(), limits),
            client,
            token: token("old"),
        })
    }

    /// Exports, and says with what credential.
    fn export(&self) -> Result<Bytes, ExportError> {
        self.export_with(&self.token)
    }

    fn export_with(&self, token: &ExportToken) -> Result<Bytes, ExportError> {
        let body = Body {
            bytes: Bytes::from_static(b"spans"),
            gzip: false,
        };
        let cx = token.attach_to(&Context::new());
        let mut budget = self.delivery.budget();
        let delivered = self.delivery.deliver(&cx, &body, &mut budget, |_| {});
        let result = delivered.now_or_never();
        let response = result.expect("the client answers at once")?;
        Ok(response.into_body())
    }

    fn requests(&self) -> usize {
        *self.client.requests.lock().expect("not poisoned")
    }
}

fn text(sent: &Bytes) -> &str {
    std::str::from_utf8(sent).expect("a header")
}

fn token(token: &str) -> ExportToken {
    ExportToken::new(token).expect("a header can carry it")
}

fn also(model: &Arc<Model>, run: impl FnOnce(&Model) + 'static) -> thread::JoinHandle<()> {
    let model = model.clone();
    thread::spawn(move || run(&model))
}

/// Scenario: a token is updated on one thread while two exports in a row read it on another.
/// Guarantees: each sends the old one or the new one, whole; never the old one after the new one; and whatever begins after
/// the update sends the new one.
#[test]
fn updated_token_replaces_the_old_one_at_once_and_for_good() {
    loom::model(|| {
        let model = Model::new("nothing");
        let exports = also(&model, |model| {
            let sent = [model.export(), model.export()].map(|sent| sent.expect("delivered"));
            let possible =
                [[OLD, OLD], [OLD, NEW], [NEW, NEW]].contains(&[text(&sent[0]), text(&sent[1])]);
            assert!(possible, "{sent:?}");
        });
        model.token.update("new").expect("a header can carry it");
        assert_eq!(model.export().expect("delivered"), NEW);
        exports.join().expect("no panic");
    });
}

/// Scenario: two threads update a token, and a third has a clone of it.
/// Guarantees: one of the two stays, and all clones say the same.
#[test]
fn last_of_two_updates_stays_for_all_clones() {
    loom::model(|| {
        let token = token("old");
        let clone = token.clone();
        let other = token.clone();
        let updates = thread::spawn(move || other.update("one").is_ok());
        assert!(token.update("two").is_ok());
        let seen = clone.header();
        assert!(updates.join().expect("no panic"));
        let last = token.header();
        assert!(["Bearer one", "Bearer two"].iter().any(|one| last == one));
        assert_ne!(seen, OLD);
        assert_eq!(clone.header(), last);
    });
}

/// Scenario: a token is updated while an export under its old value is being refused.
/// Guarantees: the next export is sent with the new value: the circuit of the old one does not hold it up.
#[test]
fn refused_token_that_was_refreshed_meanwhile_is_tried_at_once() {
    loom::model(|| {
        let model = Model::new(OLD);
        let exports = also(&model, |model| match model.export() {
            Ok(sent) => assert_eq!(sent, NEW),
            Err(ExportError::Status { status, .. }) => {
                assert_eq!(status, StatusCode::UNAUTHORIZED);
            }
            Err(error) => panic!("{error}"),
        });
        model.token.update("new").expect("a header can carry it");
        assert!(model.export().is_ok());
        exports.join().expect("no panic");
        assert!(model.export().is_ok());
    });
}

/// Scenario: two exports under a credential that is refused, and one under another, at the same moment.
/// Guarantees: the refused one is sent at most once for each of its exports, and not again; the other never notices.
#[test]
fn refused_credential_stops_its_own_exports_and_no_other() {
    loom::model(|| {
        let model = Model::new(OLD);
        let again = also(&model, |model| assert!(refused(model.export())));
        let other = also(&model, |model| {
            assert!(model.export_with(&token("new")).is_ok());
        });
        assert!(refused(model.export()));
        again.join().expect("no panic");
        other.join().expect("no panic");
        let requests = model.requests();
        assert!((2..=3).contains(&requests), "{requests}");
        let stopped = model.export();
        let open = matches!(stopped, Err(ExportError::CircuitOpen { .. }));
        assert!(open, "{stopped:?}");
        assert_eq!(model.requests(), requests);
    });
}

/// Whether an export failed because its credential was refused, now or before.
fn refused(result: Result<Bytes, ExportError>) -> bool {
    matches!(
        result,
        Err(ExportError::Status { .. } | ExportError::CircuitOpen { .. })
    )
}
