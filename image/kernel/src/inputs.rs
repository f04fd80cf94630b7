//! What a kernel is made from, and the hash of it.

use crate::compile::{BuildError, output, tool};
use crate::{Configuration, Source, additions, cache};

/// The way of building, as a part of the hash: raise it when it changes the result.
const RECIPE: &str = "3";

/// Everything that a kernel's bytes depend on.
pub(crate) struct Inputs {
    pub(crate) source: Source,
    /// The first line of what gcc says about its version.
    pub(crate) compiler: String,
    linker: String,
    compressor: String,
    /// What the fragments want.
    merged: String,
}

impl Inputs {
    /// Asks apt for the source (see [`Source::find`]), and the programs for their versions.
    pub(crate) fn find(
        source: Option<&str>,
        configuration: &Configuration,
    ) -> Result<Self, BuildError> {
        let version = |program, what| -> Result<String, BuildError> {
            let text = output(tool(program).arg("--version"), what)?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        Ok(Self {
            source: Source::find(source)?,
            compiler: version("gcc", "asking gcc for its version")?,
            linker: version("ld", "asking ld for its version")?,
            compressor: version("lz4", "asking lz4 for its version")?,
            merged: configuration.to_kconfig(),
        })
    }

    /// The hash.
    pub(crate) fn key(&self) -> String {
        let Self { source, compiler, linker, compressor, merged } = self;
        let Source { package, version } = source;
        let added = additions::text();
        cache::key(&[RECIPE, package, version, compiler, linker, compressor, merged, &added])
    }
}
