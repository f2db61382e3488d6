//! The bare server that a catch-up read is compared with: hyper, which serves us too, handing out bytes that lie in memory. It
//! knows no streams: a request names how many bytes it wants and in what pieces.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures::stream;
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// The argument that makes a benchmark this server; the port comes behind it.
pub const ARGUMENT: &str = "serve-from-memory";
/// More than any answer is large, so that a piece is one slice.
const STOCK_BYTES: usize = 64 << 20;

/// Serves for ever when the program's arguments say so. Call it first in `main`.
///
/// # Panics
/// When the port is taken.
pub fn serve_if_asked() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return;
    }
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).expect("a port behind the argument");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(SocketAddr::from(([127, 0, 0, 1], port))));
    std::process::exit(0);
}

/// The path that gives so many bytes: in one piece with their length if `piece_bytes` is 0, else in chunks of that size.
#[must_use]
pub fn path(bytes: u64, piece_bytes: u64) -> String {
    format!("/{bytes}/{piece_bytes}")
}

async fn serve(address: SocketAddr) {
    let stock = Bytes::from((0..STOCK_BYTES).map(|index| b'a' + (index % 23) as u8).collect::<Vec<_>>());
    let listener = TcpListener::bind(address).await.expect("the port is free");
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let _ = socket.set_nodelay(true);
        let stock = stock.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let stock = stock.clone();
                async move { Ok::<_, Infallible>(answer(&request, &stock)) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

type Pieces = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn answer(request: &Request<Incoming>, stock: &Bytes) -> Response<Either<Full<Bytes>, Pieces>> {
    let mut numbers = request.uri().path().split('/').filter_map(|part| part.parse::<usize>().ok());
    let (Some(bytes), Some(piece)) = (numbers.next(), numbers.next()) else {
        let mut refusal = Response::new(Either::Left(Full::default()));
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        return refusal;
    };
    let bytes = bytes.min(stock.len());
    if piece == 0 {
        return Response::new(Either::Left(Full::new(stock.slice(..bytes))));
    }
    let pieces: Vec<_> =
        (0..bytes).step_by(piece).map(|at| Ok(Frame::data(stock.slice(at..(at + piece).min(bytes))))).collect();
    Response::new(Either::Right(StreamBody::new(stream::iter(pieces))))
}
