//! The driver and its client against the real program, where `cloud-hypervisor` is found on `PATH` and KVM works; elsewhere each test says
//! that it was skipped. The guest is the one that `make` stages: its kernel, and its initial ramdisk with the agent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kata_channel::AGENT_PORT;
use kata_cloud_hypervisor::api::*;
use kata_cloud_hypervisor::{CloudHypervisor, CloudHypervisorSettings};
use kata_hypervisor::{
    GuestRoot, Hypervisor, HypervisorError, LaterDisks, Vm, VmSpec, kvm_obstacle,
};
use tempfile::TempDir;
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
    let spec = VmSpec {
        sandbox: format!("test-{name}"),
        vcpus: 1,
        memory_mib: 256,
        kernel: asset("KATA_TEST_KERNEL", "vmlinux.container"),
        root: GuestRoot::Initrd(asset("KATA_TEST_INITRD", "kata-containers-initrd.img")),
        kernel_params: Vec::new(),
        shares: Vec::new(),
        disks: Vec::new(),
        later_disks: LaterDisks::default(),
        nics: Vec::new(),
        hot_plug: false,
        network_namespace: None,
        run_dir: directory.path().to_owned(),
        debug: false,
    };
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

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
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

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn vm_boots_reaches_its_agent_pauses_and_stops() {
    if !can_run("vm_boots_reaches_its_agent_pauses_and_stops") {
        return;
    }
    let bench = bench("life");
    let started = Instant::now();
    let vm = boot(&bench.spec).await;
    reach_agent(&*vm, BOOT).await;
    println!("agent reached after {:?}", started.elapsed());
    assert!(vm.console().kernel_is_up(), "{:?}", vm.console().last_lines(20));

    vm.pause().await.unwrap();
    let silent = timeout(Duration::from_millis(300), vm.dial(AGENT_PORT)).await;
    assert!(silent.is_err(), "a guest whose CPUs stand still has answered");
    vm.resume().await.unwrap();
    reach_agent(&*vm, SOON).await;

    let pid = vm.pid();
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.contains("sandbox-test-life"), "{command}");
    vm.stop().await;
    assert!(is_gone(pid));
    vm.stop().await;
    assert_eq!(vm.exited().await.to_string(), "was killed by signal 9");
    assert!(vm.dial(AGENT_PORT).await.is_err() && vm.pause().await.is_err());
    let left: Vec<_> = fs::read_dir(bench.directory.path().join("clh")).unwrap().collect();
    assert!(left.len() <= 1, "{left:?}");
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
    // Each thread has a filter of its own, but for the first, which does nothing but wait for the others.
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
async fn several_processors_come_up() {
    if !can_run("several_processors_come_up") {
        return;
    }
    let mut bench = bench("smp");
    bench.spec.vcpus = 2;
    reach_agent(&*boot(&bench.spec).await, BOOT).await;
}

#[tokio::test]
async fn panic_of_the_guest_ends_its_vm_with_a_reason_and_is_its_last_word() {
    if !can_run("panic_of_the_guest_ends_its_vm_with_a_reason_and_is_its_last_word") {
        return;
    }
    let mut bench = bench("panic");
    bench.spec.kernel_params.push("rdinit=/no/such/program".into());
    let vm = boot(&bench.spec).await;
    let exit = timeout(BOOT, vm.exited()).await.unwrap();
    let console = vm.console().last_lines(60).join("\n");
    assert!(console.contains("Kernel panic"), "{exit}; {console}");
    // The former where the guest's kernel has a driver for the VMM's panic device.
    let reason = exit.reason.as_deref().unwrap();
    assert!(matches!(reason, "guest-panic" | "guest-reset"), "{exit}");
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
async fn killed_vmm_is_an_event() {
    if !can_run("killed_vmm_is_an_event") {
        return;
    }
    let bench = bench("kill");
    let vm = boot(&bench.spec).await;
    let pid = rustix::process::Pid::from_raw(vm.pid().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let exit = timeout(SOON, vm.exited()).await.unwrap();
    assert_eq!(exit.to_string(), "was killed by signal 9");
}

#[tokio::test]
async fn dropped_vm_leaves_no_process() {
    if !can_run("dropped_vm_leaves_no_process") {
        return;
    }
    let bench = bench("drop");
    let vm = boot(&bench.spec).await;
    let pid = vm.pid();
    drop(vm);
    let gone = async {
        while !is_gone(pid) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone).await.unwrap();
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
    let spec = VmSpec {
        sandbox: "test-cat".into(),
        vcpus: 1,
        memory_mib: 256,
        kernel: "/kernel".into(),
        root: GuestRoot::Initrd("/initrd".into()),
        kernel_params: Vec::new(),
        shares: Vec::new(),
        disks: Vec::new(),
        later_disks: LaterDisks::default(),
        nics: Vec::new(),
        hot_plug: false,
        network_namespace: None,
        run_dir: directory.path().to_owned(),
        debug: false,
    };
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

/// A program of its own for the client, without a driver. Killed when dropped.
struct Program {
    child: Child,
    socket: PathBuf,
    directory: TempDir,
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
        Self { child, socket, directory }
    }

    async fn client(&self) -> Client {
        let connect = async {
            loop {
                match UnixStream::connect(&self.socket).await {
                    Ok(stream) => return Client::new(stream),
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(SOON, connect).await.unwrap()
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
        cpus: CpusConfig { boot_vcpus: 1, max_vcpus: 2 },
        memory: MemoryConfig { size: 256 << 20, hotplug_size: Some(256 << 20), shared: true },
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
        landlock_enable: false,
        landlock_rules: Vec::new(),
    }
}

#[tokio::test]
async fn client_drives_a_machine_through_its_life() {
    if !can_run("client_drives_a_machine_through_its_life") {
        return;
    }
    let bench = bench("client");
    let program = Program::start();
    let client = program.client().await;
    println!("Cloud Hypervisor {}", client.ping().await.unwrap().version);
    let refused = client.info().await.unwrap_err();
    assert!(matches!(refused, ApiError::Refused { status: 404, .. }), "{refused}");
    client.create(&machine(&bench.spec)).await.unwrap();
    assert_eq!(client.info().await.unwrap().state, VmState::Created);

    client.boot().await.unwrap();
    assert_eq!(client.info().await.unwrap().state, VmState::Running);
    let image = program.directory.path().join("disk");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let disk =
        DiskConfig { id: "disk0".into(), path: image, readonly: true, image_type: ImageType::Raw };
    assert_eq!(client.add_disk(&disk).await.unwrap().unwrap().id, "disk0");
    let twice = client.add_disk(&disk).await.unwrap_err();
    assert!(matches!(twice, ApiError::Refused { .. }), "{twice}");

    let size = VmResize { desired_vcpus: Some(2), desired_ram: Some(384 << 20) };
    client.resize(&size).await.unwrap();
    assert_eq!(client.info().await.unwrap().memory_actual_size, Some(384 << 20));
    let too_much = VmResize { desired_vcpus: Some(3), desired_ram: None };
    assert!(client.resize(&too_much).await.is_err());

    client.pause().await.unwrap();
    assert_eq!(client.info().await.unwrap().state, VmState::Paused);
    client.resume().await.unwrap();
    client.shutdown().await.unwrap();
    let state = client.info().await.unwrap().state;
    assert!(matches!(state, VmState::Shutdown | VmState::Created), "{state:?}");
}

#[tokio::test]
async fn vmm_that_shut_itself_in_opens_what_it_was_told_and_nothing_else() {
    if !can_run("vmm_that_shut_itself_in_opens_what_it_was_told_and_nothing_else") {
        return;
    }
    let bench = bench("landlock");
    let program = Program::start();
    let client = program.client().await;
    let allowed = tempfile::tempdir().unwrap();
    let rule = LandlockConfig { path: allowed.path().to_owned(), access: "r" };
    let config = machine(&bench.spec);
    client
        .create(&VmConfig { landlock_enable: true, landlock_rules: vec![rule], ..config })
        .await
        .unwrap();
    client.boot().await.unwrap();
    let disk_in = |directory: &Path| {
        let path = directory.join("disk");
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        DiskConfig { id: "disk0".into(), path, readonly: true, image_type: ImageType::Raw }
    };
    let refused = client.add_disk(&disk_in(bench.directory.path())).await.unwrap_err();
    assert!(refused.to_string().contains("Permission denied"), "{refused}");
    assert!(client.add_disk(&disk_in(allowed.path())).await.unwrap().is_some());
}

#[tokio::test]
async fn descriptor_beside_a_request_reaches_the_vmm() {
    if !can_run("descriptor_beside_a_request_reaches_the_vmm") {
        return;
    }
    let bench = bench("net");
    let program = Program::start();
    let client = program.client().await;
    client.create(&machine(&bench.spec)).await.unwrap();
    client.boot().await.unwrap();
    let nic = NetConfig { id: "eth0".into(), mac: "02:00:00:00:00:01".into(), num_queues: 2 };
    // It is no tap, and refused as what it is.
    let (reader, _writer) = io::pipe().unwrap();
    let refused = client.add_net(&nic, vec![OwnedFd::from(reader)]).await.unwrap_err();
    assert!(refused.to_string().contains("Inappropriate ioctl"), "{refused}");
}
