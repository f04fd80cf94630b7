//! Whether this host can run sandboxes: everything that a start needs is looked for with the code
//! of the start, and nothing is started.

use std::fs;
use std::path::Path;

use kata_config::InternetworkingModel;
use kata_hypervisor::{Finding, GuestRoot, Outcome, SharedFileSystem};
use kata_linux::cgroup::{self, CgroupError, HostCgroup};
use kata_log::chain;
use rustix::fs::{Access, access};

use crate::{RUN_DIR, Runtime, RuntimeError, auto, plan};

/// The programs that a sandbox needs beside the hypervisor and the file server, below the prefix.
const COMPANIONS: [&str; 2] = ["kata-proxy", "kata-shim"];

/// The remedy for a program of this software that is missing, or of another version.
const INSTALL: &str = "install this software anew with `make install`";

/// Where the kernel merges equal pages (Documentation/admin-guide/mm/ksm.rst).
const KSM: &str = "/sys/kernel/mm/ksm/run";

/// What merged pages give away.
const KSM_COST: &str =
    "a tenant can learn what another's memory holds, by timing its own writes to merged pages";

/// Looks at this host, with the configuration that [`Runtime::load`] finds for `option`. One
/// finding for each thing, in the order in which a start needs them. Blocks for as long as a few
/// programs take to tell their version.
#[must_use]
pub fn check(option: Option<&Path>) -> Vec<Finding> {
    let mut found = vec![privileges()];
    match Runtime::load(option, None) {
        Ok(runtime) => {
            found.push(Finding::good("configuration", source(&runtime)));
            found.extend(of(&runtime));
        }
        Err(error) => {
            let detail = format!("{}; what depends on it was not checked", chain(&error));
            let remedy = "correct it, or name another file with KATA_CONF_FILE or --config";
            found.push(Finding::failed("configuration", detail, remedy));
        }
    }
    found.extend([
        cgroups(),
        run_dir(Path::new(RUN_DIR)),
        ksm(Path::new(KSM), Path::new(kata_ksm_api::SOCKET)),
    ]);
    found
}

fn source(runtime: &Runtime) -> String {
    match &runtime.file {
        Some(file) => file.display().to_string(),
        None => "there is none, so the built-in defaults hold".to_owned(),
    }
}

fn of(runtime: &Runtime) -> Vec<Finding> {
    let kernel = &runtime.config.vm().kernel;
    let mut found = runtime.hypervisor().check(kernel);
    if runtime.is_auto && auto::krun_runs_some(&runtime.config, &runtime.prefix) {
        found = beside_krun(found);
    }
    found.extend([guest_root(runtime), file_server(runtime), network(runtime)]);
    found.extend(COMPANIONS.map(|name| {
        let program = kata_config::companion(&runtime.prefix, name);
        same_version(Finding::of_program(name, &program, INSTALL))
    }));
    let shim = runtime.prefix.join("bin/containerd-shim-kata-v2");
    found.push(same_version(Finding::of_program("containerd shim", &shim, INSTALL)));
    found
}

/// Where no hypervisor is chosen, krun runs what it can and QEMU the rest. So without QEMU
/// containers start, if not all.
fn beside_krun(found: Vec<Finding>) -> Vec<Finding> {
    const SOME: &str = "containers whose network is complete when they are created";
    let eased = found.into_iter().map(|mut one| {
        if one.outcome == Outcome::Failed {
            one.outcome = Outcome::Warning;
            one.detail += &format!("; only {SOME} start, with krun");
        }
        one
    });
    eased.chain([Finding::good("krun", format!("runs {SOME}"))]).collect()
}

fn privileges() -> Finding {
    const PROBE: &str = "privileges";
    if rustix::process::geteuid().is_root() {
        return Finding::good(PROBE, "root");
    }
    Finding::failed(PROBE, "virtual machines need root", "run this as root")
}

fn guest_root(runtime: &Runtime) -> Finding {
    const PROBE: &str = "guest image";
    match plan::guest_root(runtime) {
        Ok(GuestRoot::Initrd(initrd)) => Finding::good(PROBE, initrd.display().to_string()),
        Ok(GuestRoot::Image(image)) => Finding::good(PROBE, image.file.display().to_string()),
        Err(RuntimeError::Asset { what, path, key, source }) => Finding::failed(
            PROBE,
            format!("the {what} {}: {source}", path.display()),
            format!("build it with `make`, or set `{key}` in the configuration"),
        ),
        Err(error) => Finding::failed(PROBE, chain(&error), "change the configuration"),
    }
}

fn file_server(runtime: &Runtime) -> Finding {
    const PROBE: &str = "file server";
    match plan::file_server(runtime, Path::new(RUN_DIR)) {
        None if runtime.hypervisor().capabilities().shared_file_system
            == SharedFileSystem::None =>
        {
            Finding::good(PROBE, "the hypervisor shares no files, and gets images and copies")
        }
        None => Finding::good(PROBE, "the hypervisor serves files by itself"),
        Some(server) if server.external => Finding::of_program(
            PROBE,
            &server.program,
            "install it, or set `virtio_fs_daemon` to \"\" for the one of this software",
        ),
        Some(server) => same_version(Finding::of_program(PROBE, &server.program, INSTALL)),
    }
}

/// A program of this software that does not belong to this installation.
fn same_version(found: Finding) -> Finding {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    if found.outcome != Outcome::Good || found.detail.ends_with(VERSION) {
        return found;
    }
    Finding::warning(found.probe, format!("{}; this is {VERSION}", found.detail), INSTALL)
}

fn network(runtime: &Runtime) -> Finding {
    const PROBE: &str = "network";
    if runtime.config.runtime.internetworking_model == InternetworkingModel::None {
        return Finding::good(PROBE, "`internetworking_model` connects nothing");
    }
    if let Some(obstacle) = kata_network::tap_obstacle() {
        let detail = format!("{obstacle}, so only containers without a network start");
        return Finding::warning(PROBE, detail, "load the module tun");
    }
    if !runtime.hypervisor().capabilities().vhost_net {
        return Finding::good(PROBE, "the VMM moves the frames");
    }
    if runtime.config.qemu.disable_vhost_net {
        return Finding::good(PROBE, "the VMM moves the frames, as `disable_vhost_net` asks for");
    }
    match kata_network::has_vhost() {
        Ok(true) => Finding::good(PROBE, "the kernel moves the frames (vhost-net)"),
        Ok(false) => Finding::good(
            PROBE,
            "the host has no vhost-net (module vhost_net), so the VMM moves the frames",
        ),
        Err(error) => Finding::warning(
            PROBE,
            format!("/dev/vhost-net: {error}, so only containers without a network start"),
            "let this container or cgroup use the device, or set `disable_vhost_net = true`",
        ),
    }
}

/// A cgroup is made as for a sandbox, and removed.
fn cgroups() -> Finding {
    const PROBE: &str = "cgroups";
    let made = || -> Result<&str, CgroupError> {
        HostCgroup::create(&format!("/kata-check-{}", std::process::id()))?.remove()?;
        cgroup::hierarchies_in_words()
    };
    match made() {
        Ok("none") => Finding::warning(
            PROBE,
            "none are mounted, so a sandbox's use of the host is not accounted for",
            "mount them: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
        Ok(hierarchies) => Finding::good(PROBE, hierarchies),
        Err(error) => Finding::failed(
            PROBE,
            chain(&error),
            "run as root, and in a container with its cgroups writable",
        ),
    }
}

/// Whether sandboxes can have a directory below `path`, which need not exist yet.
fn run_dir(path: &Path) -> Finding {
    const PROBE: &str = "run directory";
    let existing = path.ancestors().find(|one| fs::metadata(one).is_ok()).unwrap_or(Path::new("/"));
    match access(existing, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::good(PROBE, path.display().to_string()),
        Err(error) => Finding::failed(
            PROBE,
            format!("{} cannot be written: {error}", existing.display()),
            "run as root, with a writable /run",
        ),
    }
}

/// Merged pages leak data between tenants; that is said whatever is set: in the kernel's file, or
/// by a throttler, which listens at `throttler`.
fn ksm(kernel: &Path, throttler: &Path) -> Finding {
    const PROBE: &str = "ksm";
    let Ok(run) = fs::read_to_string(kernel) else {
        return Finding::good(PROBE, "this kernel merges no pages");
    };
    if run.trim() == "1" {
        let remedy = format!(
            "where tenants do not trust each other: echo 2 >{}, and no kata-ksm-throttler",
            kernel.display()
        );
        return Finding::warning(PROBE, format!("on: {KSM_COST}"), remedy);
    }
    if throttler.exists() {
        let detail = format!("kata-ksm-throttler switches it on while VMs start: {KSM_COST}");
        let remedy =
            "where tenants do not trust each other: systemctl disable --now kata-ksm-throttler";
        return Finding::warning(PROBE, detail, remedy);
    }
    Finding::good(PROBE, format!("off, which is safe: with it on, {KSM_COST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_kernel_fails_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("configuration.toml");
        fs::write(&file, "[hypervisor.qemu]\nkernel = \"/no/such/kernel\"\n").unwrap();
        let found = check(Some(&file));
        let kernel = found.iter().find(|one| one.probe == "guest kernel").unwrap();
        assert_eq!(kernel.outcome, Outcome::Failed);
        assert!(kernel.detail.contains("/no/such/kernel"), "{}", kernel.detail);
    }

    #[test]
    fn broken_configuration_fails_with_its_line_and_the_host_is_looked_at_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("configuration.toml");
        fs::write(&file, "[runtime]\nfrobnicate = true\n").unwrap();
        let found = check(Some(&file));
        let configuration = found.iter().find(|one| one.probe == "configuration").unwrap();
        assert_eq!(configuration.outcome, Outcome::Failed);
        assert!(configuration.detail.contains("configuration.toml:2"), "{}", configuration.detail);
        assert!(found.iter().any(|one| one.probe == "ksm"));
        assert!(!found.iter().any(|one| one.probe == "hypervisor"));
    }

    #[test]
    fn what_merged_pages_cost_is_said_and_warned_of_where_pages_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let (run, socket) = (dir.path().join("run"), dir.path().join("socket"));
        let none = ksm(&run, &socket);
        assert_eq!((none.outcome, none.detail.contains(KSM_COST)), (Outcome::Good, false));
        let told = |outcome| {
            let finding = ksm(&run, &socket);
            assert_eq!(finding.outcome, outcome);
            assert!(finding.detail.contains(KSM_COST), "{}", finding.detail);
            finding.remedy
        };
        fs::write(&run, "0\n").unwrap();
        assert_eq!(told(Outcome::Good), None);
        fs::write(&socket, "").unwrap();
        assert!(told(Outcome::Warning).unwrap().contains("disable --now kata-ksm-throttler"));
        fs::write(&run, "1\n").unwrap();
        assert!(told(Outcome::Warning).unwrap().contains(&format!("echo 2 >{}", run.display())));
    }

    #[test]
    fn directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run_dir(&dir.path().join("a/b")).outcome, Outcome::Good);
        assert_eq!(run_dir(Path::new("/etc/passwd/such")).outcome, Outcome::Failed);
    }

    #[test]
    fn krun_makes_a_missing_qemu_bearable_and_the_remedy_stays() {
        let found = beside_krun(vec![Finding::failed("hypervisor", "no QEMU", "install it")]);
        assert!(found.iter().all(|one| one.outcome < Outcome::Failed), "{found:?}");
        assert_eq!(found[0].remedy.as_deref(), Some("install it"));
        assert_eq!(found[1].probe, "krun");
    }

    #[test]
    fn program_of_another_version_is_a_warning() {
        let other = same_version(Finding::good("p", "/p, p version 0.0.7"));
        assert_eq!(other.outcome, Outcome::Warning);
        let same = format!("/p, p version {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(same_version(Finding::good("p", same)).outcome, Outcome::Good);
    }
}
