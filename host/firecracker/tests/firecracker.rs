//! The driver and its client against the real program, where `firecracker` is found on `PATH` and
//! KVM works, and with its jailer, where `jailer` is found there too; elsewhere each test says that
//! it was skipped. The guest is the one that `make` stages: its kernel, and its initial ramdisk
//! with the agent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_channel::AGENT_PORT;
use kata_firecracker::{Firecracker, FirecrackerSettings};
use kata_hypervisor::{
    DiskSpec, GuestRoot, Hypervisor, HypervisorError, LaterDisks, Vm, VmSpec, kvm_obstacle,
};
use kata_log::chain;
use tempfile::TempDir;
use tokio::time::timeout;

/// Long enough for a boot in a virtual machine inside of an emulated one.
const BOOT: Duration = Duration::from_secs(90);
/// Long enough for anything that does not wait for the guest.
const SOON: Duration = Duration::from_secs(20);

/// The settings for a test that needs the programs `needed`; `None`, and a word about it, if it
/// cannot be run here.
fn settings(test: &str, needed: &[&str]) -> Option<FirecrackerSettings> {
    let missing = needed.iter().find(|name| program(name).is_none());
    let obstacle = match (missing, kvm_obstacle()) {
        (Some(name), _) => format!("no `{name}` on PATH"),
        (_, Some(obstacle)) => obstacle,
        (None, None) => {
            let jailer = needed.contains(&"jailer").then(|| program("jailer")).flatten();
            let program = program("firecracker").unwrap();
            return Some(FirecrackerSettings { program, jailer, ..FirecrackerSettings::default() });
        }
    };
    // Said to whoever runs the tests, past the harness, which keeps what a test prints to itself.
    let _ = io::stderr().write_all(format!("{test}: skipped: {obstacle}\n").as_bytes());
    None
}

fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.exists())
}

/// A spec, and the directory of its sandbox.
struct Bench {
    directory: TempDir,
    spec: VmSpec,
}

fn bench(name: &str) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let spec = VmSpec {
        sandbox: format!("test_{name}"),
        kernel: asset("KATA_TEST_KERNEL", "vmlinux.container"),
        root: GuestRoot::Initrd(asset("KATA_TEST_INITRD", "kata-containers-initrd.img")),
        ..bare(directory.path())
    };
    Bench { directory, spec }
}

fn bare(run_dir: &Path) -> VmSpec {
    VmSpec::bare("test", "/kernel", GuestRoot::Initrd("/initrd".into()), run_dir)
}

fn asset(variable: &str, name: &str) -> PathBuf {
    let stage = "../../build/stage/usr/local/share/kata-containers";
    let staged = || Path::new(env!("CARGO_MANIFEST_DIR")).join(stage).join(name);
    let path = env::var_os(variable).map_or_else(staged, PathBuf::from);
    assert!(path.exists(), "{} is missing: run `make` first, or set {variable}", path.display());
    path.canonicalize().unwrap()
}

async fn boot(settings: FirecrackerSettings, spec: &VmSpec) -> Box<dyn Vm> {
    match timeout(SOON, Firecracker::new(settings).boot(spec)).await.unwrap() {
        Ok(vm) => vm,
        Err(error) => panic!("{}", chain(&error)),
    }
}

/// Fails the boot, and returns why it did.
async fn failure(settings: FirecrackerSettings, spec: &VmSpec) -> String {
    chain(&timeout(SOON, Firecracker::new(settings).boot(spec)).await.unwrap().unwrap_err())
}

async fn reach_agent(vm: &dyn Vm, within: Duration) {
    match timeout(within, vm.dial(AGENT_PORT)).await {
        Ok(Ok(_)) => {}
        failed => panic!(
            "{:?}; stderr: {:#?}; console: {:#?}",
            failed.map(|dial| dial.err()),
            vm.stderr(),
            vm.console().last_lines(60)
        ),
    }
}

/// What of a process its kernel tells.
struct Facts {
    status: String,
    proc: PathBuf,
}

impl Facts {
    fn of(pid: u32) -> Self {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        Self { status: fs::read_to_string(proc.join("status")).unwrap(), proc }
    }

    fn assert(&self, name: &str, value: &str) {
        let line = self.status.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with(value), "{line}");
    }

    fn assert_own_namespaces(&self, kinds: &[&str]) {
        for kind in kinds {
            let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            assert_ne!(own, fs::read_link(self.proc.join("ns").join(kind)).unwrap());
        }
    }
}

#[tokio::test]
async fn vmm_is_walled_in() {
    let Some(settings) = settings("vmm_is_walled_in", &["firecracker"]) else { return };
    let bench = bench("jail");
    let vm = boot(settings, &bench.spec).await;
    let facts = Facts::of(vm.pid());
    for (name, value) in [("CapEff:", "\t0000000000000000"), ("CapBnd:", "\t0000000000000000")] {
        facts.assert(name, value);
    }
    facts.assert("NoNewPrivs:", "\t1");
    facts.assert_own_namespaces(&["mnt", "net", "ipc", "pid"]);
    let own = bench.directory.path().join("firecracker");
    for mount in fs::read_to_string(facts.proc.join("mountinfo")).unwrap().lines() {
        let options = mount.split(' ').nth(5).unwrap();
        let is_own = mount.contains(own.to_str().unwrap());
        assert!(is_own || options.split(',').any(|option| option == "ro"), "{mount}");
    }
}

#[tokio::test]
async fn vmm_of_the_jailers_is_a_user_without_a_name_in_a_root_of_its_own() {
    let name = "vmm_of_the_jailers_is_a_user_without_a_name_in_a_root_of_its_own";
    let Some(settings) = settings(name, &["firecracker", "jailer"]) else { return };
    let bench = bench("jailer");
    let vm = boot(settings, &bench.spec).await;
    let facts = Facts::of(vm.pid());
    facts.assert("CapEff:", "\t0000000000000000");
    facts.assert("NoNewPrivs:", "\t1");
    facts.assert_own_namespaces(&["mnt", "net", "ipc"]);
    let user = fs::metadata(&facts.proc).unwrap().uid();
    assert_eq!(user, kata_linux::user::of_this_process());
    // The VMM has left the order to kill it as it was: its stdin still tells by a signal (O_ASYNC).
    let stdin = fs::read_to_string(facts.proc.join("fdinfo/0")).unwrap();
    let flags = stdin.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    assert_ne!(u32::from_str_radix(flags.trim(), 8).unwrap() & 0o20000, 0, "{stdin}");
    let mut seen: Vec<_> = fs::read_dir(facts.proc.join("root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, ["dev", "files", "firecracker", "firecracker.pid", "run"]);
}

async fn takes_disks(settings: FirecrackerSettings, readonly: bool) {
    let mut bench = bench("disks");
    let image = bench.directory.path().join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk = |id: &str, readonly| DiskSpec { id: id.into(), path: image.clone(), readonly };
    bench.spec.disks = vec![disk("first", readonly)];
    bench.spec.later_disks = LaterDisks { readonly: 1, writable: 0 };
    let vm = boot(settings, &bench.spec).await;
    reach_agent(&*vm, BOOT).await;
    assert_eq!(vm.disk("first").unwrap().address, "/dev/vda");
    let later = vm.attach_disk(&disk("later", true)).await.unwrap();
    assert_eq!((later.driver, later.address.as_str()), ("mmioblk", "/dev/vdb"));
    let error = vm.attach_disk(&disk("another", true)).await.unwrap_err();
    assert!(matches!(error, HypervisorError::NoDisk { .. }), "{error}");
    vm.detach_disk("later").await.unwrap();
    let missing = DiskSpec { path: "/no/such/disk".into(), ..disk("missing", true) };
    let error = chain(&vm.attach_disk(&missing).await.unwrap_err());
    assert!(error.contains("No such file"), "{error}");
    assert_eq!(vm.attach_disk(&disk("another", true)).await.unwrap().address, "/dev/vdb");
    reach_agent(&*vm, SOON).await;
}

#[tokio::test]
async fn disks_come_and_go_while_the_vm_runs() {
    let name = "disks_come_and_go_while_the_vm_runs";
    if let Some(settings) = settings(name, &["firecracker"]) {
        takes_disks(settings, false).await;
    }
}

#[tokio::test]
async fn disks_come_and_go_in_the_jailers_cell() {
    let name = "disks_come_and_go_in_the_jailers_cell";
    if let Some(settings) = settings(name, &["firecracker", "jailer"]) {
        takes_disks(settings, true).await;
    }
}

#[tokio::test]
async fn guest_that_powers_off_ends_its_vm() {
    let name = "guest_that_powers_off_ends_its_vm";
    let Some(settings) = settings(name, &["firecracker"]) else { return };
    let mut bench = bench("off");
    bench.spec.vcpus = 2;
    // Where the agent cannot listen; it gives up and ends the machine.
    bench.spec.kernel_params.push("agent.server_addr=unix:///no/such/directory/socket".into());
    let vm = boot(settings, &bench.spec).await;
    let refused = timeout(BOOT, vm.dial(AGENT_PORT)).await.unwrap().err().unwrap();
    assert!(matches!(refused, HypervisorError::ChannelClosed), "{refused}");
    let exit = timeout(SOON, vm.exited()).await.unwrap();
    assert_eq!(exit.to_string(), "exited with status 0 (guest-reset)");
    let console = vm.console().last_lines(20).join("\n");
    assert!(console.contains("cannot go on"), "{console}");
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_vmms_words() {
    let name = "what_is_wrong_is_told_in_the_vmms_words";
    let Some(settings) = settings(name, &["firecracker"]) else { return };
    let mut bench = bench("no-kernel");
    bench.spec.kernel = bench.directory.path().join("kernel");
    fs::write(&bench.spec.kernel, "no kernel at all\n").unwrap();
    let text = failure(settings.clone(), &bench.spec).await;
    assert!(text.contains("`actions`") && text.contains("ernel"), "{text}");

    bench.spec.kernel = "/no/such/kernel".into();
    let text = failure(settings.clone(), &bench.spec).await;
    assert!(text.contains("No such file"), "{text}");

    let settings = FirecrackerSettings { program: "/no/such/vmm".into(), ..settings };
    let text = failure(settings, &bench.spec).await;
    assert!(text.contains("/no/such/vmm") && text.contains("No such file"), "{text}");
}

#[tokio::test]
async fn file_that_the_jailers_user_may_not_read_is_named() {
    let name = "file_that_the_jailers_user_may_not_read_is_named";
    let Some(settings) = settings(name, &["firecracker", "jailer"]) else { return };
    let mut bench = bench("secret");
    let secret = bench.directory.path().join("kernel");
    fs::copy(&bench.spec.kernel, &secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    bench.spec.kernel.clone_from(&secret);
    let text = failure(settings, &bench.spec).await;
    let named = text.contains(secret.to_str().unwrap());
    assert!(named && text.contains("jailer_path"), "{text}");
}

/// The one test that needs no Firecracker.
#[tokio::test]
async fn program_that_exits_at_once_is_quoted_and_one_without_kvm_not_started() {
    let directory = tempfile::tempdir().unwrap();
    let settings = FirecrackerSettings { program: "cat".into(), ..FirecrackerSettings::default() };
    let text = failure(settings, &bare(directory.path())).await;
    match kvm_obstacle() {
        None => {
            assert!(text.contains("cat exited with status 1"), "{text}");
            assert!(text.contains("--id"), "{text}");
        }
        Some(obstacle) => assert!(text.contains(&obstacle) && text.contains("QEMU"), "{text}"),
    }
}
