//! What `kata-runtime` tells of a host: whether containers can start there, and what they would be
//! made of.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Client, Input, Installation, Output, make};
use serde_json::Value;

/// Runs the installed program with these words, and only the configuration that they name.
fn kata_runtime(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(Installation::under_test().bin().join("kata-runtime"));
    command.args(arguments).env_remove("KATA_CONF_FILE");
    Client::spawn(command, Input::Nothing)?.wait()
}

#[test]
fn environment_names_what_sandboxes_are_made_of() -> Result<()> {
    let json: Value = serde_json::from_str(&kata_runtime(&["env", "--json"])?.success()?)?;
    let at = |path: &str| json.pointer(path).with_context(|| format!("no {path}: {json:#}"));
    let kernel = Installation::under_test().kernel();
    ensure!(at("/Kernel/Path")?.as_str() == kernel.to_str(), "{json:#}");
    ensure!(at("/Hypervisor/Version")?.as_str().is_some_and(|text| text.contains("QEMU")));
    ensure!(at("/Runtime/Version/Semver")? == env!("CARGO_PKG_VERSION"));
    ensure!(at("/Runtime/Config/Path")?.as_str().is_some_and(|text| text.ends_with(".toml")));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(at("/Host/Kernel")? == release.trim());
    ensure!(at("/Host/Memory/Total")?.as_u64() > at("/Host/Memory/Free")?.as_u64());
    for name in ["env", "kata-env"] {
        let text = kata_runtime(&[name])?.success()?;
        ensure!(text.contains("[Host.CPU]\n") && text.contains("[Kernel]\nPath = \""), "{text}");
    }
    Ok(())
}

#[test]
fn manual_is_installed_and_the_shell_completes_commands() -> Result<()> {
    let share = Installation::under_test().prefix().join("share");
    for page in ["kata-runtime", "kata-runtime-check", "kata-runtime-logs"] {
        let text = fs::read_to_string(share.join(format!("man/man8/{page}.8")))?;
        ensure!(text.contains(&format!(".TH {page} 8")), "{text}");
    }
    for script in
        ["zsh/site-functions/_kata-runtime", "fish/vendor_completions.d/kata-runtime.fish"]
    {
        ensure!(fs::read_to_string(share.join(script))?.contains("timeline"), "{script}");
    }
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(
        "source \"$0\"; COMP_WORDS=(kata-runtime che); COMP_CWORD=1; \
         function=$(complete -p kata-runtime | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
         $function kata-runtime che kata-runtime; echo \"${COMPREPLY[@]}\"",
    );
    bash.arg(share.join("bash-completion/completions/kata-runtime"));
    let completed = Client::spawn(bash, Input::Nothing)?.wait()?.success()?;
    let mut words: Vec<&str> = completed.split_whitespace().collect();
    words.sort_unstable();
    ensure!(words == ["check", "checkpoint"], "{completed}");
    Ok(())
}

fn run_make(target: &str, root: &Path) -> Result<Output> {
    Client::spawn(make(target, root), Input::Nothing)?.wait()
}

/// Everything below a directory, links as themselves.
fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(below(&entry.path())?);
        }
        found.push(entry.path());
    }
    Ok(found)
}

#[test]
fn what_is_installed_is_taken_away_again() -> Result<()> {
    let root = tempfile::tempdir()?;
    run_make("install", root.path())?.success()?;
    let prefix = root.path().join("usr/local");
    for file in ["bin/containerd-shim-kata-v2", "share/man/man8/kata-runtime.8"] {
        ensure!(prefix.join(file).is_file(), "{file} was not installed");
    }
    run_make("uninstall", root.path())?.success()?;
    let left = below(root.path())?;
    let ours = left.iter().filter(|path| {
        path.is_symlink() || !path.is_dir() || path.to_string_lossy().contains("kata-containers")
    });
    let ours: Vec<_> = ours.collect();
    ensure!(ours.is_empty(), "left behind: {ours:#?}");
    Ok(())
}

/// A configuration that the installed one was changed into.
fn configuration(dir: &Path, change: impl FnOnce(String) -> String) -> Result<String> {
    let installed = "share/defaults/kata-containers/configuration.toml";
    let text = fs::read_to_string(Installation::under_test().prefix().join(installed))?;
    // It is configured for its place, wherever the programs under test are staged.
    let file = dir.join("configuration.toml");
    fs::write(&file, change(text))?;
    Ok(file.display().to_string())
}

fn finding<'a>(report: &'a Value, probe: &str) -> Result<&'a Value> {
    let mut all = report["findings"].as_array().context("no findings")?.iter();
    all.find(|one| one["probe"] == probe).with_context(|| format!("no {probe}: {report:#}"))
}

#[test]
fn host_that_runs_containers_is_called_capable() -> Result<()> {
    for name in ["check", "kata-check"] {
        let text = kata_runtime(&[name])?.success()?;
        ensure!(text.ends_with("System can currently create Kata Containers\n"), "{text}");
        ensure!(!text.contains("failed "), "{text}");
    }
    let report: Value = serde_json::from_str(&kata_runtime(&["check", "--json"])?.success()?)?;
    ensure!(report["capable"] == true, "{report:#}");
    let hypervisor = finding(&report, "hypervisor")?["detail"].as_str().unwrap_or_default();
    ensure!(hypervisor.contains("QEMU emulator version"), "{hypervisor}");
    for probe in ["kata-proxy", "kata-shim", "file server", "containerd shim"] {
        let found = finding(&report, probe)?;
        ensure!(found["outcome"] == "ok", "{found}");
    }
    let ksm = finding(&report, "ksm")?["detail"].as_str().unwrap_or_default();
    ensure!(ksm.contains("memory") || ksm.contains("no pages"), "{ksm}");
    // Only with KVM is there nothing to warn of.
    let kvm = finding(&report, "kvm")?["outcome"] == "ok";
    let strict = kata_runtime(&["check", "--strict"])?;
    ensure!(kvm || strict.code == 1, "{}", strict.text());
    Ok(())
}

/// QEMU runs as a user who is nobody, and so must be everybody's to run.
#[test]
fn program_that_only_root_may_run_is_named_with_the_remedy() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700))?;
    let program = dir.path().join("qemu-system-x86_64");
    symlink("/usr/bin/qemu-system-x86_64", &program)?;
    let settings = format!("[hypervisor.qemu]\npath = \"{}\"\n", program.display());
    for (rootless, outcome) in [(true, "failed"), (false, "ok")] {
        let text = format!("{settings}rootless = {rootless}\n");
        let config = configuration(dir.path(), |_| text)?;
        let report = kata_runtime(&["--config", &config, "check", "--json"])?;
        let report: Value = serde_json::from_str(&report.text())?;
        let found = finding(&report, "user")?;
        ensure!(found["outcome"] == outcome, "{found}");
        let closed = found["detail"].to_string().contains(&dir.path().display().to_string());
        ensure!(closed == rootless, "{found}");
    }
    Ok(())
}

#[test]
fn host_that_lacks_something_is_told_what_and_what_to_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broken = [
        ("guest kernel", "kernel = \"/no/such/kernel\"", "make"),
        ("hypervisor", "path = \"/no/such/qemu\"", "install QEMU"),
        ("guest image", "initrd = \"/no/such/initrd\"", "`initrd`"),
        ("file server", "virtio_fs_daemon = \"/no/such/server\"", "virtio_fs_daemon"),
    ];
    for (probe, key, remedy) in broken {
        let config = configuration(dir.path(), |_| format!("[hypervisor.qemu]\n{key}\n"))?;
        let output = kata_runtime(&["--config", &config, "check"])?;
        ensure!(output.code == 1, "{key}: {}", output.text());
        let text = output.text();
        let line = text.lines().find(|line| line.starts_with("failed") && line.contains(probe));
        let line = line.with_context(|| format!("no failed {probe}: {text}"))?;
        ensure!(line.contains("/no/such/") && line.contains(remedy), "{line}");
        ensure!(text.ends_with("ERROR: System is not capable of running Kata Containers\n"));
    }
    for hypervisor in ["clh", "firecracker", "krun", "qemu"] {
        let text = format!("[hypervisor.{hypervisor}]\nkernel = \"/no/such/kernel\"\n");
        let config = configuration(dir.path(), |_| text)?;
        let text = kata_runtime(&["--config", &config, "check"])?.text();
        let line = text.lines().find(|line| line.contains("guest kernel"));
        let line = line.with_context(|| format!("no guest kernel: {text}"))?;
        ensure!(line.starts_with("failed") && line.contains("/no/such/kernel"), "{line}");
    }
    let config = configuration(dir.path(), |text| text + "\n[runtime.nonsense]\n")?;
    let output = kata_runtime(&["--config", &config, "check"])?;
    ensure!(output.code == 1 && output.text().contains(&config), "{}", output.text());
    Ok(())
}
