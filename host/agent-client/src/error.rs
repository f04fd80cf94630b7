//! What can go wrong between host and agent.

use std::time::Duration;

use kata_agent_api::convert::ConvertError;
use ttrpc::Code;

use crate::text;

/// The longest message of the agent that an error keeps, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Why a request failed. `method` is the request's name in the agent's service, e.g.
/// `CreateContainer`; `message` is the agent's own sentence, at most 4 KiB on one line. Where
/// there is a message the error prints as nothing else, because that is what users are shown.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The container or process does not exist, or no longer.
    #[error("{message}")]
    NotFound {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// The request makes no sense to the agent, or is longer than a message may be.
    #[error("{message}")]
    InvalidArgument {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// The guest's policy forbids the request.
    #[error("{message}")]
    PermissionDenied {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// This agent cannot do that.
    #[error("{message}")]
    Unimplemented {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// The container or process is in the wrong state.
    #[error("{message}")]
    FailedPrecondition {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// The container or process exists already.
    #[error("{message}")]
    AlreadyExists {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// The agent tried and failed, e.g. because the program does not exist.
    #[error("{message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// What the agent said.
        message: String,
    },
    /// There was no answer in time. Whether the agent did what was asked is not known.
    #[error("the guest's agent did not answer {method} within {after:?}")]
    Deadline {
        /// What was asked.
        method: &'static str,
        /// How long it may take.
        after: Duration,
    },
    /// The connection has ended; this client is of no more use.
    #[error("the connection to the guest's agent ended before it answered {method}")]
    Disconnected {
        /// What was asked.
        method: &'static str,
    },
    /// The configuration does not fit the protocol; nothing was sent.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The answer breaks the protocol: the guest is broken or means harm.
    #[error("the guest's agent answered {method} with {what}")]
    Hostile {
        /// What was asked.
        method: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
}

impl AgentError {
    pub(crate) fn hostile(method: &'static str, what: impl Into<String>) -> Self {
        Self::Hostile { method, what: what.into() }
    }

    /// From what the transport reports. `late` tells that the request's deadline has passed.
    pub(crate) fn from_transport(
        method: &'static str,
        deadline: Duration,
        late: bool,
        error: ttrpc::Error,
    ) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                Self::from_status(method, deadline, status.code(), status.message())
            }
            // The transport has no error of its own for it.
            ttrpc::Error::Others(_) if late => Self::Deadline { method, after: deadline },
            ttrpc::Error::Others(text) if text.starts_with("Unpack") => {
                Self::hostile(method, "bytes that are no message")
            }
            _ => Self::Disconnected { method },
        }
    }

    fn from_status(method: &'static str, after: Duration, code: Code, message: &str) -> Self {
        // ttrpc's servers say "not found" of a method that they do not have.
        let absent = message.starts_with('/') && message.ends_with(" is not supported");
        let message = match text::one_line(message, MAX_MESSAGE) {
            text if text.is_empty() => {
                format!("the guest's agent refused {method} without a reason")
            }
            text => text,
        };
        match code {
            Code::NOT_FOUND if absent => Self::Unimplemented { method, message },
            Code::NOT_FOUND => Self::NotFound { method, message },
            Code::INVALID_ARGUMENT => Self::InvalidArgument { method, message },
            Code::PERMISSION_DENIED => Self::PermissionDenied { method, message },
            Code::UNIMPLEMENTED => Self::Unimplemented { method, message },
            Code::FAILED_PRECONDITION => Self::FailedPrecondition { method, message },
            Code::ALREADY_EXISTS => Self::AlreadyExists { method, message },
            Code::DEADLINE_EXCEEDED => Self::Deadline { method, after },
            _ => Self::Refused { method, message },
        }
    }
}
