//! What every request passes: its route, its method, who asks, whether new work is taken; and what every answer gets: a
//! request id, its metrics, a problem document even for a panic. It knows no route's work.

mod counter;
mod table;
mod watched;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use http_body::Body as _;
use tidegate_batch::Executor;
use tidegate_core::{Failure as _, Principal, Scope};
use tidegate_lease::audit::AuditEvent;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::auth::AuthError;
use crate::body::ReadsOn;
use crate::json::JsonError;
use crate::parameter::Parameters;
use crate::problem::{CloseAfter, Problem, ProblemCode};
use crate::route::object::EXECUTOR;
use crate::route::{check_path, durable};
use crate::server::HEADER_MAX_BYTES;
use crate::service::Services;
use counter::{RequestCounters, method_label};
use table::{Access, QueryString, ROUTES, Route, Rule};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that a client may bring along.
const REQUEST_ID_MAX_BYTES: usize = 64;

/// What the routes share.
pub(crate) struct App {
    pub(crate) services: Services,
    /// Connections are encrypted: what URLs that are made here begin with.
    pub(crate) secure: bool,
    /// Bounds all batches of objects.
    pub(crate) executor: Executor,
    /// Held while settings are changed, so that a change is one step for who changes others at the same time.
    pub(crate) changing: Mutex<()>,
    draining: AtomicBool,
    /// Cancelled when the drain begins: what waits for something to come ends at once.
    pub(crate) leaving: CancellationToken,
    counters: RequestCounters,
    next_request: AtomicU64,
    started_ms: i64,
}

impl App {
    pub(crate) fn new(services: Services, secure: bool) -> Self {
        let started_ms = services.clock.timestamp().unix_ms();
        Self {
            services,
            secure,
            executor: Executor::new(EXECUTOR).expect("the bounds are within their ranges"),
            changing: Mutex::new(()),
            draining: AtomicBool::new(false),
            leaving: CancellationToken::new(),
            counters: RequestCounters::new(),
            next_request: AtomicU64::new(0),
            started_ms,
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From here on new work is refused, and what waits ends.
    pub(crate) fn leave(&self) {
        self.draining.store(true, Ordering::Release);
        self.leaving.cancel();
    }

    /// The client's own id where it is a harmless token, so that its log and this one can be laid side by side; else the
    /// start of the process and a count. It is no secret and gives no right.
    fn request_id(&self, request: &Request) -> HeaderValue {
        let given = request.headers().get(REQUEST_ID).filter(|value| {
            let bytes = value.as_bytes();
            let harmless = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            (1..=REQUEST_ID_MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(harmless)
        });
        given.cloned().unwrap_or_else(|| {
            let count = self.next_request.fetch_add(1, Ordering::Relaxed);
            HeaderValue::try_from(format!("{:x}-{count:x}", self.started_ms)).expect("hexadecimal digits")
        })
    }
}

/// The middleware around the router.
pub(crate) async fn gate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = app.request_id(&request);
    let place = request.extensions().get::<MatchedPath>().and_then(|path| {
        let path = path.as_str();
        ROUTES.iter().position(|route| route.template == path)
    });
    let route = place.and_then(|place| ROUTES.get(place));
    let method = request.method().clone();
    let version = request.version();
    let read_to_end = watched::watch(&mut request);
    let browser =
        route.filter(|route| route.preflight).map(|_| durable::Browser::of(request.method(), request.headers()));
    let began = app.services.clock.now();
    // A span costs more than the rest of the way through here: the hot routes have one only where somebody looks closely.
    let span = if route.is_some_and(|route| route.hot) {
        tracing::debug_span!("http_request", id = shown(&id), method = method_label(&method), route = template(route))
    } else {
        full_span(&id, &method, route)
    };
    // The answers of a panicking handler and of a refusing one take the same way out.
    let answered = async {
        let refused = match route {
            None => Some(not_found(&request)),
            Some(route) => admit(&app, route, &mut request).await.err(),
        };
        match refused {
            Some(problem) => problem.into_response(),
            None if *request.method() == Method::OPTIONS && !route.is_some_and(|route| route.preflight) => {
                options(route)
            }
            None => next.run(request).await,
        }
    };
    let mut response = match AssertUnwindSafe(answered.instrument(span.clone())).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            // The panic hook has written what and where; here only that the process lives on.
            tracing::error!(parent: &full_span(&id, &method, route), "a handler panicked");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server made a mistake; it is in its log")
                .closing()
                .into_response()
        }
    };
    let code = response.extensions_mut().remove::<ProblemCode>().map(|code| code.0);
    // A body of which something is left cannot be told from the next request, so the client is told that the connection ends;
    // whoever still reads may go on to do so. HTTP/2 knows no such header; there the connection is shared and stays.
    let reads_on = response.extensions_mut().remove::<ReadsOn>().is_some();
    let left = !reads_on && read_to_end.is_some_and(|read_to_end| !read_to_end.get());
    let closes = response.extensions_mut().remove::<CloseAfter>().is_some() || left;
    if closes && version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    // Up to the answer's head: a stream's body may take hours, and the query service measures that.
    let ms = u64::try_from(app.services.clock.now().saturating_since(began).as_millis()).unwrap_or(u64::MAX);
    app.counters.count(place, &method, status);
    if status.is_server_error() {
        let span = if span.is_disabled() { full_span(&id, &method, route) } else { span };
        tracing::warn!(parent: &span, status = status.as_u16(), code, ms, "answered");
    } else {
        tracing::debug!(parent: &span, status = status.as_u16(), code, ms, "answered");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(browser) = browser {
        browser.tell(response.headers_mut());
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn full_span(id: &HeaderValue, method: &Method, route: Option<&Route>) -> tracing::Span {
    tracing::info_span!("http_request", id = shown(id), method = method_label(method), route = template(route))
}

fn shown(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

fn template(route: Option<&Route>) -> &'static str {
    route.map_or("unknown", |route| route.template)
}

/// Lets a request through, with its principal in its extensions, or says why not.
async fn admit(app: &App, route: &Route, request: &mut Request) -> Result<(), Problem> {
    let head_bytes = head_bytes(request);
    if head_bytes > HEADER_MAX_BYTES {
        return Err(Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header_too_large",
            format!("the request's head has {head_bytes} bytes, at most {HEADER_MAX_BYTES} are taken"),
        )
        .with("max_bytes", HEADER_MAX_BYTES)
        .closing());
    }
    check_transfer_coding(request.headers())?;
    let method = request.method().as_str();
    if method == "OPTIONS" {
        return Ok(());
    }
    let Some(rule) = route.rule(method) else {
        return Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{} takes {}", route.template, route.allow),
        )
        .with_header(header::ALLOW, HeaderValue::from_static(route.allow)));
    };
    let principal = match rule.access {
        Access::Open => Principal::anonymous(),
        Access::Object(_) if asks(rule, request, "signature") => signed(app, request)?,
        Access::Object(_) if asks(rule, request, "upload") => {
            authorize(app, Access::Scope(Scope::ObjectWrite), request.headers()).await?
        }
        Access::Object(scope) => authorize(app, Access::Scope(scope), request.headers()).await?,
        access @ (Access::AnyToken | Access::Scope(_) | Access::AnyOf(_)) => {
            authorize(app, access, request.headers()).await?
        }
    };
    if rule.new_work && app.is_draining() {
        return Err(draining());
    }
    check_path(request.uri().path())?;
    if !rule.any_coding && has_body(request) {
        check_coding_of(request.headers())?;
    }
    if let (QueryString::Known(known), Some(query)) = (rule.query, request.uri().query())
        && !query.is_empty()
    {
        let parameters = Parameters::parse(query, known).map_err(|error| json_problem(&error))?;
        request.extensions_mut().insert(parameters);
    }
    request.extensions_mut().insert(principal);
    Ok(())
}

/// Whether a request's query string has a parameter. One that is not well-formed is refused later, to those who may ask.
fn asks(rule: &Rule, request: &Request, name: &str) -> bool {
    let (QueryString::Known(known), Some(query)) = (rule.query, request.uri().query()) else { return false };
    Parameters::parse(query, known).is_ok_and(|parameters| parameters.get(name).is_some())
}

/// Who reads at a signed address.
fn signed(app: &App, request: &Request) -> Result<Principal, Problem> {
    let uri = request.uri();
    let now = app.services.clock.timestamp();
    let query = uri.query().unwrap_or_default();
    app.services.auth.verify_presigned(request.method(), uri.path(), query, now).map_err(|error| {
        metrics::counter!("tidegate_auth_refused_total", "code" => error.code()).increment(1);
        app.services.auditor.emit(None, AuditEvent::AuthRefused { code: error.code() });
        error.into()
    })
}

fn has_body(request: &Request) -> bool {
    matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) && !request.body().is_end_stream()
}

/// Refuses a body in a coding: nothing here decodes, and compressed bytes would be taken for what they are not.
pub(crate) fn check_coding_of(headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(());
    }
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let Some(coding) = codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")) else {
        return Ok(());
    };
    let coding: String = String::from_utf8_lossy(coding).chars().take(40).collect();
    let detail = format!("a body must be sent as it is, this one is in the coding {coding:?}");
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding_unsupported", detail)
        .with("field", "content-encoding")
        .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")))
}

/// Refuses a body whose framing has a coding beyond `chunked` (RFC 9112, section 6.1): the HTTP library undoes that one alone.
fn check_transfer_coding(headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(());
    }
    let codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let Some(coding) = codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked")) else {
        return Ok(());
    };
    let coding: String = String::from_utf8_lossy(coding).chars().take(40).collect();
    let detail = format!("the only transfer coding is chunked, this body has {coding:?}");
    Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "transfer_encoding_unsupported", detail)
        .with("field", "transfer-encoding")
        .closing())
}

async fn authorize(app: &App, access: Access, headers: &HeaderMap) -> Result<Principal, Problem> {
    let known = app.services.auth.authenticate(headers).await;
    let refused = match (known, access) {
        (Ok(principal), Access::Scope(scope)) if !principal.scopes.contains(scope) => {
            (AuthError::ScopeMissing { scope }, Some(principal))
        }
        (Ok(principal), Access::AnyOf([scope, others @ ..]))
            if !principal.scopes.contains(*scope) && !others.iter().any(|scope| principal.scopes.contains(*scope)) =>
        {
            (AuthError::ScopeMissing { scope: *scope }, Some(principal))
        }
        (Ok(principal), _) => return Ok(principal),
        (Err(error), _) => (error, None),
    };
    Err(refuse(app, refused.0, refused.1.as_ref()))
}

fn refuse(app: &App, error: AuthError, principal: Option<&Principal>) -> Problem {
    metrics::counter!("tidegate_auth_refused_total", "code" => error.code()).increment(1);
    let owner = principal.map(|principal| &principal.owner);
    app.services.auditor.emit(owner, AuditEvent::AuthRefused { code: error.code() });
    error.into()
}

/// The answer to new work while the server is on its way out.
pub(crate) fn draining() -> Problem {
    Problem::of(&tidegate_query::OpenError::Draining(tidegate_query::Draining)).closing()
}

/// A problem for a body or query parameter that is not what the route reads.
pub(crate) fn json_problem(error: &JsonError) -> Problem {
    let problem = Problem::of(error);
    match error {
        JsonError::Malformed { line, column, .. } => problem.with("line", *line).with("column", *column),
        JsonError::UnknownField { field, .. } | JsonError::DuplicateField { field } => {
            problem.with("field", field.to_string())
        }
        JsonError::InvalidField { path, .. } => problem.with("field", path.to_string()),
        JsonError::MissingField { field } => problem.with("field", *field),
    }
}

fn not_found(request: &Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no route {path}"))
}

fn options(route: Option<&Route>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Some(route) = route {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(route.allow));
    }
    response
}

/// The head as HTTP/1 writes it: target, names, values, and what separates them.
fn head_bytes(request: &Request) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    request.headers().iter().fold(target, |sum, (name, value)| sum + name.as_str().len() + value.len() + 4)
}
