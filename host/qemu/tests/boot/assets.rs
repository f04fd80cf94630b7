//! What the tests boot: the staged guest kernel, and an initrd made of the staged one and the
//! test's own first process.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Where `make` stages the guest's files.
const STAGE: &str = "../../build/stage/usr/local/share/kata-containers";

/// The first process of the test's guest, in its initrd.
pub(crate) const INIT: &str = "kata-test-init";

/// The guest kernel.
pub(crate) fn kernel() -> PathBuf {
    asset("KATA_TEST_KERNEL", "vmlinux.container")
}

/// An initrd in `directory` that has the staged one's modules and starts this program. A later
/// archive adds to an earlier one (Linux,
/// Documentation/driver-api/early-userspace/buffer-format.rst).
pub(crate) fn initrd(directory: &Path) -> PathBuf {
    let mut archive = fs::read(asset("KATA_TEST_INITRD", "kata-containers-initrd.img")).unwrap();
    archive.resize(archive.len().next_multiple_of(4), 0);
    let mut own = Archive::default();
    own.add(INIT, 0o100_755, &fs::read(env::current_exe().unwrap()).unwrap());
    for (path, content) in mapped_libraries() {
        let mut parent = PathBuf::new();
        for part in Path::new(&path).parent().unwrap().components() {
            parent.push(part);
            own.add(parent.to_str().unwrap(), 0o040_755, b"");
        }
        own.add(&path, 0o100_755, &content);
    }
    archive.extend(own.finish());
    let path = directory.join("initrd.img");
    fs::write(&path, archive).unwrap();
    path
}

fn asset(variable: &str, name: &str) -> PathBuf {
    let path = env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(STAGE).join(name),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is missing: run `make` first, which stages the guest's files, or set {variable}",
        path.display()
    );
    path
}

/// Path in the guest and content of every library of this process, the loader under the name that
/// programs ask for.
fn mapped_libraries() -> Vec<(String, Vec<u8>)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .filter(|path| path.contains(".so"))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    let library = |path: &str| {
        let name = path.rsplit('/').next().unwrap();
        let directory = if name.starts_with("ld-linux") { "lib64" } else { "lib/x86_64-linux-gnu" };
        (format!("{directory}/{name}"), fs::read(path).unwrap())
    };
    paths.into_iter().map(library).collect()
}

/// A cpio archive in the format of the kernel's initramfs.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let number = self.0.len();
        let (length, name_length) = (content.len(), name.len() + 1);
        // inode, mode, uid, gid, links, time, size, four device numbers, length of the name,
        // checksum
        let header = format!(
            "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{length:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_length:08x}{0:08x}",
            0, 1
        );
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.align();
        self.0.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.0
    }
}
