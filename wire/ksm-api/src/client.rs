//! Kicking.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, header};
use tokio::net::UnixStream;

use crate::{CONTENT_TYPE, EMPTY, KICK, MESSAGE, STATUS};

/// The longest that a kick may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// As much of an answer as is read before it counts as none.
const MAX_ANSWER: usize = 4096;

/// Why a kick did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum KickError {
    /// Nobody listens.
    #[error("there is no KSM throttler")]
    Connect(#[source] io::Error),
    /// The connection is not what it should be.
    #[error("the KSM throttler does not speak gRPC")]
    Protocol(#[from] h2::Error),
    /// It was heard and not followed.
    #[error("the KSM throttler has answered with the gRPC status {status}: {message}")]
    Refused {
        /// The gRPC status, a number as text; empty when there was none.
        status: String,
        /// Its reason, as it was sent.
        message: String,
    },
    /// There was no answer.
    #[error("the KSM throttler has not answered within {} s", DEADLINE.as_secs())]
    Late,
}

/// Kicks the throttler that listens at `socket`, and returns when it has changed the kernel's settings. Gives up after five seconds. To
/// be called on a tokio runtime with I/O and time.
pub async fn kick(socket: &Path) -> Result<(), KickError> {
    tokio::time::timeout(DEADLINE, call(socket)).await.unwrap_or(Err(KickError::Late))
}

async fn call(socket: &Path) -> Result<(), KickError> {
    let stream = UnixStream::connect(socket).await.map_err(KickError::Connect)?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::select! {
        biased;
        answer = exchange(client) => answer,
        ended = connection => {
            ended?;
            Err(refused(&HeaderMap::new()))
        }
    }
}

async fn exchange(client: SendRequest<Bytes>) -> Result<(), KickError> {
    let mut client = client.ready().await?;
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    // The host's name means nothing on a unix socket, but HTTP/2 wants one.
    *request.uri_mut() =
        format!("http://localhost{KICK}").parse().expect("both parts are constants");
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
    let (answer, mut body) = client.send_request(request, false)?;
    body.send_data(Bytes::from_static(&EMPTY), true)?;
    let answer = answer.await?;
    if answer.headers().contains_key(STATUS) {
        // An answer without a body has its status up here.
        return result(answer.headers());
    }
    let trailers = skip_body(answer.into_body()).await?;
    result(&trailers.unwrap_or_default())
}

async fn skip_body(mut body: RecvStream) -> Result<Option<HeaderMap>, KickError> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        length += data.len();
        if length > MAX_ANSWER {
            return Ok(None);
        }
    }
    Ok(body.trailers().await?)
}

fn result(headers: &HeaderMap) -> Result<(), KickError> {
    if headers.get(STATUS).is_some_and(|status| status == "0") {
        Ok(())
    } else {
        Err(refused(headers))
    }
}

fn refused(headers: &HeaderMap) -> KickError {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    KickError::Refused { status: text(STATUS).to_owned(), message: text(MESSAGE).to_owned() }
}
