//! README.md's quick starts, word for word, on a machine that has nothing but Debian, the engines
//! as Debian brings them, and what `make install` installs.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kata_e2e::{checkout, make};
use kata_host_vm::quick_start::{Step, steps};
use kata_host_vm::{Died, Disk, HostImage, Machine, Silent};
use tempfile::TempDir;

/// As it comes from its registry it is not to be had here: this one has the machine's own shell.
const IMAGE: &str = "set -eu
cd /
systemctl start docker
libraries=usr/lib/x86_64-linux-gnu
tar --create bin lib lib64 usr/lib64 usr/bin/bash usr/bin/uname \\
    $libraries/ld-linux-x86-64.so.2 $libraries/libc.so.6 $libraries/libtinfo.so.6* |
    docker import - docker.io/library/debian:stable-slim
docker save --output /tmp/image.tar debian:stable-slim
ctr image import /tmp/image.tar
podman load --input /tmp/image.tar
";

/// What a user types in the container.
const TYPED: &str = "echo the kernel is $(uname -r)\nexit 5\n";

/// The software as `make install` installs it, in a directory that stands for the root.
fn install() -> Result<TempDir> {
    let root = tempfile::tempdir().context("cannot make a directory")?;
    let output = make("install", root.path()).output().context("cannot run make")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(root)
}

/// A script that does what a section of README.md tells. Where it says to restart an engine, that
/// is done after a file was written.
fn script(readme: &str, section: &str, service: Option<&str>) -> Result<String> {
    let mut script = format!("set -eu\nprintf '%s' '{TYPED}' > /tmp/typed\n");
    for step in steps(readme, section) {
        match step {
            Step::Write { path, text } => {
                write!(script, "install -D /dev/stdin {path} << 'END'\n{text}END\n")?;
                if let Some(service) = service {
                    writeln!(script, "systemctl restart {service}")?;
                }
            }
            Step::Type(line) if line.contains(" pull ") => {}
            Step::Type(line) => script += &at_a_terminal(&line)?,
        }
    }
    Ok(script)
}

/// The line typed at a terminal (script(1)), and then what a user types in the container.
fn at_a_terminal(line: &str) -> Result<String> {
    ensure!(!line.contains('\''), "a line without quotes is expected: {line}");
    Ok(format!(
        "code=0; script --quiet --return --command '{line}' /dev/null < /tmp/typed || code=$?\n\
         [ $code = 5 ] || {{ echo \"exit code $code of: {line}\"; exit 1; }}\n"
    ))
}

/// The kernels that containers have told of.
fn kernels(said: &str) -> Vec<&str> {
    let told = said.lines().filter_map(|line| line.trim_end().strip_prefix("the kernel is "));
    told.filter(|release| !release.starts_with("$(")).collect()
}

struct Fresh {
    machine: Machine,
    root: TempDir,
}

impl Fresh {
    fn boot(scripts: &[(&str, String)]) -> Result<Self> {
        let root = install()?;
        for (name, script) in scripts {
            fs::write(root.path().join(name), script).context("cannot write a script")?;
        }
        let disk = Disk::of([root.path().to_owned()])?;
        let machine = Machine::boot(&HostImage::ready()?, Arc::new(disk), 1)?;
        Ok(Self { machine, root })
    }

    /// Runs a command to its end, which must be a good one, and returns what it has said.
    fn run(&mut self, command: &str) -> Result<String> {
        let mut said = String::new();
        let ended = self.machine.run(command, |line| said += &format!("{line}\n"));
        let status = ended.map_err(|error| {
            let words = self.machine.last_words(40);
            let runs = if error.is::<Silent>() { self.machine.processes() } else { String::new() };
            error.context(format!("{command}:\n{said}{words}\n{runs}"))
        })?;
        ensure!(status == 0, "{command}: status {status}\n{said}{}", self.machine.last_words(40));
        Ok(said)
    }

    fn script(&mut self, name: &str) -> Result<String> {
        let path = self.root.path().join(name).display().to_string();
        self.run(&format!("sh '{path}'"))
    }
}

/// On a second one when the first has ended or hangs: the emulation is to blame for some such ends,
/// and from one it cannot be told.
#[test]
fn each_works_on_a_fresh_machine() -> Result<()> {
    match each_works() {
        Err(error) if error.is::<Died>() || error.is::<Silent>() => {
            println!("{error:#}\nonce more, on a new machine");
            each_works()
        }
        ended => ended,
    }
}

fn each_works() -> Result<()> {
    let readme = fs::read_to_string(checkout().join("README.md")).context("there is no README")?;
    let by_path = script(&readme, "Use it with Podman", None)?;
    let by_name = by_path.replace("--runtime /usr/local/bin/kata-runtime", "--runtime kata");
    ensure!(by_name != by_path, "README names Podman's runtime otherwise");
    let engines = [
        ("containerd", script(&readme, "Use it with containerd", Some("containerd"))?),
        // By its path; and when it has been written where its name is looked for, by that.
        ("podman", by_path),
        ("podman by name", by_name),
        ("docker", script(&readme, "Use it with Docker", Some("docker"))?),
    ];
    let scripts: Vec<_> = engines.iter().cloned().chain([("image", IMAGE.to_owned())]).collect();
    let mut fresh = Fresh::boot(&scripts)?;
    let local = fresh.root.path().join("usr/local").display().to_string();
    fresh.run(&format!("cp --archive {local}/. /usr/local/"))?;
    fresh.run("kata-runtime check")?;
    fresh.script("image")?;
    let of_the_machine = fresh.run("uname -r")?;
    for (name, script) in engines {
        let said = fresh.script(name).with_context(|| format!("README's words for {name}"))?;
        let kernels = kernels(&said);
        let lines = script.matches("script --quiet").count();
        ensure!(lines > 0 && kernels.len() == lines, "{name}: {kernels:?} in\n{said}");
        ensure!(
            !kernels.contains(&of_the_machine.trim_end()),
            "{name} runs with the host's kernel"
        );
    }
    fresh
        .run("! pgrep --full --list-full '[q]emu-system-|[/ ]kata-|[c]ontainerd-shim-kata'")
        .map(drop)
}
