//! Real virtual machines: a guest kernel and a first process that greets, echoes and reboots
//! ([`guest`]). What every driver promises is tested by `tests/contract`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod assets;
mod guest;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kata_channel::ChannelStream;
use kata_hypervisor::{GuestRoot, Hypervisor, HypervisorError, ShareSource, ShareSpec, Vm, VmSpec};
use kata_log::chain;
use kata_qemu::{MachineChoice, Qemu, QemuSettings};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use guest::{CLOSED_PORT, COMMAND_LINE_PORT, ECHO_PORT, REBOOT_PORT};

/// Long enough for an emulated boot on a busy machine.
const BOOT: Duration = Duration::from_secs(60);
/// Long enough for anything that does not wait for the guest.
const SOON: Duration = Duration::from_secs(10);

/// A spec, and the directory that its files are in.
struct Bench {
    directory: TempDir,
    spec: VmSpec,
}

fn bench(name: &str) -> Bench {
    let init = format!("rdinit=/{}", assets::INIT);
    let params = [init.as_str()].into_iter().chain(guest::ARGUMENTS);
    let directory = tempfile::tempdir().unwrap();
    let spec = VmSpec {
        kernel_params: params.map(str::to_owned).collect(),
        ..VmSpec::bare(
            format!("test-{name}"),
            assets::kernel(),
            GuestRoot::Initrd(assets::initrd(directory.path())),
            directory.path(),
        )
    };
    Bench { directory, spec }
}

impl Bench {
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

async fn boot(settings: QemuSettings, spec: &VmSpec) -> Box<dyn Vm> {
    let vm = timeout(SOON, Qemu::new(settings).boot(spec)).await.unwrap().unwrap();
    if timeout(BOOT, vm.console().kernel_up()).await.is_err() {
        let (console, stderr) = (vm.console().last_lines(60), vm.stderr());
        panic!("the guest did not come up; console: {console:#?}; QEMU: {stderr:#?}");
    }
    vm
}

/// Fails the boot, and returns why it did, as a whole chain.
async fn failure(settings: QemuSettings, spec: &VmSpec) -> String {
    let error = timeout(SOON, Qemu::new(settings).boot(spec)).await.unwrap().unwrap_err();
    chain(&error)
}

/// Dials a guest that should answer, if need be once it is up.
async fn dial(vm: &dyn Vm, port: u32) -> ChannelStream {
    match timeout(BOOT, vm.dial(port)).await {
        Ok(Ok(stream)) => stream,
        failed => panic!(
            "{:?}; console: {:#?}",
            failed.map(|dial| dial.err()),
            vm.console().last_lines(60)
        ),
    }
}

async fn echo(vm: &dyn Vm, bytes: Vec<u8>) -> Vec<u8> {
    let stream = dial(vm, ECHO_PORT).await;
    let (mut read, mut write) = tokio::io::split(stream);
    let sender = tokio::spawn(async move {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    sender.await.unwrap();
    back
}

#[tokio::test]
async fn channel_carries_everything_unchanged_and_tells_of_refusals() {
    let bench = bench("channel");
    let vm = boot(QemuSettings::default(), &bench.spec).await;
    let bytes: Vec<u8> =
        (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(echo(&*vm, bytes.clone()).await == bytes, "the channel changed what it carried");
    let refused = timeout(SOON, vm.dial(CLOSED_PORT)).await.unwrap().err().unwrap();
    assert!(matches!(refused, HypervisorError::Dial { port: CLOSED_PORT, .. }), "{refused}");
}

#[tokio::test]
async fn guest_may_be_dialled_before_it_is_up() {
    let bench = bench("early");
    let vm = Qemu::new(QemuSettings::default()).boot(&bench.spec).await.unwrap();
    let mut stream = dial(&*vm, COMMAND_LINE_PORT).await;
    let mut line = String::new();
    stream.read_to_string(&mut line).await.unwrap();
    assert!(line.contains("console=ttyS0") && line.contains("quiet"), "{line}");
}

#[tokio::test]
async fn q35_boots_too() {
    let bench = bench("q35");
    let settings = QemuSettings { machine: MachineChoice::Q35, ..QemuSettings::default() };
    let vm = boot(settings, &bench.spec).await;
    assert_eq!(timeout(SOON, echo(&*vm, b"hello".to_vec())).await.unwrap(), b"hello");
}

#[tokio::test]
async fn reboot_of_the_guest_ends_the_vm_with_a_reason() {
    let bench = bench("reboot");
    let vm = boot(QemuSettings::default(), &bench.spec).await;
    assert!(timeout(SOON, vm.dial(REBOOT_PORT)).await.unwrap().is_err());
    let exit = timeout(SOON, vm.exited()).await.unwrap();
    assert_eq!((exit.code, exit.reason.as_deref()), (Some(0), Some("guest-reset")));
}

#[tokio::test]
async fn missing_program_is_named() {
    let settings = QemuSettings { program: "/no/such/qemu".into(), ..QemuSettings::default() };
    let text = failure(settings, &bench("no-program").spec).await;
    assert!(text.contains("/no/such/qemu") && text.contains("No such file"), "{text}");
}

#[tokio::test]
async fn file_that_is_no_kernel_is_named() {
    let mut bench = bench("no-kernel");
    bench.spec.kernel = bench.file("kernel", b"no kernel at all\n");
    let text = failure(QemuSettings::default(), &bench.spec).await;
    assert!(text.contains("/kernel: is neither an uncompressed kernel"), "{text}");
}

#[tokio::test]
async fn broken_kernel_is_told_in_qemus_words() {
    let mut bench = bench("broken-kernel");
    bench.spec.kernel = bench.file("kernel", b"\x7fELF and then nothing\n");
    let text = failure(QemuSettings::default(), &bench.spec).await;
    assert!(text.contains("exited with status 1") && text.contains("elf kernel"), "{text}");
}

#[tokio::test]
async fn memory_that_the_initrd_does_not_fit_into_is_told_in_qemus_words() {
    let mut bench = bench("no-memory");
    bench.spec.memory_mib = 64;
    let mut content = fs::read(bench.directory.path().join("initrd.img")).unwrap();
    content.resize(80 << 20, 0);
    bench.spec.root = GuestRoot::Initrd(bench.file("large.img", &content));
    let text = failure(QemuSettings::default(), &bench.spec).await;
    assert!(text.contains("exited with status 1") && text.contains("initrd"), "{text}");
}

#[tokio::test]
async fn wrong_processor_feature_is_told_in_qemus_words() {
    let settings =
        QemuSettings { cpu_features: "no-such-feature=on".into(), ..QemuSettings::default() };
    let text = failure(settings, &bench("no-feature").spec).await;
    assert!(text.contains("no-such-feature"), "{text}");
}

#[tokio::test]
async fn file_server_that_does_not_listen_is_named() {
    let mut bench = bench("no-share");
    let socket = bench.directory.path().join("fs.sock");
    let source = ShareSource::Server(socket);
    bench.spec.shares.push(ShareSpec { tag: "share".into(), source });
    let text = failure(QemuSettings::default(), &bench.spec).await;
    assert!(text.contains("file server") && text.contains("fs.sock"), "{text}");
}

/// `KATA_TEST_BOOTS` says how often; 100 is the measure that no hang may be seen in.
#[tokio::test]
async fn boots_in_a_row_never_hang() {
    let count = std::env::var("KATA_TEST_BOOTS").map_or(3, |count| count.parse().unwrap());
    let bench = bench("row");
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        let vm = boot(QemuSettings::default(), &bench.spec).await;
        times.push(started.elapsed());
        vm.stop().await;
    }
    times.sort_unstable();
    println!("{count} boots: median {:?}, slowest {:?}", times[count / 2], times[count - 1]);
}
