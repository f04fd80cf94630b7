//! Whole images, judged by the programs that know their formats where those are installed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kata_rootfs::{FileSystem, Init, Rootfs, RootfsError, RootfsOptions, build_rootfs};

/// Where partition 1 begins.
const DATA: usize = 1 << 20;

/// An ELF header of a static program, and enough after it for several levels of hashes.
fn agent() -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    elf[16] = 2; // executable
    elf[18] = 62; // x86-64
    elf[20] = 1;
    elf[52] = 64;
    elf[54] = 56;
    elf[58] = 64;
    elf.extend((0..1_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
    elf
}

fn build(file_system: FileSystem, verity: bool) -> Rootfs {
    let (agent, init) = (agent(), Init::Agent);
    build_rootfs(&RootfsOptions { agent: &agent, packages: &[], init, file_system, verity })
        .unwrap()
}

/// What a program says about a file; `None` where it is not installed.
fn judged(program: &str, args: &[&str], file: &Path) -> Option<Output> {
    Command::new(program).args(args).arg(file).output().ok()
}

#[test]
fn same_input_gives_the_same_bytes() {
    for file_system in [FileSystem::Erofs, FileSystem::Ext4] {
        assert!(build(file_system, true) == build(file_system, true), "{file_system:?}");
    }
}

#[test]
fn ext4_is_clean_and_has_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ext4");
    fs::write(&file, &build(FileSystem::Ext4, false).disk[DATA..]).unwrap();
    let Some(fsck) = judged("e2fsck", &["-f", "-n"], &file) else { return };
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    let cat = Command::new("debugfs").args(["-R", "cat /usr/bin/kata-agent"]).arg(&file).output();
    assert!(cat.unwrap().stdout == agent(), "the agent in the image is another");
}

#[test]
fn erofs_is_clean_and_has_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("erofs");
    let image = build(FileSystem::Erofs, false).disk.split_off(DATA);
    assert_eq!(image[1024..1028], 0xE0F5_E1E2_u32.to_le_bytes());
    fs::write(&file, &image).unwrap();
    let Some(fsck) = judged("fsck.erofs", &[], &file) else { return };
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
}

#[test]
fn hash_tree_is_the_one_that_veritysetup_would_make() {
    let built = build(FileSystem::Erofs, true);
    let verity = built.verity.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let length = verity.data_blocks * 4096;
    fs::write(&data, &built.disk[DATA..DATA + length]).unwrap();
    let salt = format!("--salt={}", verity.salt);
    let hashes = directory.path().join("hashes");
    let Ok(made) = Command::new("veritysetup")
        .args(["format", "--no-superblock", &salt])
        .args([&data, &hashes])
        .output()
    else {
        return;
    };
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(said.contains(&verity.root_hash), "{} is not in: {said}", verity.root_hash);
    let start = (DATA + length).next_multiple_of(1 << 20);
    let hashes = fs::read(hashes).unwrap();
    assert!(built.disk[start..].starts_with(&hashes), "the hash tree differs");
}

#[test]
fn systemd_comes_out_of_a_package_or_not_at_all() {
    let options = RootfsOptions {
        agent: &agent(),
        packages: &[],
        init: Init::Systemd,
        file_system: FileSystem::Erofs,
        verity: false,
    };
    assert!(matches!(build_rootfs(&options), Err(RootfsError::NoSystemd)));
}

/// A package with one file, as dpkg-deb(1) lays it out (deb(5)). What its archive says of times is
/// `time`, in seconds since 1970.
fn package(directory: &Path, name: &str, time: u64) -> PathBuf {
    let mut data = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(1 << 16);
    header.set_mtime(time);
    let content = vec![name.as_bytes()[0]; 1 << 16];
    data.append_data(&mut header, format!("./usr/bin/{name}"), content.as_slice()).unwrap();
    let mut deb = b"!<arch>\n".to_vec();
    for (member, content) in
        [("debian-binary", b"2.0\n".to_vec()), ("data.tar", data.into_inner().unwrap())]
    {
        let (owner, length) = (0, content.len());
        let head = format!("{member:<16}{time:<12}{owner:<6}{owner:<6}{:<8}{length:<10}`\n", "644");
        deb.extend(head.into_bytes());
        deb.extend(content);
    }
    let file = directory.join(format!("{name}.deb"));
    fs::write(&file, deb).unwrap();
    file
}

/// Of the same packages, wherever and whenever they were downloaded.
#[test]
fn same_packages_give_the_same_bytes() {
    let agent = agent();
    for file_system in [FileSystem::Erofs, FileSystem::Ext4] {
        let [first, second, other] = [1_700_000_000, 1_700_000_000, 1_800_000_000].map(|time| {
            let directory = tempfile::tempdir().unwrap();
            let packages = ["bash", "coreutils"].map(|name| package(directory.path(), name, time));
            let (packages, init) = (&packages[..], Init::Agent);
            let verity = true;
            let options = RootfsOptions { agent: &agent, packages, init, file_system, verity };
            build_rootfs(&options).unwrap().disk
        });
        assert!(first == second, "{file_system:?}");
        assert!(first.windows(64).any(|bytes| *bytes == [b'c'; 64]), "{file_system:?}");
        // Nothing but the files counts: their times are none of the image's.
        assert!(first == other, "{file_system:?}");
    }
}
