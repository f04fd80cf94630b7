//! The options that an engine passes to a runtime it knows nothing about.

use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;

/// Names of the one message that is understood; engines of different age wrap it under different
/// ones.
const NAMES: [&str; 3] = [
    "runtimeoptions.v1.Options",
    "cri.runtimeoptions.v1.Options",
    "containerd.runtimeoptions.v1.Options",
];

/// `runtimeoptions.v1.Options`: what `[plugins….runtimes.kata.options]`, or
/// `--runtime-config-path`, says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// The type that the engine's own configuration names; of no use here. Empty if not given.
    pub type_url: String,
    /// The configuration file to use. Empty: the usual locations.
    pub config_path: String,
    /// The engine's `options` table as TOML (containerd 1.7 and later, if it has no `ConfigPath`).
    /// Empty if not given.
    pub config_body: Vec<u8>,
}

/// The options could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the runtime options of type {type_url:?} are malformed")]
pub struct OptionsError {
    type_url: String,
    #[source]
    source: protobuf::Error,
}

impl RuntimeOptions {
    /// The options in `any`. All empty if there are none, or if they are another message, such as
    /// runc's options, which a default configuration sends to every runtime and which mean nothing
    /// here.
    pub fn from_any(any: Option<&Any>) -> Result<Self, OptionsError> {
        let Some(any) = any else { return Ok(Self::default()) };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if !NAMES.contains(&name) {
            return Ok(Self::default());
        }
        Self::parse(&any.value)
            .map_err(|source| OptionsError { type_url: any.type_url.clone(), source })
    }

    /// The message that names a configuration file, as [`RuntimeOptions::from_any`] reads it.
    #[must_use]
    pub fn with_config_path(path: &str) -> Any {
        let mut value = Vec::new();
        let mut stream = protobuf::CodedOutputStream::vec(&mut value);
        let written = stream.write_string(2, path).and_then(|()| stream.flush());
        written.expect("a vector takes everything");
        drop(stream);
        Any { type_url: NAMES[0].to_owned(), value, ..Any::default() }
    }

    fn parse(bytes: &[u8]) -> Result<Self, protobuf::Error> {
        /// The wire type of strings and bytes.
        const LENGTH_DELIMITED: u32 = 2;
        let mut options = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match (tag >> 3, tag & 7) {
                (1, LENGTH_DELIMITED) => options.type_url = input.read_string()?,
                (2, LENGTH_DELIMITED) => options.config_path = input.read_string()?,
                (3, LENGTH_DELIMITED) => options.config_body = input.read_bytes()?,
                _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::CodedOutputStream;

    use super::*;

    #[test]
    fn a_named_configuration_file_is_read_back() {
        let any = RuntimeOptions::with_config_path("/etc/k.toml");
        let options = RuntimeOptions::from_any(Some(&any)).unwrap();
        assert_eq!(options.config_path, "/etc/k.toml");
    }

    fn encode(options: &RuntimeOptions, extra: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        if extra {
            out.write_uint64(9, 7).unwrap();
            out.write_string(15, "new").unwrap();
        }
        out.write_string(1, &options.type_url).unwrap();
        out.write_string(2, &options.config_path).unwrap();
        out.write_bytes(3, &options.config_body).unwrap();
        out.flush().unwrap();
        drop(out);
        bytes
    }

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Any::default() }
    }

    #[test]
    fn every_alias_is_understood_with_and_without_a_prefix() {
        let options =
            RuntimeOptions { config_path: "/etc/kata.toml".into(), ..RuntimeOptions::default() };
        for name in NAMES {
            for prefix in ["", "type.googleapis.com/", "types.containerd.io/"] {
                let any = any(&format!("{prefix}{name}"), encode(&options, false));
                assert_eq!(RuntimeOptions::from_any(Some(&any)).unwrap(), options);
            }
        }
    }

    #[test]
    fn other_runtimes_options_count_as_none_and_broken_ones_are_an_error() {
        let none = RuntimeOptions::default();
        assert_eq!(RuntimeOptions::from_any(None).unwrap(), none);
        assert_eq!(
            RuntimeOptions::from_any(Some(&any("containerd.runc.v1.Options", vec![0xff]))).unwrap(),
            none
        );
        assert!(RuntimeOptions::from_any(Some(&any(NAMES[0], vec![0x12, 0x50, b'x']))).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_unknown_fields_are_stepped_over(
            type_url in ".{0,20}", config_path in ".{0,20}", config_body in prop::collection::vec(proptest::num::u8::ANY, 0..40), extra: bool,
        ) {
            let options = RuntimeOptions { type_url, config_path, config_body };
            let bytes = encode(&options, extra);
            prop_assert_eq!(RuntimeOptions::parse(&bytes).unwrap(), options);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = RuntimeOptions::parse(&bytes);
        }
    }
}
