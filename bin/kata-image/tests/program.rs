//! The program as people, Makefiles and other programs run it, and as somebody without rights.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kata_kernel::Configuration;
use serde_json::Value;
use tempfile::TempDir;

/// Somebody who is not root and owns nothing.
const NOBODY: u32 = 65534;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kata-image");

/// A directory with an agent in it: the head of a static program, and something after it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.at("agent"), static_program(&[])).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program to be, in this directory.
    fn command(&self, program: impl AsRef<Path>, line: &str) -> Command {
        let mut command = Command::new(program.as_ref());
        command.args(line.split(' ')).current_dir(self.0.path()).env("KATA_CACHE_DIR", "/nowhere");
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(PROGRAM, line).output().unwrap()
    }

    /// What it says on standard error when it refuses.
    #[track_caller]
    fn refusal(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(!output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The objects that it prints, a line each.
    #[track_caller]
    fn json(&self, line: &str) -> Vec<Value> {
        let output = self.run(&format!("{line} --format json"));
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Puts a kernel as it was built for this version into a cache.
    fn cache_kernel(&self, cache: &str) {
        let entry = self.at(cache).join("kernel/0123");
        fs::create_dir_all(&entry).unwrap();
        let head = "#\n# Linux/x86 6.12.43 Kernel Configuration\n#\n";
        let config = Configuration::merged().unwrap().to_kconfig();
        fs::write(entry.join("config"), format!("{head}{config}")).unwrap();
        fs::write(entry.join("vmlinux.container"), "uncompressed").unwrap();
        fs::write(entry.join("vmlinuz.container"), "compressed").unwrap();
    }
}

/// An ELF program for x86-64 with these segments (type and content), and 1 MiB of something.
fn static_program(segments: &[(u32, &[u8])]) -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    elf[16] = 2; // executable
    elf[18] = 62; // x86-64
    elf[20] = 1;
    elf[32] = 64; // where the segments' table is
    elf[52] = 64;
    elf[54] = 56;
    elf[56] = u8::try_from(segments.len()).unwrap();
    elf[58] = 64;
    let mut content = Vec::new();
    for (kind, bytes) in segments {
        let at = (64 + 56 * segments.len() + content.len()) as u64;
        let length = bytes.len() as u64;
        elf.extend(kind.to_le_bytes());
        elf.extend(4_u32.to_le_bytes());
        elf.extend([at, 0, 0, length, length, 4].iter().flat_map(|field| field.to_le_bytes()));
        content.extend_from_slice(bytes);
    }
    elf.extend(content);
    elf.extend((0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
    elf
}

/// By another process: were the copy open for writing in this one, a child that another test forks
/// meanwhile would have it open, too, and nobody could run it.
fn copy_program(to: &Path) {
    assert!(Command::new("cp").arg(PROGRAM).arg(to).status().unwrap().success());
}

/// A kernel's head: the note with its PVH entry point (name, value, kind; then both).
fn kernel() -> Vec<u8> {
    const NOTE: u32 = 4;
    static_program(&[(NOTE, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01")])
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn progress_is_plain_lines_where_there_is_no_terminal() {
    let place = Place::new();
    let output = place.run("rootfs --agent agent --output image --verity");
    assert!(output.status.success(), "{output:?}");
    let progress = text(&output.stderr);
    assert!(progress.starts_with("build the file system\nwrote image ("), "{progress}");
    assert!(!progress.contains(['\r', '\x1b']), "{progress:?}");
    let facts = text(&output.stdout);
    assert!(facts.starts_with("kernel_verity_params = root_hash="), "{facts}");
    assert_eq!(facts.lines().count(), 1);
}

/// `script` of bsdutils is the terminal.
#[test]
fn progress_is_a_bar_on_a_terminal() {
    let place = Place::new();
    let line = format!("{PROGRAM} rootfs --agent agent --output image --verity");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let run = script.current_dir(place.0.path()).env("TERM", "xterm").output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let shown = text(&run.stdout);
    let (bar, rest) = shown.split_once("wrote image (").unwrap();
    // It is drawn over itself, and taken away in the end.
    assert!(bar.contains("build the file system") && bar.contains('\r'), "{shown:?}");
    assert!(bar.ends_with("\x1b[2K"), "{shown:?}");
    assert!(rest.contains("MiB)\r\nkernel_verity_params = "), "{shown:?}");
}

#[test]
fn json_is_an_object_a_line() {
    let place = Place::new();
    let said = place.json("rootfs --agent agent --output image --verity --config drop-in.toml");
    let files: Vec<&Value> = said.iter().filter_map(|line| line.get("file")).collect();
    assert_eq!(files, ["image", "drop-in.toml"]);
    assert!(said.iter().any(|line| line["stage"] == "build the file system"), "{said:?}");
    let bytes = said.iter().find_map(|line| line["bytes"].as_u64());
    assert_eq!(bytes, Some(place.at("image").metadata().unwrap().len()));
    let params = said.iter().find_map(|line| line["kernel_verity_params"].as_str()).unwrap();
    let drop_in = fs::read_to_string(place.at("drop-in.toml")).unwrap();
    assert_eq!(drop_in.matches(params).count(), 4, "{drop_in}");
}

#[test]
fn drop_in_is_for_the_hypervisors_that_are_named() {
    let place = Place::new();
    let line = "rootfs --agent agent --output image --config drop-in.toml --hypervisor";
    place.json(&format!("{line} krun"));
    let drop_in = fs::read_to_string(place.at("drop-in.toml")).unwrap();
    assert!(drop_in.contains("\n[hypervisor.krun]\n"), "{drop_in}");
    assert_eq!(drop_in.matches("[hypervisor.").count(), 1, "{drop_in}");
    let error = place.refusal(&format!("{line} dragonball"));
    assert!(error.contains("dragonball") && error.contains("qemu"), "{error}");
    let error = place.refusal("rootfs --agent agent --output image --hypervisor qemu");
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn same_input_gives_the_same_bytes() {
    let place = Place::new();
    for (name, line) in [
        ("initrd", "initrd --agent agent"),
        ("erofs", "rootfs --agent agent --verity"),
        ("ext4", "rootfs --agent agent --file-system ext4"),
    ] {
        for output in ["first", "second"] {
            place.json(&format!("{line} --output {output}"));
        }
        let read = |name| fs::read(place.at(name)).unwrap();
        assert!(read("first") == read("second"), "{name}");
    }
}

#[test]
fn agent_is_the_one_that_is_installed_with_the_program() {
    let place = Place::new();
    let program = place.at("prefix/bin/kata-image");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    copy_program(&program);
    let line = "initrd --output initrd";
    let output = place.command(&program, line).output().unwrap();
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains("--agent"), "{error}");
    let agent = place.at("prefix/share/kata-containers/guest/kata-agent");
    assert!(error.contains(&*agent.to_string_lossy()), "{error}");
    fs::create_dir_all(agent.parent().unwrap()).unwrap();
    fs::copy(place.at("agent"), agent).unwrap();
    let output = place.command(&program, line).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    place.json("initrd --agent agent --output other");
    assert!(fs::read(place.at("initrd")).unwrap() == fs::read(place.at("other")).unwrap());
}

#[test]
fn what_cannot_be_is_refused_in_a_sentence() {
    let place = Place::new();
    fs::write(place.at("script"), "#!/bin/sh\n").unwrap();
    const INTERPRETER: u32 = 3;
    fs::write(place.at("dynamic"), static_program(&[(INTERPRETER, b"/lib/ld.so\0")])).unwrap();
    for (line, words) in [
        ("initrd --agent no-agent --output x", "cannot read the agent no-agent"),
        ("initrd --agent script --output x", "the agent script"),
        ("initrd --agent dynamic --output x", "the agent dynamic"),
        ("initrd --agent agent --module ext4 --output x", "--kernel-package"),
        ("rootfs --agent dynamic --output x", "cannot build the rootfs image"),
        ("rootfs --agent agent --suite ../x --package bash --output x", "no suite of Debian"),
        ("rootfs --agent agent --output agent/x", "cannot write agent/x"),
        ("kernel --from no-kernel --output x", "cannot read no-kernel"),
        ("kernel --from script --output x", "cannot use the kernel script"),
        ("kernel --from . --output x", "has neither vmlinux.container nor vmlinuz.container"),
        ("kernel --from agent --only-cached --output x", "cannot be used with"),
        ("kernel --only-cached --cache cache --output x", "no small kernel for this version"),
    ] {
        let error = place.refusal(line);
        assert!(error.contains(words), "{line}: {error}");
        assert!(!place.at("x").exists(), "{line}");
    }
}

#[test]
fn kernel_is_taken_from_a_file_or_a_directory() {
    let place = Place::new();
    fs::create_dir(place.at("package")).unwrap();
    fs::write(place.at("package/vmlinux.container"), kernel()).unwrap();
    fs::write(place.at("package/vmlinuz.container"), "compressed").unwrap();
    place.json("kernel --from package --output vmlinux --vmlinuz vmlinuz");
    // What is behind the last segment is none of the kernel's.
    let vmlinux = fs::read(place.at("vmlinux")).unwrap();
    assert!(kernel().starts_with(&vmlinux) && vmlinux.len() > 64, "{}", vmlinux.len());
    assert_eq!(fs::read(place.at("vmlinuz")).unwrap(), b"compressed");
    // The compressed one of another kernel does not stay.
    let said = place.json("kernel --from ./vmlinux --output other --vmlinuz vmlinuz");
    assert!(said.iter().any(|line| line["note"].is_string()), "{said:?}");
    assert!(fs::read(place.at("other")).unwrap() == vmlinux && !place.at("vmlinuz").exists());
}

#[test]
fn kernel_of_an_earlier_build_is_taken_and_told() {
    let place = Place::new();
    place.cache_kernel("cache");
    let line = "kernel --only-cached --cache cache --source linux-source-0.0 --output vmlinux \
                --vmlinuz vmlinuz";
    let said = place.json(line);
    let value = |name: &str| said.iter().find_map(|line| line[name].as_str()).unwrap();
    assert!(value("note").contains("an earlier build"), "{said:?}");
    assert_eq!((value("version"), value("key")), ("6.12.43", "0123"));
    assert_eq!(fs::read(place.at("vmlinux")).unwrap(), b"uncompressed");
    assert_eq!(fs::read(place.at("vmlinuz")).unwrap(), b"compressed");
    let output = place.run(line);
    assert!(text(&output.stderr).starts_with("note: the small kernel is of an earlier build: "));
}

#[test]
fn nobody_in_particular_builds_everything() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test here is this one.
        return;
    }
    let place = Place::new();
    place.cache_kernel("cache");
    let program = place.at("kata-image");
    copy_program(&program);
    fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(place.at("out")).unwrap();
    chown(place.at("out"), Some(NOBODY), Some(NOBODY)).unwrap();
    for (output, line) in [
        ("initrd", "initrd --agent agent"),
        ("image", "rootfs --agent agent --file-system ext4"),
        ("checked", "rootfs --agent agent --verity"),
        // Of a cache that root has filled.
        ("vmlinux", "kernel --only-cached --cache cache --source linux-source-0.0"),
    ] {
        let mut command = place.command(&program, &format!("{line} --output out/{output}"));
        let run = command.uid(NOBODY).gid(NOBODY).output().unwrap();
        assert!(run.status.success(), "{line}: {run:?}");
        assert!(place.at("out").join(output).metadata().unwrap().len() > 0, "{line}");
    }
    let mut command = place.command(&program, "initrd --agent agent --output refused");
    let run = command.uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(!run.status.success() && text(&run.stderr).contains("cannot write"), "{run:?}");
}
