//! The command line under a child subreaper, as conmon and containerd's shim for runc are. Alone in
//! its file: the test waits for every child of its process.

use std::fs;

use anyhow::{Context, Result};
use kata_e2e::{CommandLine, IDLE, Runtime, only_a_vm};
use rustix::process::{Pid, WaitOptions, set_child_subreaper, wait};
use serde_json::json;

#[test]
fn a_created_container_leaves_one_child_and_no_descriptor_to_its_caller() -> Result<()> {
    if !only_a_vm("stand-in, proxy and VM") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        // As conmon and containerd's shim are: whoever loses its parent becomes a child of this
        // process.
        set_child_subreaper(Some(rustix::process::getpid())).context("cannot be a subreaper")?;
        let bundle = host.bundle("c", IDLE, |spec| spec)?;
        host.create("c", &bundle)?;
        let pid = host.pid("c")?;
        let children: String = fs::read_dir("/proc/self/task")?
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .collect();
        assert_eq!(children.trim(), pid.to_string(), "it is the only child");
        host.succeed(&["start", &host.id("c")])?;
        // The call's output ends when nobody holds it any more, which is with the process.
        host.succeed(&["exec", "--detach", "--process", &process(host)?, &host.id("c")])?;
        host.succeed(&["kill", &host.id("c"), "KILL"])?;
        let raw = Pid::from_raw(pid.cast_signed()).context("a pid is positive")?;
        let mut statuses = Vec::new();
        while let Ok(Some((who, status))) = wait(WaitOptions::empty()) {
            statuses.push((who, status.exit_status()));
        }
        assert!(statuses.contains(&(raw, Some(137))), "{statuses:?}");
        host.succeed(&["delete", &host.id("c")])?;
        set_child_subreaper(None).context("cannot stop being one")
    })
}

fn process(host: &CommandLine) -> Result<String> {
    let file = host.file("process.json");
    let process = json!({
        "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"], "env": ["PATH=/bin"],
    });
    fs::write(&file, process.to_string())?;
    Ok(file.display().to_string())
}
