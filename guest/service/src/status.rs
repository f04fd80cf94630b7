//! From errors to what a caller over ttrpc is told.

use std::error::Error;

use kata_guest_container::create::CreateError;
use kata_guest_container::exec::ExecError;
use kata_guest_container::namespaces::NamespaceError;
use kata_guest_container::process::SignalError;
use ttrpc::{Code, get_status};

/// A refusal: a code of the protocol, and one sentence.
pub(crate) fn refuse(code: Code, text: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text.into()))
}

/// What is asked for is not there (any more).
pub(crate) fn not_found(text: impl Into<String>) -> ttrpc::Error {
    refuse(Code::NOT_FOUND, text)
}

/// The request makes no sense.
pub(crate) fn invalid(text: impl Into<String>) -> ttrpc::Error {
    refuse(Code::INVALID_ARGUMENT, text)
}

/// This agent does not do that; `remedy` says what to do about it.
pub(crate) fn unimplemented(method: &str, remedy: &str) -> ttrpc::Error {
    refuse(Code::UNIMPLEMENTED, format!("this agent does not implement {method}; {remedy}"))
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Errors that can be told to the host. The default code is INTERNAL.
pub(crate) trait Tell: Error + Sized {
    /// The code that fits.
    fn code(&self) -> Code {
        Code::INTERNAL
    }

    /// As the answer to a request.
    fn tell(self) -> ttrpc::Error {
        refuse(self.code(), chain(&self))
    }
}

impl Tell for CreateError {}
impl Tell for std::io::Error {}
impl Tell for kata_guest_container::cgroup::CgroupError {}
impl Tell for kata_guest_setup::hotplug::HotplugError {}
impl Tell for kata_guest_setup::network::NetworkError {}

impl Tell for NamespaceError {
    fn code(&self) -> Code {
        match self {
            Self::Ended => Code::FAILED_PRECONDITION,
            Self::Fork(_) | Self::Make(_) | Self::Pin { .. } => Code::INTERNAL,
        }
    }
}

impl Tell for ExecError {
    fn code(&self) -> Code {
        match self {
            Self::Spec(_) => Code::INVALID_ARGUMENT,
            _ => Code::INTERNAL,
        }
    }
}

impl Tell for SignalError {
    fn code(&self) -> Code {
        match self {
            Self::Ended(_) => Code::NOT_FOUND,
            Self::NoSuchSignal(_) => Code::INVALID_ARGUMENT,
            Self::Send { .. } => Code::INTERNAL,
        }
    }
}

impl Tell for kata_guest_container::spec::SpecError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }
}

impl Tell for kata_guest_container::cgroup::DeviceRuleError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }
}

impl Tell for kata_agent_api::convert::ConvertError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }
}

impl Tell for kata_guest_setup::entropy::SeedError {
    fn code(&self) -> Code {
        match self {
            Self::Length { .. } => Code::INVALID_ARGUMENT,
            Self::Seed(_) => Code::INTERNAL,
        }
    }
}

impl Tell for kata_guest_setup::clock::ClockError {
    fn code(&self) -> Code {
        match self {
            Self::OutOfRange { .. } => Code::INVALID_ARGUMENT,
            Self::Set(_) => Code::INTERNAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_once() {
        let source = std::io::Error::other("no space");
        let error = CreateError::Bundle { path: "/run/x".into(), source };
        assert_eq!(chain(&error), "cannot write the container's bundle /run/x: no space");
    }
}
