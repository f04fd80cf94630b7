//! A pod as CRI-O makes it with an OCI runtime (`runtime_type = "oci"`): conmon makes each
//! container and writes down how it ends; CRI-O calls the runtime itself for the rest. CRI-O is no
//! package of Debian's; these are its calls, with conmon from Podman's package.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use kata_e2e::{CommandLine, Input, Installation, Runtime, SERVER, Spec, only_a_vm};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Has conmon make a container of the pod, starts it, and waits until it has said `up`.
fn start(host: &CommandLine, name: &str, kind: &str) -> Result<()> {
    let of_the_pod = |spec: Spec| {
        let annotations = json!({
            "io.kubernetes.cri-o.ContainerType": kind,
            "io.kubernetes.cri-o.SandboxID": host.id("pod"),
        });
        spec.set("/annotations", annotations)
            .set("/linux/cgroupsPath", json!(format!("/{}", host.id(name))))
    };
    let bundle = host.bundle(name, SERVER, of_the_pod)?;
    let mut conmon = conmon(host, name, &bundle);
    ensure!(conmon.status().context("conmon is missing")?.success(), "conmon has failed");
    // It writes it when the runtime has ended well.
    CommandLine::until(|| Ok(host.file(&format!("{name}.pid")).exists()))?;
    CommandLine::until(|| Ok(host.status(name)? == "created"))?;
    host.succeed(&["start", &host.id(name)])?;
    logs(host, name, "up")
}

fn conmon(host: &CommandLine, name: &str, bundle: &Path) -> Command {
    let path = |suffix: &str| host.file(&format!("{name}{suffix}"));
    let runtime = Installation::under_test().bin().join("kata-runtime");
    let id = host.id(name);
    let mut conmon = Command::new("conmon");
    conmon.args(["--cid", &id, "--cuuid", &id, "--name", name, "--log-level", "error"]);
    conmon.arg("--bundle").arg(bundle).arg("--container-pidfile").arg(path(".pid"));
    conmon.arg("--conmon-pidfile").arg(path(".conmon")).arg("--persist-dir").arg(bundle);
    conmon.arg("--exit-dir").arg(host.file("exits")).arg("--log-path").arg(path(".log"));
    conmon.arg("--socket-dir-path").arg(host.file("attach"));
    conmon.arg("--runtime").arg(runtime);
    conmon.arg("--runtime-arg").arg(format!("--root={}", host.file("state").display()));
    conmon.env("CRI_O_EXTERNAL", "1").stdin(Stdio::null()).stdout(Stdio::null());
    conmon
}

/// Waits until the container has written `text`, which conmon has put into the log that kubelet
/// reads.
fn logs(host: &CommandLine, name: &str, text: &str) -> Result<()> {
    let line = format!("stdout F {text}\n");
    CommandLine::until(|| {
        let log = fs::read_to_string(host.file(&format!("{name}.log"))).unwrap_or_default();
        Ok(log.contains(&line))
    })
    .with_context(|| format!("{name} has not said {text}"))
}

/// Waits until conmon has written down how the container ended.
fn exit_code(host: &CommandLine, name: &str) -> Result<String> {
    let file = host.file("exits").join(host.id(name));
    CommandLine::until(|| Ok(file.exists()))?;
    fs::read_to_string(file).context("cannot read how it ended")
}

/// Runs a command in a container as CRI-O does for `kubectl exec`: not detached, and what to run is
/// in a file.
fn exec(host: &CommandLine, name: &str, script: &str) -> Result<(i32, String)> {
    let file = host.file("process.json");
    let process = json!({
        "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
        "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"],
    });
    fs::write(&file, process.to_string())?;
    let file = file.display().to_string();
    let output = host.call(&["exec", "--process", &file, &host.id(name)])?;
    Ok((output.code, output.text()))
}

#[test]
fn pod_lives_and_ends_as_cri_o_has_it() -> Result<()> {
    if !only_a_vm("a pod that is a VM") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        for directory in ["exits", "attach"] {
            fs::create_dir(host.file(directory))?;
        }
        start(host, "pod", "sandbox")?;
        start(host, "web", "container")?;
        start(host, "side", "container")?;

        let boot = "cat /proc/sys/kernel/random/boot_id; exit 4";
        let (code, id) = exec(host, "web", boot)?;
        assert_eq!((code, id.len()), (4, 37));
        assert_eq!(exec(host, "side", boot)?, (4, id), "they are in different VMs");

        let web = host.id("web");
        let limits = json!({ "pids": { "limit": 77 } }).to_string().into_bytes();
        let update = ["update", "--resources", "-", &web];
        host.attach(&update, Input::Bytes(limits))?.wait()?.success()?;
        let told: Value = serde_json::from_str(&host.succeed(&["events", "--stats", &web])?)?;
        assert_eq!(told["data"]["pids"]["limit"], 77, "{told}");

        host.succeed(&["kill", &web, "15"])?;
        assert_eq!(exit_code(host, "web")?, "3");
        logs(host, "web", "bye")?;
        let again = host.call(&["kill", &web, "KILL"])?.failure()?;
        // One of the sentences by which CRI-O knows that there is nothing to do.
        assert!(again.contains("container not running"), "{again}");
        host.succeed(&["delete", "--force", &web])?;

        host.succeed(&["kill", &host.id("side"), "KILL"])?;
        assert_eq!(exit_code(host, "side")?, "137");
        host.succeed(&["kill", "-a", &host.id("pod"), "9"])?;
        assert_eq!(exit_code(host, "pod")?, "137");
        for name in ["side", "pod"] {
            host.succeed(&["delete", "--force", &host.id(name)])?;
        }
        Ok(())
    })
}

/// As when `kubectl exec` is interrupted.
#[test]
fn command_ends_with_the_runtime_that_was_called_for_it() -> Result<()> {
    if !only_a_vm("processes in a guest") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        host.run_idle("c")?;
        let id = host.id("c");
        let command =
            host.attach(&["exec", &id, "sh", "-c", "echo in; exec sleep 777"], Input::Nothing)?;
        command.expect("in")?;
        command.signal(Signal::KILL)?;
        command.wait()?.failure()?;
        CommandLine::until(|| Ok(!host.succeed(&["exec", &id, "ps"])?.contains("sleep 777")))?;
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}
