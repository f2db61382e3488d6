//! Rows that come as one long request: committed chunk by chunk while they still come, each commit told while they do. Memory is
//! bounded by one chunk, whatever the length of the request; nothing of a chunk is committed before all of it has been read.

mod line;
mod upload;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use bytes::Bytes;
use tidegate_core::Principal;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::change_problem::stream_problem;
use super::name::{Parts, name};
use super::record::{NDJSON, streaming_headers};
use crate::body::PieceBody;
use crate::encoding::ContentCoding;
use crate::gate::App;
use crate::problem::Problem;
use line::Lines;
use upload::Upload;

pub(crate) use line::OPEN_MAX_BYTES;
pub(crate) use upload::CHUNK_MAX_BYTES;

/// Lines of the answer that wait for a client that sends and does not read. Beyond it commits are told by the next line: each says
/// how much there is in all.
const ANSWERS_MAX: usize = 1_024;

pub(super) async fn ingest(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    path: Parts<String>,
    request: Request,
) -> Result<Response, Problem> {
    let stream = name(path)?;
    // Before the first byte is asked for: a client that says `Expect: 100-continue` sends nothing in vain.
    app.services.streams.describe(&principal, &stream).await.map_err(|error| stream_problem(&error))?;
    let settings = app.services.streams.settings().freeze();
    let clock = Arc::clone(&app.services.clock);
    let mut lines = Lines::new(request.into_body(), clock, settings.limits_body_timeout_ms());
    let verify = line::open(&mut lines).await?;
    let (answers, mut told) = mpsc::channel(ANSWERS_MAX);
    let upload = Upload::new(Arc::clone(&app), principal, stream, settings, lines, verify);
    // A task of its own: rows are taken in whether or not the client reads the answer meanwhile. It ends with the answer, so a client
    // that goes away ends it.
    let task = AbortOnDropHandle::new(tokio::spawn(upload.run(answers)));
    let pieces = futures::stream::poll_fn(move |context| {
        let _ = &task;
        told.poll_recv(context).map(|line: Option<Bytes>| line.map(Ok::<_, Infallible>))
    });
    let mut response = Response::new(Body::new(PieceBody::new(pieces, ContentCoding::Identity)?));
    streaming_headers(response.headers_mut(), NDJSON);
    Ok(response)
}
