//! The driver and its client against the real program, where `cloud-hypervisor` is found on `PATH`
//! and KVM works; elsewhere each test says that it was skipped. The guest is the one that `make`
//! stages: its kernel, and its initial ramdisk with the agent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kata_channel::AGENT_PORT;
use kata_cloud_hypervisor::api::*;
use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_hypervisor::{GuestRoot, Hypervisor, HypervisorError, Vm, VmSpec, kvm_obstacle};
use kata_log::chain;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Long enough for a boot in a virtual machine inside of an emulated one.
const BOOT: Duration = Duration::from_secs(90);
/// Long enough for anything that does not wait for the guest.
const SOON: Duration = Duration::from_secs(20);

/// Whether the test can be run here; says so if not.
fn can_run(test: &str) -> bool {
    let obstacle = match (program(), kvm_obstacle()) {
        (None, _) => "no `cloud-hypervisor` on PATH".to_owned(),
        (_, Some(obstacle)) => obstacle,
        (Some(_), None) => return true,
    };
    // Said to whoever runs the tests, past the harness, which keeps what a test prints to itself.
    let _ = io::stderr().write_all(format!("{test}: skipped: {obstacle}\n").as_bytes());
    false
}

fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join("cloud-hypervisor")).find(|path| path.exists())
}

fn settings() -> CloudHypervisorSettings {
    CloudHypervisorSettings { program: program().unwrap(), ..CloudHypervisorSettings::default() }
}

/// A spec, and the directory of its sandbox.
struct Bench {
    directory: TempDir,
    spec: VmSpec,
}

fn bench(name: &str) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let spec = VmSpec::bare(
        format!("test-{name}"),
        asset("KATA_TEST_KERNEL", "vmlinux.container"),
        GuestRoot::Initrd(asset("KATA_TEST_INITRD", "kata-containers-initrd.img")),
        directory.path(),
    );
    Bench { directory, spec }
}

fn asset(variable: &str, name: &str) -> PathBuf {
    let stage = "../../build/stage/usr/local/share/kata-containers";
    let staged = || Path::new(env!("CARGO_MANIFEST_DIR")).join(stage).join(name);
    let path = env::var_os(variable).map_or_else(staged, PathBuf::from);
    assert!(path.exists(), "{} is missing: run `make` first, or set {variable}", path.display());
    path.canonicalize().unwrap()
}

async fn boot(spec: &VmSpec) -> Box<dyn Vm> {
    match timeout(SOON, CloudHypervisor::new(settings()).boot(spec)).await.unwrap() {
        Ok(vm) => vm,
        Err(error) => panic!("{}", chain(&error)),
    }
}

/// Fails the boot, and returns why it did.
async fn failure(settings: CloudHypervisorSettings, spec: &VmSpec) -> String {
    chain(&timeout(SOON, CloudHypervisor::new(settings).boot(spec)).await.unwrap().unwrap_err())
}

#[tokio::test]
async fn vmm_is_jailed() {
    if !can_run("vmm_is_jailed") {
        return;
    }
    let bench = bench("jail");
    let vm = boot(&bench.spec).await;
    let proc = PathBuf::from(format!("/proc/{}", vm.pid()));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let has = |name: &str, value: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with(value), "{line}");
    };
    has("CapEff:", "\t0000000000000000");
    has("CapBnd:", "\t0000000000000000");
    has("NoNewPrivs:", "\t1");
    for kind in ["mnt", "net", "ipc", "pid_for_children"] {
        let (own, theirs) = (format!("/proc/self/ns/{kind}").into(), proc.join("ns").join(kind));
        assert_ne!(fs::read_link::<PathBuf>(own).unwrap(), fs::read_link(theirs).unwrap());
    }
    // Each thread has a filter of its own, but for the first, which does nothing but wait for the
    // others.
    for task in fs::read_dir(proc.join("task")).unwrap() {
        let task = task.unwrap();
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let is_first = task.file_name().to_str() == Some(vm.pid().to_string().as_str());
        assert!(is_first || status.contains("Seccomp:\t2"), "no filter: {status}");
    }
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    for mount in mounts.lines() {
        let options = mount.split(' ').nth(5).unwrap();
        assert!(options.split(',').any(|option| option == "ro"), "{mount}");
    }
}

#[tokio::test]
async fn guest_that_powers_off_ends_its_vm_with_a_reason() {
    if !can_run("guest_that_powers_off_ends_its_vm_with_a_reason") {
        return;
    }
    let mut bench = bench("off");
    // Where the agent cannot listen; it gives up and powers off.
    bench.spec.kernel_params.push("agent.server_addr=unix:///no/such/directory/socket".into());
    let vm = boot(&bench.spec).await;
    let refused = timeout(BOOT, vm.dial(AGENT_PORT)).await.unwrap().err().unwrap();
    assert!(matches!(refused, HypervisorError::ChannelClosed), "{refused}");
    let exit = timeout(SOON, vm.exited()).await.unwrap();
    assert_eq!(exit.to_string(), "exited with status 0 (guest-shutdown)");
    let console = vm.console().last_lines(20).join("\n");
    assert!(console.contains("cannot go on"), "{console}");
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_vmms_words() {
    if !can_run("what_is_wrong_is_told_in_the_vmms_words") {
        return;
    }
    let mut bench = bench("no-kernel");
    bench.spec.kernel = bench.directory.path().join("kernel");
    fs::write(&bench.spec.kernel, "no kernel at all\n").unwrap();
    let text = failure(settings(), &bench.spec).await;
    assert!(text.contains("`vm.boot`") && text.contains("kernel"), "{text}");

    bench.spec.kernel = "/no/such/kernel".into();
    let text = failure(settings(), &bench.spec).await;
    assert!(text.contains("No such file"), "{text}");

    let settings = CloudHypervisorSettings { program: "/no/such/vmm".into(), ..settings() };
    let text = failure(settings, &bench.spec).await;
    assert!(text.contains("/no/such/vmm") && text.contains("No such file"), "{text}");
}

/// The one test that needs no Cloud Hypervisor.
#[tokio::test]
async fn program_that_exits_at_once_is_quoted_and_one_without_kvm_not_started() {
    let directory = tempfile::tempdir().unwrap();
    let spec =
        VmSpec::bare("test-cat", "/kernel", GuestRoot::Initrd("/initrd".into()), directory.path());
    let settings =
        CloudHypervisorSettings { program: "cat".into(), ..CloudHypervisorSettings::default() };
    let text = failure(settings, &spec).await;
    match kvm_obstacle() {
        None => {
            assert!(text.contains("cat exited with status 1"), "{text}");
            assert!(text.contains("api-socket"), "{text}");
        }
        Some(obstacle) => assert!(text.contains(&obstacle) && text.contains("QEMU"), "{text}"),
    }
}

/// The program without a driver. Killed when dropped.
struct Program {
    child: Child,
    socket: PathBuf,
    _directory: TempDir,
}

impl Program {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api");
        let child = Command::new(program().unwrap())
            .args(["--api-socket", &format!("path={}", socket.display())])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket, _directory: directory }
    }

    async fn connect(&self) -> UnixStream {
        let connect = async {
            loop {
                match UnixStream::connect(&self.socket).await {
                    Ok(stream) => return stream,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(SOON, connect).await.unwrap()
    }

    /// The answer to a request that the client has no method for.
    async fn ask(&self, request: &str, body: &str) -> String {
        let mut stream = self.connect().await;
        let head = format!("PUT /api/v1/{request} HTTP/1.1\r\nContent-Length: {}", body.len());
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = vec![0; 64 * 1024];
        let length = timeout(SOON, stream.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn machine(spec: &VmSpec) -> VmConfig {
    VmConfig {
        cpus: CpusConfig { boot_vcpus: 1, max_vcpus: 1 },
        memory: MemoryConfig {
            size: 256 << 20,
            shared: true,
            hotplug_size: None,
            hotplug_method: None,
        },
        payload: PayloadConfig {
            kernel: spec.kernel.clone(),
            cmdline: "console=ttyS0 quiet".into(),
            initramfs: spec.root.initrd().map(Path::to_path_buf),
        },
        disks: Vec::new(),
        rng: RngConfig { src: "/dev/urandom".into() },
        fs: Vec::new(),
        serial: ConsoleConfig { mode: ConsoleMode::Off },
        console: ConsoleConfig { mode: ConsoleMode::Off },
        vsock: None,
        pvpanic: true,
        landlock_enable: true,
        landlock_rules: Vec::new(),
    }
}

#[tokio::test]
async fn vmm_that_shut_itself_in_opens_what_it_was_told_and_nothing_else() {
    if !can_run("vmm_that_shut_itself_in_opens_what_it_was_told_and_nothing_else") {
        return;
    }
    let bench = bench("landlock");
    let disk = bench.directory.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let disk = format!(r#"{{"id": "disk0", "path": "{}", "readonly": true}}"#, disk.display());
    for (landlock_enable, answer) in [(false, "HTTP/1.1 200"), (true, "Permission denied")] {
        let program = Program::start();
        let client = Client::new(program.connect().await);
        println!("Cloud Hypervisor {}", client.ping().await.unwrap().version);
        client.create(&VmConfig { landlock_enable, ..machine(&bench.spec) }).await.unwrap();
        client.boot().await.unwrap();
        let said = program.ask("vm.add-disk", &disk).await;
        assert!(said.contains(answer), "{said}");
    }
}

#[tokio::test]
async fn descriptor_that_is_no_tap_is_refused_as_what_it_is() {
    if !can_run("descriptor_that_is_no_tap_is_refused_as_what_it_is") {
        return;
    }
    let bench = bench("net");
    let program = Program::start();
    let client = Client::new(program.connect().await);
    client.create(&machine(&bench.spec)).await.unwrap();
    client.boot().await.unwrap();
    let nic = NetConfig { id: "eth0".into(), mac: "02:00:00:00:00:01".into(), num_queues: 2 };
    let (reader, _writer) = io::pipe().unwrap();
    let refused = client.add_net(&nic, vec![OwnedFd::from(reader)]).await.unwrap_err();
    assert!(refused.to_string().contains("Inappropriate ioctl"), "{refused}");
}
