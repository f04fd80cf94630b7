//! What `-info` and `delete` print.

use containerd_shim_protos::types::introspection::RuntimeVersion;
use protobuf::well_known_types::any::Any;

pub use containerd_shim_protos::api::DeleteResponse;
pub use containerd_shim_protos::types::introspection::RuntimeInfo;

/// Under this name containerd expects the features of OCI's runtime specification, as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The features of OCI's `features.md`, given as JSON, packed as [`RuntimeInfo`] carries them.
pub fn features_any(json: Vec<u8>) -> Any {
    Any { type_url: FEATURES.to_owned(), value: json, ..Any::default() }
}

/// The answer to `-info`.
///
/// `options` are those that were on standard input. There are no annotations:
/// `containerd.io/runtime-allow-mounts` would name the mount types that containerd's mount manager
/// should leave to the shim, and there are none.
pub fn runtime_info(name: &str, version: &str, features: Any, options: Option<Any>) -> RuntimeInfo {
    RuntimeInfo {
        name: name.to_owned(),
        version: Some(RuntimeVersion { version: version.to_owned(), ..RuntimeVersion::default() })
            .into(),
        options: options.into(),
        features: Some(features).into(),
        ..RuntimeInfo::default()
    }
}
