//! Sandboxes that go on from a guest that was saved, and do not boot.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Client, Configuration, Containerd, Input, Installation, Output, Part, Scenario, only_a_vm,
    parts_of,
};
use tempfile::TempDir;

/// How far the guest's clock may be off, in seconds, on a machine that is busy.
const CLOCK: u64 = 5;

/// A configuration with a template of its own, which goes with this.
struct Factory {
    configuration: Configuration,
    directory: TempDir,
}

impl Factory {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let configuration = Configuration::with(&lines(&directory, 256))?;
        Ok(Self { configuration, directory })
    }

    fn template(&self) -> PathBuf {
        self.directory.path().join("template")
    }

    /// `kata-runtime factory`.
    fn call(&self, command: &str) -> Result<Output> {
        let program = Installation::under_test().bin().join("kata-runtime");
        let mut runtime = Command::new(program);
        runtime.env("KATA_CONF_FILE", self.configuration.file()).args(["factory", command]);
        Client::spawn(runtime, Input::Nothing)?.wait()
    }

    fn scenario(&self) -> Scenario {
        Scenario::new().configuration(&self.configuration.file())
    }

    /// The same with guests of another size.
    fn other_size(&self) -> Result<Configuration> {
        Configuration::with(&lines(&self.directory, 320))
    }
}

fn lines(directory: &TempDir, memory: u32) -> String {
    format!(
        "[hypervisor.qemu]\ndefault_memory = {memory}\n\
         [factory]\nenable_template = true\ntemplate_path = '{}'\n",
        directory.path().join("template").display()
    )
}

/// Whether the only VMM there is went on from a template.
fn goes_on(containerd: &Containerd) -> Result<bool> {
    let vmms = parts_of(containerd.mark(), Part::Vmm)?;
    let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
    Ok(vmm.command_line.iter().any(|word| word == "-incoming"))
}

#[test]
fn template_is_made_told_and_taken_away() -> Result<()> {
    if !only_a_vm("templates") {
        return Ok(());
    }
    let factory = Factory::new()?;
    assert_eq!(factory.call("status")?.success()?, "vm factory is off\n");
    for _ in 0..2 {
        assert_eq!(factory.call("init")?.success()?, "vm factory initialized\n");
        assert_eq!(factory.call("status")?.success()?, "vm factory is on\n");
    }
    for _ in 0..2 {
        assert_eq!(factory.call("destroy")?.success()?, "vm factory destroyed\n");
    }
    assert_eq!(factory.call("status")?.success()?, "vm factory is off\n");
    let left: Vec<_> = fs::read_dir(factory.directory.path())?.flatten().collect();
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

#[test]
fn sandboxes_go_on_from_one_guest_and_have_nothing_of_it_in_common() -> Result<()> {
    if !only_a_vm("templates") {
        return Ok(());
    }
    let factory = Factory::new()?;
    factory.call("init")?.success()?;
    factory.scenario().run(|containerd| {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let container = containerd.run(["sleep", "1000"]).start()?;
            ensure!(goes_on(containerd)?, "it has booted");
            let random = "od -An -N16 -tx8 /dev/urandom; cat /proc/sys/kernel/random/boot_id";
            seen.extend(container.shell(random).output()?.success()?.lines().map(str::to_owned));
            let told: u64 = container.exec(["date", "+%s"]).output()?.success()?.trim().parse()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            ensure!(now.abs_diff(told) <= CLOCK, "it is {told} there and {now} here");
            // What it writes comes by the shared file system, which the template had not.
            let output = container.shell("echo it works >/file; cat /file").output()?;
            assert_eq!(output.success()?, "it works\n");
            let bytes = vec![b'x'; 1 << 20];
            let echoed = container.exec(["cat"]).stdin(Input::Bytes(bytes.clone())).output()?;
            ensure!(echoed.stdout == bytes, "{} bytes came back", echoed.stdout.len());
            container.remove()?;
        }
        let [random, boot, other_random, other_boot] = seen.as_slice() else {
            anyhow::bail!("not two lines of each: {seen:?}")
        };
        ensure!(random != other_random && boot != other_boot, "the same numbers: {seen:?}");
        Ok(())
    })
}

#[test]
fn sandbox_of_another_size_boots_and_it_is_said_why() -> Result<()> {
    if !only_a_vm("templates") {
        return Ok(());
    }
    let factory = Factory::new()?;
    factory.call("init")?.success()?;
    let other = factory.other_size()?;
    Scenario::new().configuration(&other.file()).run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        ensure!(!goes_on(containerd)?, "it is a guest of another size");
        let log = containerd.log().text();
        let why = "is not of it: it was made with another memory; `kata-runtime factory init`";
        ensure!(log.contains(why), "{log}");
        container.remove()
    })?;
    // Half of a template is none.
    fs::remove_file(factory.template().join("state"))?;
    factory.scenario().run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        ensure!(!goes_on(containerd)?, "its devices are not there");
        container.remove()
    })
}

#[test]
fn template_that_cannot_be_made_leaves_nothing() -> Result<()> {
    if !only_a_vm("templates") {
        return Ok(());
    }
    let factory = Factory::new()?;
    let file = factory.configuration.file();
    let text = fs::read_to_string(&file)?;
    let params = "[hypervisor.qemu]\nkernel_params = 'rdinit=/nothing'\n";
    fs::write(file.with_file_name("config.d").join("wrong.toml"), params)?;
    let error = factory.call("init")?.failure()?;
    ensure!(error.contains("no template is made in"), "{error}");
    ensure!(error.contains("Kernel panic"), "the guest's last words are missing: {error}");
    let left: Vec<_> = fs::read_dir(factory.directory.path())?.flatten().collect();
    ensure!(left.is_empty(), "left: {left:?}, with {text:?}");
    Ok(())
}
