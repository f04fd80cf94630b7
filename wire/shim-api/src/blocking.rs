//! A client of the task service for programs without an asynchronous runtime: a connection for each
//! call, which ends with it.
//!
//! A frame is a header of ten bytes (length, stream, kind, flags; ttrpc's PROTOCOL.md) and a
//! message.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use protobuf::Message;
use rustix::fs::{CWD, Mode, OFlags, openat};
use ttrpc::proto::{
    Code, KeyValue, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE,
    MessageHeader, Request, Response,
};

use crate::task::TASK_V3;
use crate::{api, metadata};

/// The one stream of a connection; a client's are odd.
const STREAM: u32 = 1;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("nobody serves the sandbox")]
    Connect(#[source] io::Error),
    /// The server was there and has gone.
    #[error("the sandbox's server has gone away")]
    Lost(#[source] io::Error),
    /// The server said no.
    #[error("{message}")]
    Refused {
        /// What kind of no.
        code: Code,
        /// In a sentence.
        message: String,
    },
    /// The answer cannot be understood.
    #[error("the sandbox's server has given an answer that cannot be understood")]
    Malformed(#[source] protobuf::Error),
}

/// Where a task service is served: a socket in a directory. The directory is held open, so that its
/// path may have any length.
#[derive(Debug)]
pub struct TaskSocket {
    directory: OwnedFd,
    name: String,
}

impl TaskSocket {
    /// The socket `name` in `directory`, which must exist; the socket need not.
    pub fn at(directory: &Path, name: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: openat(CWD, directory, flags, Mode::empty())?, name: name.to_owned() })
    }

    /// A path that is short enough for a socket's address (unix(7): 108 bytes) and leads there as
    /// long as this value lives.
    #[must_use]
    pub fn short_path(&self) -> String {
        format!("/proc/self/fd/{}/{}", self.directory.as_fd().as_raw_fd(), self.name)
    }

    /// Calls a method of the task service and waits for its answer, however long that takes.
    /// `metadata` are keys and values that go along, see [`crate::metadata`].
    pub fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
        metadata: &[(&str, &str)],
    ) -> Result<A, CallError> {
        self.ask(method, request, metadata)?.answer()
    }

    /// Calls a method of the task service and does not wait for its answer. The server learns of
    /// the call, and of the caller's end, even if this process is killed as soon as this returns.
    pub fn ask(
        &self,
        method: &str,
        request: &impl Message,
        metadata: &[(&str, &str)],
    ) -> Result<Question, CallError> {
        let mut connection = UnixStream::connect(self.short_path()).map_err(CallError::Connect)?;
        let frame = request_frame(method, request, metadata).map_err(CallError::Malformed)?;
        connection.write_all(&frame).map_err(CallError::Lost)?;
        Ok(Question { connection })
    }

    /// Removes a process, whatever it does, and with the last container the sandbox. An empty
    /// `exec` is the container's init. That there is none is no error.
    pub fn remove(&self, container: &str, exec: &str) {
        let request = api::DeleteRequest {
            id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let _ = self.call::<api::DeleteResponse>("Delete", &request, &[(metadata::FORCE, "")]);
        let request = api::ShutdownRequest { id: container.to_owned(), ..Default::default() };
        let _ = self.call::<api::Empty>("Shutdown", &request, &[]);
    }
}

/// A call that was made and not yet answered. Dropped, its caller has gone away.
#[derive(Debug)]
pub struct Question {
    connection: UnixStream,
}

impl Question {
    /// Waits for the answer, however long that takes.
    pub fn answer<A: Message>(mut self) -> Result<A, CallError> {
        let answer = read_answer(&mut self.connection).map_err(CallError::Lost)?;
        let response = Response::parse_from_bytes(&answer).map_err(CallError::Malformed)?;
        let status = response.status();
        if status.code() != Code::OK {
            return Err(CallError::Refused {
                code: status.code(),
                message: status.message.clone(),
            });
        }
        A::parse_from_bytes(&response.payload).map_err(CallError::Malformed)
    }
}

fn request_frame(
    method: &str,
    request: &impl Message,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>, protobuf::Error> {
    let pair = |(key, value): &(&str, &str)| KeyValue {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
        ..KeyValue::default()
    };
    let request = Request {
        service: TASK_V3.to_owned(),
        method: method.to_owned(),
        payload: request.write_to_bytes()?,
        metadata: metadata.iter().map(pair).collect(),
        ..Request::default()
    };
    let body = request.write_to_bytes()?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::from(MessageHeader::new_request(STREAM, length));
    frame.extend(body);
    Ok(frame)
}

/// The first answer on our stream.
fn read_answer(connection: &mut UnixStream) -> io::Result<Vec<u8>> {
    loop {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        connection.read_exact(&mut header)?;
        let header = MessageHeader::from(header);
        let length = header.length as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body)?;
        if header.type_ == MESSAGE_TYPE_RESPONSE && header.stream_id == STREAM {
            return Ok(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ttrpc::r#async::TtrpcContext;

    use super::*;
    use crate::{Task, api, task_services};

    struct Echo;

    #[async_trait::async_trait]
    impl Task for Echo {
        async fn wait(
            &self,
            context: &TtrpcContext,
            request: api::WaitRequest,
        ) -> ttrpc::Result<api::WaitResponse> {
            assert_eq!(context.metadata["key"], ["value"]);
            Ok(api::WaitResponse { exit_status: request.id.parse().unwrap(), ..Default::default() })
        }
    }

    #[tokio::test]
    async fn a_call_is_answered_refused_or_lost() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let socket = TaskSocket::at(&deep, "s").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(socket.short_path()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(crate::listener(listener))
            .register_service(task_services(&Arc::new(Echo)));
        server.start().await.unwrap();
        let calls = tokio::task::spawn_blocking(move || {
            let request = api::WaitRequest { id: "7".into(), ..Default::default() };
            let answer: api::WaitResponse =
                socket.call("Wait", &request, &[("key", "value")]).unwrap();
            assert_eq!(answer.exit_status, 7);
            let refused = socket.call::<api::Empty>("Pause", &api::PauseRequest::new(), &[]);
            assert!(matches!(refused, Err(CallError::Refused { code: Code::NOT_FOUND, .. })));
            socket
        });
        let socket = calls.await.unwrap();
        server.shutdown().await.unwrap();
        drop(server);
        let gone = tokio::task::spawn_blocking(move || {
            socket.call::<api::Empty>("Pause", &api::PauseRequest::new(), &[])
        });
        assert!(matches!(gone.await.unwrap(), Err(CallError::Connect(_))));
    }
}
