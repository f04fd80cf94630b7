//! What a kernel is made from, and the hash of it.

use std::process::Command;

use crate::compile::{BuildError, output};
use crate::{Configuration, Source, additions, cache};

/// The way of building, as a part of the hash: raise it when it changes the result.
const RECIPE: &str = "1";

/// Everything that a kernel's bytes depend on.
pub(crate) struct Inputs {
    pub(crate) source: Source,
    /// The first line of what gcc says about its version.
    pub(crate) compiler: String,
    linker: String,
    /// What the fragments want.
    merged: String,
}

impl Inputs {
    /// Asks apt for the source (see [`Source::find`]), and the compiler for its version.
    pub(crate) fn find(
        source: Option<&str>,
        configuration: &Configuration,
    ) -> Result<Self, BuildError> {
        let version = |program, what| -> Result<String, BuildError> {
            let text = output(Command::new(program).arg("--version"), what)?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        Ok(Self {
            source: Source::find(source)?,
            compiler: version("gcc", "asking gcc for its version")?,
            linker: version("ld", "asking ld for its version")?,
            merged: configuration.to_kconfig(),
        })
    }

    /// The hash.
    pub(crate) fn key(&self) -> String {
        let Self { source, compiler, linker, merged } = self;
        let Source { package, version } = source;
        let added = additions::text();
        cache::key(&[RECIPE, package, version, compiler, linker, merged, &added])
    }
}
