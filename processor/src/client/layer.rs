//! What a user sets, and the ways in.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};

use ::http::header;
use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tower_layer::Layer;

use super::describe::{Call, client_span};
use super::headers::{inject_with, is_traced};
use super::message::OutgoingRequest;
use super::service::{Calling, Client, ClientFuture};
use crate::active::{active_span, within};
use crate::grpc;

/// Puts a [`Client`] around a service that calls other servers; [`send`](Self::send) does the same for one call. Cheap
/// to clone.
///
/// Below a layer that retries there is a span for each attempt, and above it one for all of them.
///
/// ```
/// # #[cfg(feature = "reqwest")] {
/// use opentelemetry_per_request::client::ClientLayer;
/// use tower_layer::Layer as _;
///
/// // A tower service like the one that is inside.
/// let client = ClientLayer::new().layer(reqwest::Client::new());
/// # let _ = client; }
/// ```
#[derive(Clone)]
pub struct ClientLayer {
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    propagator: Arc<dyn TextMapPropagator + Send + Sync>,
    filter: Option<Arc<FilterHook>>,
    attributes: Option<Arc<AttributesHook>>,
    query: bool,
}

type FilterHook = dyn Fn(&dyn OutgoingRequest) -> bool + Send + Sync;
type AttributesHook = dyn Fn(&dyn OutgoingRequest, &mut Vec<KeyValue>) + Send + Sync;

/// Sends a request with any client, in a CLIENT span: [`ClientLayer::send`] of a [`ClientLayer`] with its defaults.
///
/// ```
/// # #[cfg(feature = "reqwest")] {
/// use opentelemetry_per_request::client::send;
///
/// async fn load(client: &reqwest::Client) -> reqwest::Result<String> {
///     let request = client.get("https://orders.example/4711").build()?;
///     let response = send(request, |request| client.execute(request)).await?;
///     response.text().await
/// }
/// # let _ = load; }
/// ```
pub fn send<Q, F>(request: Q, call: impl FnOnce(Q) -> F) -> ClientFuture<F>
where
    Q: OutgoingRequest,
    F: Future,
{
    static DEFAULT: OnceLock<ClientLayer> = OnceLock::new();
    DEFAULT.get_or_init(ClientLayer::new).send(request, call)
}

impl ClientLayer {
    /// A layer that traces all calls below an active span.
    pub fn new() -> Self {
        Self {
            settings: Arc::new(Settings {
                propagator: Arc::new(TraceContextPropagator::new()),
                filter: None,
                attributes: None,
                query: false,
            }),
        }
    }

    /// Requests that `filter` is false for get no span, and no trace goes along with them.
    ///
    /// ```
    /// # use opentelemetry_per_request::client::ClientLayer;
    /// // What happens here is no business of others.
    /// ClientLayer::new().with_filter(|request| {
    ///     let host = request.uri().and_then(|uri| Some(uri.host()?.to_owned()));
    ///     host.is_some_and(|host| host.ends_with(".internal"))
    /// });
    /// ```
    #[must_use]
    pub fn with_filter(
        self,
        filter: impl Fn(&dyn OutgoingRequest) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.filter = Some(Arc::new(filter)))
    }

    /// Changes the attributes that a span starts with, before a sampler sees them: to add some, or to take some away.
    ///
    /// Headers, for one, none of which is kept by default; or what a request does not say. tonic's `Channel` knows by
    /// itself whom it calls:
    ///
    /// ```
    /// # use opentelemetry_per_request::client::ClientLayer;
    /// use opentelemetry::KeyValue;
    ///
    /// ClientLayer::new().with_attributes(|_request, attributes| {
    ///     attributes.push(KeyValue::new("server.address", "orders.internal"));
    ///     attributes.push(KeyValue::new("server.port", 50051));
    /// });
    /// ```
    #[must_use]
    pub fn with_attributes(
        self,
        attributes: impl Fn(&dyn OutgoingRequest, &mut Vec<KeyValue>) + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.attributes = Some(Arc::new(attributes)))
    }

    /// Shows the query in `url.full`. What signs a URL is left out nevertheless: the values of `X-Amz-Signature`,
    /// `X-Amz-Credential`, `X-Amz-Security-Token`, `AWSAccessKeyId`, `Signature`, `sig`, `X-Goog-Signature`, and of
    /// names that are percent-encoded. Any other secret in a query is shown.
    #[must_use]
    pub fn with_query(self) -> Self {
        self.with(|settings| settings.query = true)
    }

    /// What writes the trace into the headers, and replaces what is there. W3C Trace Context by default.
    ///
    /// ```
    /// # use opentelemetry_per_request::client::ClientLayer;
    /// use opentelemetry::propagation::TextMapCompositePropagator;
    /// use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
    ///
    /// ClientLayer::new().with_propagator(TextMapCompositePropagator::new(vec![
    ///     Box::new(TraceContextPropagator::new()),
    ///     Box::new(BaggagePropagator::new()),
    /// ]));
    /// ```
    #[must_use]
    pub fn with_propagator(
        self,
        propagator: impl TextMapPropagator + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.propagator = Arc::new(propagator))
    }

    /// Sends a request with any client: `call` is given the request with its trace, and its future runs in a CLIENT span.
    ///
    /// The span starts now, and ends as [the module](super) says. What `call` does runs in it as well.
    pub fn send<Q, F>(&self, mut request: Q, call: impl FnOnce(Q) -> F) -> ClientFuture<F>
    where
        Q: OutgoingRequest,
        F: Future,
    {
        let calling = self.open(&mut request);
        let inner = match &calling {
            Some(calling) => within(&calling.span, || call(request)),
            None => call(request),
        };
        ClientFuture::new(inner, calling)
    }

    /// Starts the span of a call, if it is to have one, and tells the server of it.
    fn open<Q: OutgoingRequest>(&self, request: &mut Q) -> Option<Calling> {
        let settings = &self.settings;
        let parent = active_span();
        if !is_traced(parent.context()) {
            return None;
        }
        if settings
            .filter
            .as_ref()
            .is_some_and(|filter| !filter(request))
        {
            return None;
        }
        let grpc = grpc::is_grpc(request.headers());
        let (name, attributes) = self.describe(request, grpc);
        let span = parent.start_child_with(client_span(name, attributes));
        inject_with(&*settings.propagator, span.context(), request.headers_mut());
        Some(Calling { span, grpc })
    }

    fn describe<Q: OutgoingRequest>(
        &self,
        request: &Q,
        grpc: bool,
    ) -> (Cow<'static, str>, Vec<KeyValue>) {
        let uri = request.uri();
        let host = request.headers().get(header::HOST);
        let call = Call {
            method: request.method().as_str(),
            uri: uri.as_ref(),
            host: host.and_then(|host| host.to_str().ok()?.parse().ok()),
            query: self.settings.query,
        };
        let (name, mut attributes) = match grpc {
            true => call.rpc(),
            false => call.http(),
        };
        if let Some(hook) = &self.settings.attributes {
            hook(request, &mut attributes);
        }
        (name, attributes)
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
}

impl<S> Layer<S> for ClientLayer {
    type Service = Client<S>;

    fn layer(&self, inner: S) -> Client<S> {
        Client::new(inner, self.clone())
    }
}

impl Default for ClientLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ClientLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayer")
            .field("query", &self.settings.query)
            .finish_non_exhaustive()
    }
}
