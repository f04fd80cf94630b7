//! How a failure reaches containerd: a ttrpc status whose code callers act on, and one sentence
//! that their users read.

use std::error::Error;

use kata_host_runtime::RuntimeError;
use kata_log::chain;
use kata_sandbox::{AgentError, BootError, JoinError, ProcessKey, Refusal, SandboxError};
use ttrpc::Code;

/// A failed request.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    code: Code,
    message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Something that the caller sent could not be read.
    pub(crate) fn invalid(what: &str, error: &dyn Error) -> Self {
        Self::new(Code::INVALID_ARGUMENT, format!("cannot read the {what}: {}", chain(error)))
    }

    /// The process is not known here.
    pub(crate) fn unknown(key: &ProcessKey) -> Self {
        Self::new(Code::NOT_FOUND, Refusal::NotFound(key.clone()).to_string())
    }

    /// There is no sandbox yet, or its boot failed: nothing is known.
    pub(crate) fn no_sandbox() -> Self {
        Self::new(Code::NOT_FOUND, "the sandbox has no container: not found")
    }

    /// A container that names no sandbox, or another one, was sent to one.
    pub(crate) fn second_sandbox(id: &str) -> Self {
        let message =
            format!("container {id} does not belong to the sandbox that this shim serves");
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// The task that served the request panicked or was aborted.
    #[expect(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
    pub(crate) fn lost(error: tokio::task::JoinError) -> Self {
        Self::new(Code::INTERNAL, format!("the request was lost: {error}"))
    }

    /// A container that could not be made, in runc's words, which Docker and others match on.
    pub(crate) fn create(error: SandboxError) -> Self {
        let is_guests_refusal = matches!(error, SandboxError::Agent(AgentError::Refused { .. }));
        let mut failure = Self::from(error);
        if is_guests_refusal {
            failure.message = format!(
                "OCI runtime create failed: unable to start container process: {}",
                failure.message
            );
        }
        failure
    }
}

/// UNIMPLEMENTED, with a sentence.
pub(crate) fn refuse(sentence: &str) -> ttrpc::Error {
    Failure::new(Code::UNIMPLEMENTED, sentence).into()
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        tracing::debug!(code = ?failure.code, "{}", failure.message);
        Self::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        let code = match &error {
            SandboxError::Refused(Refusal::NotFound(_) | Refusal::AlreadyFinished(_))
            | SandboxError::Agent(AgentError::NotFound { .. }) => Code::NOT_FOUND,
            SandboxError::Refused(Refusal::AlreadyExists(_)) => Code::ALREADY_EXISTS,
            SandboxError::Refused(Refusal::WrongState { .. }) => Code::FAILED_PRECONDITION,
            SandboxError::Agent(AgentError::Unimplemented { .. }) => Code::UNIMPLEMENTED,
            SandboxError::Agent(AgentError::Deadline { .. }) => Code::DEADLINE_EXCEEDED,
            SandboxError::Gone { .. } => Code::ABORTED,
            _ => Code::UNKNOWN,
        };
        Self::new(code, chain(&error))
    }
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        Self::new(Code::UNKNOWN, chain(&error))
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        Self::new(Code::FAILED_PRECONDITION, chain(&error))
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        Self::new(Code::INVALID_ARGUMENT, chain(&error))
    }
}
