//! The client's side of gRPC over a unix socket, without encryption: one request, one answer ("gRPC
//! over HTTP2"). ADR 6 says why by hand.
//!
//! ```text
//!   client                                       service
//!     POST PATH, 00 LENGTH request ───────────▶
//!     ◀──── 200, 00 LENGTH answer, grpc-status: 0
//! ```

use std::io;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Uri, header};
use tokio::net::UnixStream;

/// What both bodies are.
pub const CONTENT_TYPE: &str = "application/grpc";

/// The header with a call's result: a number, 0 if all is well.
pub const STATUS: &str = "grpc-status";

/// The header with the reason for another result, in printable ASCII.
pub const MESSAGE: &str = "grpc-message";

/// What comes before a message: a flag, 0 for one that is not compressed, and its length.
const PREFIX: usize = 5;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("nobody listens")]
    Connect(#[source] io::Error),
    /// The connection is not what it should be.
    #[error("the service does not speak gRPC")]
    Protocol(#[from] h2::Error),
    /// It was heard and not followed.
    #[error("{message} (gRPC status {status})")]
    Refused {
        /// The gRPC status, a number as text; empty when there was none.
        status: String,
        /// Its reason, as it was sent.
        message: String,
    },
    /// The answer has more bytes than the caller takes.
    #[error("the answer is too long")]
    TooLong,
}

/// Calls the method at `path`, like `/ksm.KSMThrottler/Kick`, of the service that listens at
/// `socket`, over a connection of its own, and returns the answer's message. It takes as long as it
/// takes. An answer of more than `most` bytes is an error. To be called on a tokio runtime with
/// I/O.
///
/// # Panics
/// When the message is longer than gRPC can say, which is 4 GiB.
pub async fn call(
    socket: &Path,
    path: PathAndQuery,
    message: &[u8],
    most: usize,
) -> Result<Bytes, CallError> {
    let stream = UnixStream::connect(socket).await.map_err(CallError::Connect)?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::select! {
        biased;
        answer = exchange(client, path, framed(message), most) => answer,
        ended = connection => {
            ended?;
            Err(refused(&HeaderMap::new()))
        }
    }
}

/// A message as it stands in a body.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a message is shorter than 4 GiB");
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    framed.freeze()
}

async fn exchange(
    client: SendRequest<Bytes>,
    path: PathAndQuery,
    request: Bytes,
    most: usize,
) -> Result<Bytes, CallError> {
    let mut client = client.ready().await?;
    // The host's name means nothing on a unix socket, but HTTP/2 wants one.
    let uri = Uri::builder().scheme("http").authority("localhost").path_and_query(path).build();
    let head = Request::post(uri.expect("all parts are valid"))
        .header(header::CONTENT_TYPE, CONTENT_TYPE)
        .header(header::TE, "trailers")
        .body(())
        .expect("constants are valid headers");
    let (answer, mut body) = client.send_request(head, false)?;
    body.send_data(request, true)?;
    let answer = answer.await?;
    if answer.headers().contains_key(STATUS) {
        // An answer without a body has its status up here.
        return succeeded(answer.headers()).map(|()| Bytes::new());
    }
    message_of(answer.into_body(), most).await
}

/// The message of a body whose trailers say that all is well; empty where there is none.
async fn message_of(mut body: RecvStream, most: usize) -> Result<Bytes, CallError> {
    let mut received = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        if received.len() + data.len() > PREFIX.saturating_add(most) {
            return Err(CallError::TooLong);
        }
        body.flow_control().release_capacity(data.len())?;
        received.extend_from_slice(&data);
    }
    succeeded(&body.trailers().await?.unwrap_or_default())?;
    received.advance(PREFIX.min(received.len()));
    Ok(received.freeze())
}

fn succeeded(headers: &HeaderMap) -> Result<(), CallError> {
    let is_well = headers.get(STATUS).is_some_and(|status| status == "0");
    if is_well { Ok(()) } else { Err(refused(headers)) }
}

fn refused(headers: &HeaderMap) -> CallError {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    CallError::Refused { status: text(STATUS).to_owned(), message: text(MESSAGE).to_owned() }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tokio::net::UnixListener;

    use super::*;

    /// Answers one call with what was asked, and this status, if any, in the trailers.
    async fn echo(listener: UnixListener, status: Option<&'static str>) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut answer) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.uri().path(), "/test.Echo/Call");
        let answered = tokio::spawn(async move {
            let mut asked = request.into_body();
            let mut body = answer.send_response(Response::new(()), false).unwrap();
            while let Some(data) = asked.data().await {
                body.send_data(data.unwrap(), false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            if let Some(status) = status {
                trailers.insert(STATUS, status.parse().unwrap());
                trailers.insert(MESSAGE, "as it is".parse().unwrap());
            }
            body.send_trailers(trailers).unwrap();
        });
        while connection.accept().await.is_some() {}
        answered.await.unwrap();
    }

    async fn called(status: Option<&'static str>, most: usize) -> Result<Bytes, CallError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        tokio::spawn(echo(UnixListener::bind(&socket).unwrap(), status));
        call(&socket, PathAndQuery::from_static("/test.Echo/Call"), b"hello", most).await
    }

    #[tokio::test]
    async fn answer_comes_whole_and_only_if_the_service_says_that_all_is_well() {
        assert_eq!(called(Some("0"), 5).await.unwrap(), "hello");
        assert!(matches!(called(Some("0"), 4).await, Err(CallError::TooLong)));
        let refused = called(Some("5"), 5).await.unwrap_err();
        assert_eq!(refused.to_string(), "as it is (gRPC status 5)");
        assert!(matches!(called(None, 5).await, Err(CallError::Refused { .. })));
    }

    #[tokio::test]
    async fn nobody_who_listens_is_told_apart() {
        let path = PathAndQuery::from_static("/test.Echo/Call");
        let called = call(Path::new("/nonexistent"), path, &[], 0).await;
        assert!(matches!(called, Err(CallError::Connect(_))));
    }
}
