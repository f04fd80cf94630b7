//! A client of VMMs that are told of their machines by HTTP requests with JSON in them, over a unix
//! socket.
//!
//! Descriptors go beside a request, which HTTP clients from the shelf cannot do. The peer runs a
//! guest that may have taken it over, so nothing that it says is taken on trust: heads, bodies and
//! reasons have their limits.

mod connection;
mod message;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use connection::Connection;
pub use connection::Response;

/// The longest reason that is kept of what the VMM says.
const MAX_REASON: usize = 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The connection broke, which the VMM's end does, or did not carry HTTP.
    #[error("the API socket failed during `{request}`")]
    Broken {
        /// The request, like `vm.boot`.
        request: &'static str,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The VMM said no.
    #[error("`{request}` was refused: {reason}")]
    Refused {
        /// The request.
        request: &'static str,
        /// The HTTP status.
        status: u16,
        /// The VMM's words, from the general to the particular.
        reason: String,
    },
    /// The answer is not what the description promises.
    #[error("the answer to `{request}` is not understood")]
    Malformed {
        /// The request.
        request: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// Its name in messages.
    pub name: &'static str,
    /// The HTTP method.
    pub method: &'static str,
    /// The path, from `/` on.
    pub path: String,
    /// The JSON document in it, if there is one.
    pub body: Option<String>,
    /// What goes beside it, with its first byte (unix(7), SCM_RIGHTS); 16 descriptors at most.
    pub fds: Vec<OwnedFd>,
}

impl Request {
    /// A request without a body.
    #[must_use]
    pub fn new(name: &'static str, method: &'static str, path: impl Into<String>) -> Self {
        Self { name, method, path: path.into(), body: None, fds: Vec::new() }
    }

    /// Puts a document into it.
    pub fn with(mut self, document: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_string(document);
        let request = self.name;
        self.body = Some(body.map_err(|source| ApiError::Malformed { request, source })?);
        Ok(self)
    }
}

/// A connection to one VMM. Clones share it; requests go one after the other. A request that was
/// sent is followed to its end, also when its future is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Mutex<Connection>>,
}

impl Client {
    /// Speaks over `stream`, a connection to the VMM's socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { connection: Arc::new(Mutex::new(Connection::new(stream))) }
    }

    /// Sends a request and waits for its response, of which only a success is one.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn send(&self, request: Request) -> Result<Response, ApiError> {
        let Request { name, method, path, body, fds } = request;
        let bytes = message::render(method, &path, body.as_deref());
        let connection = self.connection.clone();
        // In a task of its own: half an exchange would leave the connection useless.
        let exchange =
            tokio::spawn(async move { connection.lock().await.exchange(&bytes, &fds).await });
        let response = exchange
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| ApiError::Broken { request: name, source })?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let reason = reason(&response);
        Err(ApiError::Refused { request: name, status: response.status, reason })
    }

    /// Like [`Client::send`], for an answer with a document in it.
    pub async fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, ApiError> {
        let name = request.name;
        self.send(request).await?.document(name)
    }
}

impl Response {
    /// The document in it. `request` is what it answers.
    pub fn document<T: DeserializeOwned>(&self, request: &'static str) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|source| ApiError::Malformed { request, source })
    }
}

/// What a refusal says, on one line and printable: the texts of its document in their order, each
/// the cause of the one before.
fn reason(response: &Response) -> String {
    let mut texts = Vec::new();
    match serde_json::from_slice::<Value>(&response.body) {
        Ok(document) => collect_texts(document, &mut texts),
        Err(_) => texts.push(String::from_utf8_lossy(&response.body).into_owned()),
    }
    let text = texts.join(": ");
    let readable: String =
        text.chars().filter(|char| !kata_log::is_hidden(*char)).take(MAX_REASON).collect();
    if readable.is_empty() { format!("HTTP status {}", response.status) } else { readable }
}

fn collect_texts(document: Value, into: &mut Vec<String>) {
    match document {
        Value::String(text) => into.push(text),
        Value::Array(items) => items.into_iter().for_each(|item| collect_texts(item, into)),
        Value::Object(fields) => fields.into_iter().for_each(|(_, item)| collect_texts(item, into)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_either_vmm_are_sentences() {
        let refused = |body: &str| reason(&Response { status: 400, body: body.into() });
        assert_eq!(refused(r#"["Error", "no such\u001b device"]"#), "Error: no such device");
        assert_eq!(refused(r#"{"fault_message": "Invalid drive"}"#), "Invalid drive");
        assert_eq!(refused("plain\n"), "plain");
        assert_eq!(refused(""), "HTTP status 400");
        assert_eq!(refused(&format!("\"{}\"", "x".repeat(5000))).len(), MAX_REASON);
    }
}
