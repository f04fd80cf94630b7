//! What a driver promises; each fails with the reason why it is not kept.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kata_agent_client::{AgentClient, FileContent, GuestFile, GuestSandbox, GuestStorage};
use kata_channel::{AGENT_PORT, DEBUG_CONSOLE_PORT};
use kata_hypervisor::{
    DiskSpec, Disks, GuestDisk, GuestImage, GuestRoot, HypervisorError, LaterDisks, Pause,
    ShareSource, ShareSpec, SharedFileSystem, Vm,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::bench::{BOOT, Bench, SOON, agent, last_words, sandbox};
use crate::cable::Cable;
use crate::traces::{Traces, is_gone, processes_of};
use crate::{Subject, skipped};

/// How long a guest that stands still is listened to.
const SILENCE: Duration = Duration::from_millis(300);

/// The agent is reached over the channel, more than once; the console shows its first line; the VMM
/// is a process that names the sandbox.
pub async fn agent_is_reached(subject: Subject) -> Result<()> {
    let bench = Bench::new(subject, "agent").await?;
    let (vm, _agent) = bench.boot_to_agent().await?;
    agent(vm.as_ref(), SOON).await?;
    ensure!(vm.console().kernel_is_up(), "{}", last_words(vm.as_ref()));
    let processes = processes_of(&bench.spec.sandbox)?;
    let own = format!("/proc/{}:", vm.pid());
    ensure!(processes.iter().any(|one| one.starts_with(&own)), "{own} is not in {processes:?}");
    vm.stop().await;
    Ok(())
}

/// A port of the guest on which nobody listens is refused, and soon, once the agent was reached: by
/// an error, or by a stream that ends.
pub async fn port_without_a_listener_is_refused(subject: Subject) -> Result<()> {
    let bench = Bench::new(subject, "port").await?;
    let (vm, _agent) = bench.boot_to_agent().await?;
    let refused = async {
        let Ok(mut stream) = vm.dial(DEBUG_CONSOLE_PORT).await else { return true };
        stream.read_u8().await.is_err()
    };
    ensure!(timeout(SOON, refused).await.context("nobody is waited for")?, "somebody listens");
    vm.stop().await;
    Ok(())
}

/// A paused guest does not answer, and a resumed one does, also what it was asked before. Where the
/// VMM's version cannot do that, it is refused by name, and the guest goes on.
pub async fn paused_guest_stands_still_until_it_is_resumed(subject: Subject) -> Result<()> {
    let bench = Bench::new(subject, "pause").await?;
    let (vm, agent) = bench.boot_to_agent().await?;
    match (bench.subject.hypervisor.capabilities().pause, vm.pause().await) {
        (Pause::Never, paused) => {
            bench.is_refusal(&paused.err().context("it was paused")?)?;
            return bench.is_refusal(&vm.resume().await.err().context("it was resumed")?);
        }
        (Pause::Except(version), Err(refusal)) => {
            bench.is_refusal(&refusal)?;
            ensure!(refusal.to_string().contains(version), "{version} is not in: {refusal}");
            return Ok(agent.check().await?);
        }
        (Pause::Always | Pause::Except(_), paused) => paused?,
    }
    let asked = tokio::spawn(async move { agent.check().await });
    tokio::pin!(asked);
    ensure!(timeout(SILENCE, &mut asked).await.is_err(), "a guest that stands still has answered");
    vm.resume().await?;
    timeout(SOON, asked).await.context("a resumed guest does not answer")???;
    vm.stop().await;
    Ok(())
}

/// After the stop, which may be repeated, the end is told, all requests fail, and nothing is left.
pub async fn stop_leaves_nothing(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "stop").await?;
    let traces = Traces::before(&bench.spec.sandbox, bench.directory.path())?;
    let shares = bench.subject.hypervisor.capabilities().shared_file_system;
    let server = if shares == SharedFileSystem::None { None } else { bench.share()? };
    let (vm, agent) = bench.boot_to_agent().await?;
    let (pid, started) = (vm.pid(), Instant::now());
    vm.stop().await;
    ensure!(started.elapsed() < SOON, "stopping took {:?}", started.elapsed());
    ensure!(is_gone(pid), "the VMM is still there");
    vm.stop().await;
    let exit = timeout(SOON, vm.exited()).await.context("the end is not told")?;
    ensure!(exit.code != Some(0), "{exit}");
    is_closed(vm.as_ref()).await?;
    ensure!(timeout(SOON, agent.check()).await?.is_err(), "an agent that is gone has answered");
    if let Some(server) = server {
        timeout(SOON, server.exited()).await.context("the file server goes on without the VM")?;
    }
    drop((vm, agent));
    traces.vanish().await
}

/// A VMM that is killed is told of, with the signal, and what it was doing fails.
pub async fn death_of_the_vmm_is_an_event(subject: Subject) -> Result<()> {
    let bench = Bench::new(subject, "kill").await?;
    let traces = Traces::before(&bench.spec.sandbox, bench.directory.path())?;
    let (vm, agent) = bench.boot_to_agent().await?;
    let pid = Pid::from_raw(vm.pid().try_into()?).context("it has a process id")?;
    kill_process(pid, Signal::KILL)?;
    let exit = timeout(SOON, vm.exited()).await.context("the death is not told")?;
    ensure!(exit.signal == Some(9) && exit.reason.is_none(), "{exit}");
    is_closed(vm.as_ref()).await?;
    drop((vm, agent));
    traces.vanish().await
}

/// A VM that nobody has stopped ends with its handle, also before its guest is up.
pub async fn vm_that_is_dropped_leaves_nothing(subject: Subject) -> Result<()> {
    let bench = Bench::new(subject, "drop").await?;
    let traces = Traces::before(&bench.spec.sandbox, bench.directory.path())?;
    drop(bench.boot().await?);
    traces.vanish().await
}

/// A guest whose kernel panics ends its VM by itself, says why on the console, and the end has a
/// reason.
pub async fn panic_ends_the_vm_and_is_its_last_word(subject: Subject) -> Result<()> {
    if !subject.guest.has_kernel {
        skipped("panic_ends_the_vm_and_is_its_last_word", "the guest has no kernel");
        return Ok(());
    }
    let mut bench = Bench::new(subject, "panic").await?;
    bench.spec.kernel_params.push("rdinit=/no/such/program".to_owned());
    let vm = bench.boot().await?;
    let exit = timeout(BOOT, vm.exited()).await.with_context(|| last_words(vm.as_ref()))?;
    let console = vm.console().last_lines(60).join("\n");
    ensure!(console.contains("Kernel panic"), "{exit}; {}", last_words(vm.as_ref()));
    // The former where VMM and guest have a device for that.
    let reason = exit.reason.as_deref();
    ensure!(matches!(reason, Some("guest-panic" | "guest-reset")), "{exit}");
    Ok(())
}

/// A guest has the processors and the memory that are its own, but for what its kernel keeps.
pub async fn guest_is_as_large_as_it_is_to_be(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "size").await?;
    (bench.spec.vcpus, bench.spec.memory_mib) = (2, 384);
    let (vm, agent) = bench.boot_to_agent().await?;
    if bench.subject.guest.has_kernel {
        let metrics = agent.get_metrics().await?;
        // One for each, and one for all of them.
        let lines = metrics.matches(",item=\"idle\"}").count();
        ensure!(lines == 3, "it has not two processors: {metrics}");
        let total = "kata_guest_meminfo{item=\"memtotal\"} ";
        let memory = metrics.lines().find_map(|line| line.strip_prefix(total));
        let mib = memory.context("it has no memory")?.parse::<f64>()? / f64::from(1 << 20);
        ensure!((300.0..=384.0).contains(&mib), "it has {mib} MiB");
    }
    vm.stop().await;
    Ok(())
}

/// What the guest writes into its share is on the host, by the way that the capabilities name; the
/// other way is refused.
pub async fn files_are_shared(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "share").await?;
    let way = bench.subject.hypervisor.capabilities().shared_file_system;
    if way != SharedFileSystem::None {
        let server = bench.share()?;
        let (vm, agent) = bench.boot_to_agent().await?;
        agent.create_sandbox(&sandbox(true)).await.with_context(|| last_words(vm.as_ref()))?;
        agent.copy_file(file(&format!("{}/file", kata_storage::GUEST_SHARE))).await?;
        let written = fs::read(bench.shared().join("file")).context("the host has no such file")?;
        ensure!(written == CONTENT, "{written:?}");
        vm.stop().await;
        drop(server);
        bench.spec.shares.clear();
    }
    let ways = [
        (SharedFileSystem::Server, ShareSource::Server(bench.directory.path().join("no.sock"))),
        (SharedFileSystem::Inline, ShareSource::Directory(bench.directory.path().to_owned())),
    ];
    for (other, source) in ways {
        if other != way {
            bench.spec.shares = vec![ShareSpec { tag: "other".to_owned(), source }];
            bench.is_refused().await?;
        }
    }
    Ok(())
}

const CONTENT: &[u8] = b"from the guest\n";

fn file(path: &str) -> GuestFile<'_> {
    GuestFile {
        path,
        mode: 0o644,
        dir_mode: 0o755,
        uid: 0,
        gid: 0,
        content: FileContent::Regular(CONTENT),
    }
}

/// A guest starts from an image, or the driver refuses it.
pub async fn image_is_booted_from(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "image").await?;
    bench.spec.root = GuestRoot::Image(GuestImage {
        file: bench.subject.guest.image.clone(),
        file_system: "ext4".to_owned(),
        verity: None,
        drivers: None,
    });
    if !bench.subject.hypervisor.capabilities().image {
        return bench.is_refused().await;
    }
    let (vm, _agent) = bench.boot_to_agent().await?;
    vm.stop().await;
    Ok(())
}

/// Disks are there at boot, may come and go later, or are refused, as the capabilities say.
pub async fn disks_are_taken_as_the_capabilities_say(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "disks").await?;
    let takes = bench.subject.hypervisor.capabilities().disks;
    let disk = |id: &str| {
        let path = bench.directory.path().join(id);
        // Whatever is there, for there has to be a file system on it.
        kata_storage::pack(&bench.spec.run_dir, &path)?;
        anyhow::Ok(DiskSpec { id: id.to_owned(), path, readonly: true })
    };
    let (early, late, other) = (disk("early")?, disk("late")?, disk("other")?);
    let room = LaterDisks { readonly: 2, writable: 0 };
    if takes != Disks::None {
        bench.spec.disks.push(early.clone());
        bench.spec.later_disks = if takes == Disks::Later { room } else { LaterDisks::default() };
        let (vm, agent) = bench.boot_to_agent().await?;
        ensure!(vm.disk("late").is_none(), "it has {:?}", vm.disk("late"));
        let found = vm.disk("early").context("it is nowhere")?;
        ensure!(has_open(vm.pid(), &early.path)?, "the VMM does not have what it was given");
        let mut storages = vec![mounted(found, "early")];
        if takes == Disks::Later {
            let found = vm.attach_disk(&late).await?;
            ensure!(vm.disk("late").as_ref() == Some(&found), "it is not at {found:?}");
            storages.push(mounted(found, "late"));
            vm.attach_disk(&other).await?;
            let full = vm.attach_disk(&DiskSpec { id: "more".to_owned(), ..other.clone() }).await;
            ensure!(matches!(full, Err(HypervisorError::NoDisk { .. })), "{full:?}");
            ensure!(has_open(vm.pid(), &other.path)?, "the VMM does not have what it was given");
            vm.detach_disk("other").await?;
            vm.detach_disk("other").await?;
            ensure!(!has_open(vm.pid(), &other.path)?, "the VMM keeps what was taken away");
            ensure!(vm.disk("other").is_none(), "it has {:?}", vm.disk("other"));
            vm.attach_disk(&DiskSpec { id: "again".to_owned(), ..other.clone() }).await?;
        } else {
            ensure!(vm.attach_disk(&late).await.is_err(), "a disk came that is not supported");
        }
        let guest = GuestSandbox { storages, ..sandbox(false) };
        agent.create_sandbox(&guest).await.with_context(|| last_words(vm.as_ref()))?;
        vm.stop().await;
    }
    if takes == Disks::None {
        bench.spec.disks = vec![early];
        bench.is_refused().await?;
        bench.spec.disks.clear();
    }
    if takes != Disks::Later {
        bench.spec.later_disks = room;
        bench.is_refused().await?;
    }
    Ok(())
}

/// What has the guest mount a disk with an image.
fn mounted(disk: GuestDisk, name: &str) -> GuestStorage {
    GuestStorage {
        driver: disk.driver.to_owned(),
        source: disk.address,
        fstype: kata_storage::IMAGE_TYPE.to_owned(),
        options: vec!["ro".to_owned()],
        mount_point: format!("/run/kata-containers/sandbox/disks/{name}"),
        ..GuestStorage::default()
    }
}

/// Whether a process has a file open, by whatever name.
fn has_open(pid: u32, file: &Path) -> Result<bool> {
    let number = |file: &fs::Metadata| (file.dev(), file.ino());
    let wanted = number(&fs::metadata(file)?);
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).context("cannot see what is open")? {
        // What is closed by now is not open.
        let open = fs::metadata(entry.context("cannot see what is open")?.path());
        if open.is_ok_and(|open| number(&open) == wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A network device that is there at boot has its address and carries frames both ways.
pub async fn frames_pass_through_a_network_device(subject: Subject) -> Result<()> {
    if !subject.guest.has_kernel {
        skipped("frames_pass_through_a_network_device", "the guest has no network stack");
        return Ok(());
    }
    let mut bench = Bench::new(subject, "nic").await?;
    let mut cable = Cable::new(bench.subject.hypervisor.capabilities()).await?;
    let interface = cable.plug_into(&mut bench.spec)?;
    let (vm, agent) = bench.boot_to_agent().await?;
    agent.create_sandbox(&sandbox(false)).await?;
    agent.update_interface(&interface).await.with_context(|| last_words(vm.as_ref()))?;
    cable.carries(vm.as_ref()).await?;
    vm.stop().await;
    Ok(())
}

/// A VM takes a network device while it runs if it was booted with room for one; without, and where
/// the capabilities deny it, that is refused.
pub async fn network_device_may_come_late(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "hotplug").await?;
    let mut cable = Cable::new(bench.subject.hypervisor.capabilities()).await?;
    let nic = cable.nic.take().context("the cable is new")?;
    let (vm, _agent) = bench.boot_to_agent().await?;
    match vm.add_nic(&nic).await {
        Err(error) => bench.is_refusal(&error)?,
        Ok(()) => bail!("a device was added to a VM without room for it"),
    }
    vm.stop().await;

    bench.spec.hot_plug = true;
    if !bench.subject.hypervisor.capabilities().hot_plug {
        return bench.is_refused().await;
    }
    let (vm, agent) = bench.boot_to_agent().await?;
    agent.create_sandbox(&sandbox(false)).await?;
    vm.add_nic(&nic).await?;
    configure(&agent, &Cable::interface(&nic), vm.as_ref()).await?;
    drop(nic);
    cable.carries(vm.as_ref()).await?;
    vm.stop().await;
    Ok(())
}

/// A VM that was booted with room for more memory takes it, and gives back what it does not use;
/// without, and where the capabilities deny it, that is refused.
pub async fn memory_may_come_and_go(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "memory").await?;
    let (vm, _agent) = bench.boot_to_agent().await?;
    let refused = vm.resize_memory(bench.spec.memory_mib + 128).await;
    ensure!(matches!(refused, Err(HypervisorError::FixedMemory)), "{refused:?}");
    ensure!(matches!(vm.memory_mib().await, Err(HypervisorError::FixedMemory)));
    vm.stop().await;

    let (least, most) = (bench.spec.memory_mib, bench.spec.memory_mib + 768);
    bench.spec.most_memory_mib = Some(most);
    let can = bench.subject.hypervisor.capabilities();
    if !can.more_memory {
        return bench.is_refused().await;
    }
    // Whoever serves files has to see the new memory, too.
    let shares = can.shared_file_system != SharedFileSystem::None;
    let server = if shares { bench.share()? } else { None };
    let (vm, agent) = bench.boot_to_agent().await?;
    agent.create_sandbox(&sandbox(shares)).await.with_context(|| last_words(vm.as_ref()))?;
    ensure!(vm.memory_mib().await? == least, "it has more from the start");
    for size in [least + 600, most, least] {
        // Who is not sure that it was heard asks again.
        vm.resize_memory(size).await?;
        vm.resize_memory(size).await?;
        let arrived = timeout(SOON, vm.until_memory(size)).await;
        arrived.with_context(|| format!("not {size} MiB; {}", last_words(vm.as_ref())))??;
        if shares {
            let path = format!("{}/{size}", kata_storage::GUEST_SHARE);
            agent.copy_file(file(&path)).await?;
            ensure!(fs::read(bench.shared().join(size.to_string()))? == CONTENT);
        }
    }
    vm.stop().await;
    drop(server);
    Ok(())
}

/// A VM that was booted with room for more virtual CPUs gets them, the guest can use them, and they
/// go again, more than once; without, and where the capabilities deny it, that is refused.
pub async fn virtual_cpus_may_come_and_go(subject: Subject) -> Result<()> {
    let mut bench = Bench::new(subject, "vcpus").await?;
    let (vm, _agent) = bench.boot_to_agent().await?;
    let refused = vm.resize_vcpus(2).await;
    ensure!(matches!(refused, Err(HypervisorError::FixedVcpus)), "{refused:?}");
    vm.stop().await;

    bench.spec.most_vcpus = Some(3);
    if !bench.subject.hypervisor.capabilities().more_vcpus {
        return bench.is_refused().await;
    }
    let (vm, agent) = bench.boot_to_agent().await?;
    agent.create_sandbox(&sandbox(false)).await.with_context(|| last_words(vm.as_ref()))?;
    let mut has = 1;
    for count in [3, 1, 2, 3, 2] {
        if count < has {
            agent.use_cpus(count, 0).await?;
        }
        let resized = timeout(SOON, vm.resize_vcpus(count)).await;
        resized.with_context(|| format!("not {count}; {}", last_words(vm.as_ref())))??;
        if count > has {
            agent.use_cpus(count, count - has).await.with_context(|| last_words(vm.as_ref()))?;
        }
        has = count;
    }
    ensure!(agent.use_cpus(4, 1).await.is_err(), "the guest has more than it may");
    vm.stop().await;
    Ok(())
}

async fn configure(
    agent: &AgentClient,
    interface: &kata_agent_client::GuestInterface,
    vm: &dyn Vm,
) -> Result<()> {
    agent.update_interface(interface).await.map(drop).with_context(|| last_words(vm))
}

/// That nothing can be asked of the VM any more.
async fn is_closed(vm: &dyn Vm) -> Result<()> {
    match timeout(SOON, vm.dial(AGENT_PORT)).await.context("a dial waits for what is gone")? {
        Err(HypervisorError::ChannelClosed) => {}
        Err(error) => bail!("this does not say that the channel is closed: {error}"),
        Ok(_) => bail!("a guest that is gone was reached"),
    }
    ensure!(vm.pause().await.is_err(), "a VM that is gone was paused");
    Ok(())
}
