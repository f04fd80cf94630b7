//! The build script of every program: how it is linked.
//!
//! A program that may lie anywhere has a table of the places into which its loader writes
//! addresses, 24 bytes for each of some 30 000, all read at its start. Packed (`DT_RELR`, gABI) the
//! table takes a fortieth of that, which each process of a sandbox has less to map, and the guest
//! to unpack.

use std::env;
use std::process::Command;

/// The first glibc that reads packed tables; an older one would not start the program.
const PACKED_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=../link.rs");
    let builds_for_itself = env::var_os("HOST") == env::var_os("TARGET");
    if builds_for_itself && glibc().is_some_and(|version| version >= PACKED_SINCE) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc; `None` where there is none, or another C library.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
