//! Where `unsafe` may stand. The lint `unsafe_code` denies it everywhere, and a file that expects
//! it all the same has to be listed here, so that nobody adds one in passing.

use crate::style::SourceFile;

/// The files, by the reason for which safe code does not do.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "system calls and ioctls that have no safe wrapper",
        &[
            "bin/kata-krun/src/nic.rs",
            "guest/container/src/process.rs",
            "guest/setup/src/boot.rs",
            "guest/setup/src/channel.rs",
            "guest/setup/src/entropy.rs",
            "host/network/src/tap.rs",
            "host/qemu/src/vsock.rs",
            "support/linux/src/bpf.rs",
            "support/linux/src/landlock.rs",
            "support/linux/src/mount/tree.rs",
        ],
    ),
    (
        "fork, clone and what runs between them and exec",
        &["guest/container/src/fork.rs", "support/linux/src/jail.rs"],
    ),
    (
        "descriptors that are inherited, and known by their number only",
        &["bin/kata-virtiofsd/src/listener.rs", "support/linux/src/descriptors.rs"],
    ),
    (
        "descriptors for whose life tokio or a test's device asks for a promise",
        &[
            "bin/kata-virtiofsd/tests/raw_guest/mod.rs",
            "guest/container/src/descriptor.rs",
            "guest/setup/src/serial.rs",
            "guest/setup/src/uevent.rs",
            "support/linux/src/directory.rs",
            "support/linux/src/pidfd.rs",
        ],
    ),
    ("the interface of libkrun, which is C", &["bin/kata-krun/src/machine.rs"]),
    ("advice about the program's own mappings", &["support/linux/src/memory.rs"]),
    ("the processor's time stamp counter", &["support/linux/src/tsc.rs"]),
];

/// Every file with `unsafe` that is not listed, and every listed one without it.
pub(crate) fn violations(files: &[SourceFile]) -> Vec<String> {
    let listed = || ALLOWED.iter().flat_map(|(_, files)| files.iter().copied());
    let has: Vec<&str> = files
        .iter()
        .filter(|file| lifts_the_ban(&file.text))
        .filter_map(|file| file.path.to_str())
        .collect();
    let added = has.iter().filter(|path| listed().all(|one| one != **path)).map(|path| {
        format!("{path}: may not have `unsafe`; do it in a file that may (xtask/src/unsafety.rs)")
    });
    let stale = listed()
        .filter(|path| !has.contains(path))
        .map(|path| format!("xtask/src/unsafety.rs: {path} has no `unsafe`; take it off the list"));
    added.chain(stale).collect()
}

/// Whether some of the file is exempt from the lint. The compiler refuses any other `unsafe`.
fn lifts_the_ban(text: &str) -> bool {
    let squeezed: String = text.split_whitespace().collect();
    ["expect(unsafe_code", "allow(unsafe_code"].iter().any(|start| {
        // A line of this file that names them in quotes is none.
        squeezed.match_indices(start).any(|(at, _)| squeezed[..at].ends_with('['))
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: PathBuf::from(path), text: text.to_owned() }
    }

    #[test]
    fn unsafe_outside_the_list_is_reported() {
        let attribute = "#![expect(\n    unsafe_code,\n    reason = \"\"\n)]";
        let found = violations(&[file("host/task/src/lib.rs", attribute)]);
        assert!(found[0].starts_with("host/task/src/lib.rs: may not have"), "{found:?}");
    }

    #[test]
    fn listed_file_without_unsafe_is_reported() {
        let found = violations(&[file("support/linux/src/tsc.rs", "fn safe() {}")]);
        assert!(found.iter().any(|one| one.contains("tsc.rs has no `unsafe`")), "{found:?}");
    }

    #[test]
    fn only_an_attribute_lifts_the_ban() {
        assert!(lifts_the_ban(concat!("#[allow(", "unsafe_code, reason = \"x\")]")));
        assert!(!lifts_the_ban("// expect(unsafe_code) is what it says"));
    }
}
