//! Kicking.

use std::io;
use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use kata_grpc::{CallError, call};

use crate::KICK;

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
    Protocol(#[source] CallError),
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

/// Kicks the throttler that listens at `socket`, and returns when it has changed the kernel's
/// settings. Gives up after five seconds. To be called on a tokio runtime with I/O and time.
pub async fn kick(socket: &Path) -> Result<(), KickError> {
    let path = PathAndQuery::from_static(KICK);
    match tokio::time::timeout(DEADLINE, call(socket, path, &[], MAX_ANSWER)).await {
        Ok(Ok(_empty)) => Ok(()),
        Ok(Err(CallError::Connect(source))) => Err(KickError::Connect(source)),
        Ok(Err(CallError::Refused { status, message })) => {
            Err(KickError::Refused { status, message })
        }
        Ok(Err(error)) => Err(KickError::Protocol(error)),
        Err(_) => Err(KickError::Late),
    }
}
