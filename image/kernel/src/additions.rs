//! Code of our own that is compiled into the kernel, where no option of its does what a guest
//! needs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Each by its name.
const ADDITIONS: &[(&str, &str)] =
    &[("lapic_timer_hz", include_str!("../additions/lapic_timer_hz.c"))];

/// Where they are put, in the source's tree.
const PLACE: &str = "arch/x86/kernel";

/// All of them, as a part of what a kernel is made from.
pub(crate) fn text() -> String {
    ADDITIONS.iter().map(|(name, code)| format!("{name}\n{code}\n")).collect()
}

/// Puts them into the unpacked source `tree`. On an error, it comes with the file that cannot be
/// written.
pub(crate) fn add_to(tree: &Path) -> Result<(), (PathBuf, io::Error)> {
    let place = tree.join(PLACE);
    let makefile = place.join("Makefile");
    for (name, code) in ADDITIONS {
        let file = place.join(format!("kata_{name}.c"));
        fs::write(&file, code).map_err(|error| (file, error))?;
        let line = format!("obj-y += kata_{name}.o\n");
        append(&makefile, &line).map_err(|error| (makefile.clone(), error))?;
    }
    Ok(())
}

/// Only to a file that is there: a source without it is another one than this was made for.
fn append(file: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(file)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_are_compiled_with_their_neighbours() {
        let tree = tempfile::tempdir().unwrap();
        let place = tree.path().join(PLACE);
        fs::create_dir_all(&place).unwrap();
        let (file, _) = add_to(tree.path()).unwrap_err();
        assert_eq!(file, place.join("Makefile"));

        fs::write(place.join("Makefile"), "obj-y += apic.o\n").unwrap();
        add_to(tree.path()).unwrap();
        let makefile = fs::read_to_string(place.join("Makefile")).unwrap();
        assert_eq!(makefile, "obj-y += apic.o\nobj-y += kata_lapic_timer_hz.o\n");
        assert!(place.join("kata_lapic_timer_hz.c").exists());
        assert!(text().contains("early_param(\"lapic_timer_hz\""));
    }
}
