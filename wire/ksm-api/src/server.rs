//! Being kicked.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use tokio::net::UnixStream;

use kata_grpc::{CONTENT_TYPE, MESSAGE, STATUS};

use crate::{EMPTY, KICK};

/// Calls at a time on one connection.
const MAX_CALLS: u32 = 16;

/// The longest request body in bytes: more than an empty message with a few fields that nobody
/// knows.
const MAX_REQUEST: usize = 4096;

/// gRPC's numbers for what can go wrong.
const INTERNAL: &str = "13";
const UNIMPLEMENTED: &str = "12";

/// Serves one connection until its client closes it. Every kick calls `kicked`, and is answered
/// when that resolves; its error goes to the client. To be called on a tokio runtime.
///
/// A request whose `:authority` is no host name, but the socket's path for example, is reset: see
/// docs/adr/0006.
pub async fn serve<F, R>(connection: UnixStream, kicked: F) -> Result<(), h2::Error>
where
    F: Fn() -> R + Clone + Send + 'static,
    R: Future<Output = Result<(), String>> + Send,
{
    let mut builder = h2::server::Builder::new();
    let mut connection =
        builder.max_concurrent_streams(MAX_CALLS).handshake::<_, Bytes>(connection).await?;
    while let Some(call) = connection.accept().await {
        let (request, answer) = call?;
        let kicked = kicked.clone();
        tokio::spawn(async move {
            if let Err(error) = respond(request, answer, kicked).await {
                tracing::debug!("a call ended early: {error}");
            }
        });
    }
    Ok(())
}

async fn respond<F, R>(
    request: Request<RecvStream>,
    mut answer: SendResponse<Bytes>,
    kicked: F,
) -> Result<(), h2::Error>
where
    F: Fn() -> R,
    R: Future<Output = Result<(), String>>,
{
    let path = request.uri().path().to_owned();
    let is_kick = path == KICK && request.method() == http::Method::POST;
    if !skip_body(request.into_body()).await? {
        answer.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
        return Ok(());
    }
    let done = match is_kick {
        true => kicked().await.map_err(|reason| (INTERNAL, reason)),
        false => Err((UNIMPLEMENTED, "the only method is ksm.KSMThrottler/Kick".to_owned())),
    };
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    match done {
        Ok(()) => {
            let mut body = answer.send_response(response, false)?;
            body.send_data(Bytes::from_static(&EMPTY), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert(STATUS, HeaderValue::from_static("0"));
            body.send_trailers(trailers)
        }
        Err((status, reason)) => {
            let headers = response.headers_mut();
            headers.insert(STATUS, HeaderValue::from_static(status));
            headers.insert(MESSAGE, message(&reason));
            answer.send_response(response, true).map(drop)
        }
    }
}

/// Reads a body whose content says nothing; false if it is too long.
async fn skip_body(mut body: RecvStream) -> Result<bool, h2::Error> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        if length > MAX_REQUEST {
            return Ok(false);
        }
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(true)
}

/// A reason as gRPC sends it: printable ASCII, without the sign that begins an escape.
fn message(reason: &str) -> HeaderValue {
    let plain = |c: char| if c == '%' || !(c == ' ' || c.is_ascii_graphic()) { '?' } else { c };
    let text: String = reason.chars().map(plain).collect();
    HeaderValue::from_str(&text).expect("printable ASCII is a header's value")
}
