//! What `start` is given on its standard input, and what it must answer.
//!
//! | containerd | input | answers it takes |
//! |---|---|---|
//! | 1.6, CRI-O | the runtime options in an [`Any`], or nothing | the bare address |
//! | 1.7 to 2.2 | the same | the bare address, or JSON (which 1.6 would take for an address) |
//! | 2.3 and later | [`BootstrapParams`] | [`BootstrapResult`], or any of the above |
//!
//! Both inputs have a string first and bytes second, so each parses as the other: only what the
//! strings say tells them apart.

use std::path::Path;

use protobuf::Message;
use protobuf::well_known_types::any::Any;

pub use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};

use crate::address::SocketAddress;

/// The version of the task service that a containerd that takes [`BootstrapResult`] is told to use.
const TASK_VERSION: i32 = 3;

/// What containerd said on the standard input of `start`.
#[derive(Debug, Clone, PartialEq)]
pub enum StartInput {
    /// containerd 1.6 to 2.2, CRI-O, or a human.
    Legacy {
        /// The runtime's options. `None` if nothing was passed.
        options: Option<Any>,
    },
    /// containerd 2.3 and later.
    Bootstrap(Box<BootstrapParams>),
}

/// The input is neither of the two messages.
#[derive(Debug, thiserror::Error)]
#[error(
    "the {length} bytes on standard input are neither runtime options nor bootstrap parameters"
)]
pub struct StartInputError {
    length: usize,
    #[source]
    source: protobuf::Error,
}

impl StartInput {
    /// Tells which message `bytes` are. `id` and `namespace` are those of the flags, which every
    /// containerd passes too.
    pub fn decode(bytes: &[u8], id: &str, namespace: &str) -> Result<Self, StartInputError> {
        if bytes.is_empty() {
            return Ok(Self::Legacy { options: None });
        }
        // Options read as parameters would have a type name as instance and a message's bytes as
        // namespace.
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
            && params.instance_id == id
            && params.namespace == namespace
        {
            return Ok(Self::Bootstrap(Box::new(params)));
        }
        match Any::parse_from_bytes(bytes) {
            Ok(options) => Ok(Self::Legacy { options: Some(options) }),
            Err(source) => Err(StartInputError { length: bytes.len(), source }),
        }
    }

    /// Where to put the socket, if containerd wants it in a particular directory.
    pub fn socket_dir(&self) -> Option<&Path> {
        match self {
            Self::Legacy { .. } => None,
            Self::Bootstrap(params) => {
                params.socket_dir.as_deref().filter(|dir| !dir.is_empty()).map(Path::new)
            }
        }
    }

    /// Where to send events, if the input says so (else it is in the environment).
    pub fn ttrpc_address(&self) -> Option<&str> {
        match self {
            Self::Legacy { .. } => None,
            Self::Bootstrap(params) => {
                Some(params.containerd_ttrpc_address.as_str()).filter(|address| !address.is_empty())
            }
        }
    }

    /// Whether the input asks for debug messages (it may also be asked for by flag).
    pub fn debug(&self) -> bool {
        match self {
            Self::Legacy { .. } => false,
            Self::Bootstrap(params) => params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG as i32,
        }
    }

    /// The whole of what `start` writes to its standard output, in the form that this containerd is
    /// sure to understand.
    ///
    /// Neither begins nor ends with a byte that containerd would trim as white space.
    pub fn answer(&self, address: &SocketAddress) -> Vec<u8> {
        match self {
            Self::Legacy { .. } => address.to_string().into_bytes(),
            Self::Bootstrap(_) => BootstrapResult {
                version: TASK_VERSION,
                address: address.to_string(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            }
            .write_to_bytes()
            .expect("a message that lives in memory can be written to memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Any {
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x09/etc/kata".to_vec(),
            ..Any::default()
        }
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            log_level: LogLevel::LOG_LEVEL_DEBUG.into(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".into(),
            socket_dir: Some("/run/kt".into()),
            ..BootstrapParams::default()
        }
    }

    fn address() -> SocketAddress {
        "unix:///run/containerd/s/abc".parse().unwrap()
    }

    #[test]
    fn options_that_also_parse_as_parameters_are_still_options() {
        let bytes = options().write_to_bytes().unwrap();
        assert!(BootstrapParams::parse_from_bytes(&bytes).is_ok(), "this is the trap");
        let input = StartInput::decode(&bytes, "c1", "default").unwrap();
        assert_eq!(input, StartInput::Legacy { options: Some(options()) });
        assert_eq!(input.answer(&address()), b"unix:///run/containerd/s/abc");
    }

    #[test]
    fn parameters_that_also_parse_as_options_are_still_parameters() {
        let minimal = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            ..BootstrapParams::default()
        };
        let bytes = minimal.write_to_bytes().unwrap();
        assert!(Any::parse_from_bytes(&bytes).is_ok(), "this is the trap");
        assert_eq!(
            StartInput::decode(&bytes, "c1", "default").unwrap(),
            StartInput::Bootstrap(Box::new(minimal))
        );
    }

    #[test]
    fn parameters_of_another_container_are_not_believed() {
        let bytes = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            ..BootstrapParams::default()
        }
        .write_to_bytes()
        .unwrap();
        assert!(matches!(
            StartInput::decode(&bytes, "c2", "default").unwrap(),
            StartInput::Legacy { .. }
        ));
        assert!(matches!(
            StartInput::decode(&bytes, "c1", "k8s.io").unwrap(),
            StartInput::Legacy { .. }
        ));
    }

    #[test]
    fn the_answer_to_parameters_is_a_result_that_survives_trimming() {
        let input =
            StartInput::decode(&params().write_to_bytes().unwrap(), "c1", "default").unwrap();
        assert_eq!(input.socket_dir(), Some(Path::new("/run/kt")));
        assert_eq!(input.ttrpc_address(), Some("/run/c.sock.ttrpc"));
        assert!(input.debug());
        let answer = input.answer(&address());
        assert_eq!(answer.trim_ascii(), answer);
        let result = BootstrapResult::parse_from_bytes(&answer).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(result.address, address().to_string());
    }

    #[test]
    fn nothing_is_legacy_and_garbage_an_error() {
        assert_eq!(
            StartInput::decode(b"", "c", "n").unwrap(),
            StartInput::Legacy { options: None }
        );
        assert!(StartInput::decode(&[0x0a, 0xff, 0xff], "c", "n").is_err());
    }
}
