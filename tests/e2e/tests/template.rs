//! Sandboxes that go on from a guest that was saved, and do not boot.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kata_e2e::{
    Client, Configuration, Containerd, Input, Installation, Output, Part, Scenario, Wire,
    only_a_vm, parts_of,
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

/// A test of what comes of a template that is there.
fn with_template(test: impl FnOnce(&Factory) -> Result<()>) -> Result<()> {
    if !only_a_vm("templates") {
        return Ok(());
    }
    let factory = Factory::new()?;
    factory.call("init")?.success()?;
    test(&factory)
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
    with_template(|factory| {
        factory.scenario().run(|containerd| {
            let mut seen = Vec::new();
            for _ in 0..2 {
                let container = containerd.run(["sleep", "1000"]).start()?;
                ensure!(goes_on(containerd)?, "it has booted");
                let random = "od -An -N16 -tx8 /dev/urandom; cat /proc/sys/kernel/random/boot_id";
                seen.extend(
                    container.shell(random).output()?.success()?.lines().map(str::to_owned),
                );
                let told: u64 =
                    container.exec(["date", "+%s"]).output()?.success()?.trim().parse()?;
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
    })
}

#[test]
fn sandbox_of_another_size_boots_and_it_is_said_why() -> Result<()> {
    with_template(|factory| {
        let other = factory.other_size()?;
        Scenario::new().configuration(&other.file()).run(|containerd| {
            let container = containerd.run(["sleep", "1000"]).start()?;
            ensure!(!goes_on(containerd)?, "it is a guest of another size");
            let log = containerd.log().text();
            let why = "it was made with another memory; `kata-runtime factory init` makes one";
            ensure!(log.contains(why), "{log}");
            container.remove()
        })?;
        Ok(())
    })
}

#[test]
fn template_that_is_damaged_is_told_and_the_sandbox_boots() -> Result<()> {
    with_template(|factory| {
        let state = factory.template().join("state");
        let whole = fs::read(&state)?;
        fs::write(&state, &whole[..whole.len() / 2])?;
        let boots = |said: &str| {
            factory.scenario().run(|containerd| {
                let container = containerd.run(["sleep", "1000"]).start()?;
                ensure!(!goes_on(containerd)?, "it went on from half of a template");
                let log = containerd.log().text();
                ensure!(log.contains(said), "{said:?} is not in: {log}");
                let output = container.shell("echo it works >/file; cat /file").output()?;
                assert_eq!(output.success()?, "it works\n");
                container.remove()
            })
        };
        boots("the guest cannot go on from its template: ")?;
        fs::remove_file(&state)?;
        boots("its file state is not there")
    })
}

#[test]
fn sandbox_from_a_template_has_its_own_network() -> Result<()> {
    with_template(|factory| {
        factory.scenario().run(|containerd| {
            let wire = Wire::new(containerd)?;
            let before = wire.picture()?;
            let run = containerd.run(["sleep", "1000"]).option("--with-ns", &wire.with_ns());
            let container = run.start()?;
            ensure!(goes_on(containerd)?, "it has booted");
            let script =
                "ip address show eth0; ping -c 1 -w 10 10.99.0.1 && ping6 -c 1 -w 10 fd99::1";
            let said = container.shell(script).output()?.success()?;
            ensure!(said.contains("10.99.0.2/24"), "{said}");
            container.remove()?;
            wire.becomes(&before)
        })
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
