//! Hooks of the OCI specification under containerd, compared with runc's.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kata_e2e::{
    Containerd, Deadline, Image, Part, Run, Runtime, Spec, await_path, only_a_vm, parts_of,
    scenario,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Directory of one container: its root file system, and what its hooks leave.
struct Place(PathBuf);

impl Place {
    fn new(containerd: &Containerd, name: &str) -> Result<Self> {
        let place = Self(containerd.directory().join(name));
        Image::unpack(&place.0.join("rootfs"))?;
        Ok(place)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// A list with one hook, a shell with `script` that has this place's directory in `$place`. It
    /// first writes down its name.
    fn hook(&self, name: &str, script: &str) -> Value {
        let script = format!("echo {name} >> $place/log; {script}");
        json!([{
            "path": "/bin/sh",
            "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", format!("place={}", self.0.display())],
        }])
    }

    fn spec(&self, command: &str) -> Spec {
        Spec::new(&self.file("rootfs"), &["sh", "-c", command])
    }

    fn run<'a>(&self, containerd: &'a Containerd, spec: Spec) -> Run<'a> {
        containerd.shell("").spec(spec)
    }
}

/// Whether the container's process has run by now.
const STARTED: &str = "test -e $place/rootfs/started && echo started >> $place/log";

#[test]
fn each_runs_where_and_when_the_specification_says() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "all")?;
        let facts = "cat > $place/$name.state; env | grep -v ^PWD | sort | sed \"s|$place|PLACE|\" >> $place/log; \
            readlink /proc/self/ns/mnt >> $place/mounts";
        let hook = |name: &str| place.hook(name, &format!("name={name}; {facts}; {STARTED}; true"));
        let spec = place
            .spec("touch /started")
            .set("/annotations/of.the", json!("engine"))
            .set("/hooks/prestart", hook("prestart"))
            .set("/hooks/createRuntime", hook("createRuntime"))
            .set("/hooks/poststart", hook("poststart"))
            .set("/hooks/poststop", hook("poststop"));
        let run = place.run(containerd, spec);
        let id = run.id().to_owned();
        run.output()?.success()?;
        let names = ["prestart", "createRuntime", "poststart", "poststop"];
        let log = place.log();
        let order: Vec<&str> = log.lines().filter(|line| names.contains(line)).collect();
        assert_eq!(order, names);
        // When the poststart hook runs, the process may or may not have done something.
        let said = log.lines().filter(|line| *line == "started").count();
        assert!((1..=2).contains(&said) && log.trim_end().ends_with("started"), "{log}");
        assert!(!log.contains("HOME="), "{log}");
        let hosts = fs::read_link("/proc/self/ns/mnt")?.display().to_string();
        let seen = fs::read_to_string(place.file("mounts"))?;
        assert!(seen.lines().count() == 4 && seen.lines().all(|line| line == hosts), "{seen}");
        for (name, status) in names.into_iter().zip(["creating", "creating", "running", "stopped"])
        {
            let state = fs::read_to_string(place.file(&format!("{name}.state")))?;
            let state: Value = serde_json::from_str(&state).context(name)?;
            assert_eq!(state["id"], id, "{name}");
            // runc may not have noticed yet.
            if name != "poststart" || Runtime::under_test() == Runtime::Kata {
                assert_eq!(state["status"], status, "{name}");
            }
            assert_eq!(state["annotations"]["of.the"], "engine", "{name}");
            assert_eq!(state["pid"].as_u64().is_some_and(|pid| pid > 0), name != "poststop");
        }
        Ok(())
    })
}

#[test]
fn network_of_a_hook_is_the_containers() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "network")?;
        // As Docker and nerdctl do it.
        let script = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
            nsenter --net=/proc/$pid/ns/net sh -c 'ip link add eth0 address 02:00:00:00:00:07 type veth peer name far && \
            ip address add 10.77.0.2/24 dev eth0 && ip link set eth0 up && ip link set far up' 2>> $place/log";
        let spec = place
            .spec("ip address show eth0 | grep -o 'inet [0-9./]*'; cat /sys/class/net/eth0/address")
            .set("/hooks/createRuntime", place.hook("createRuntime", script));
        let output = place.run(containerd, spec).output()?;
        let said = output.success().with_context(|| place.log())?;
        assert_eq!(said, "inet 10.77.0.2/24\n02:00:00:00:00:07\n");
        Ok(())
    })
}

#[test]
fn failed_hook_of_the_creation_is_quoted_and_poststop_follows() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "fails")?;
        let spec = place
            .spec("touch /started")
            .set("/hooks/createRuntime", place.hook("createRuntime", "echo because; exit 3"))
            .set("/hooks/poststart", place.hook("poststart", ""))
            .set("/hooks/poststop", place.hook("poststop", "exit 4"));
        let run = place.run(containerd, spec);
        let id = run.id().to_owned();
        let error = run.output()?.failure()?;
        assert!(error.contains("createRuntime hook #0") || Runtime::under_test() == Runtime::Runc);
        assert!(error.contains("because") && error.contains("exit status"), "{error}");
        assert_eq!(place.log(), "createRuntime\npoststop\n");
        assert!(!place.file("rootfs/started").exists());
        // What `ctr run --rm` leaves where there is no task.
        containerd.ctr(["container", "delete", &id]).map(drop)
    })
}

/// runc 1.1 runs it with the creation already, after which there is no task.
#[test]
fn failed_hook_of_the_start_ends_the_container() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "late")?;
        let spec = place
            .spec("exec sleep 1000")
            .set("/hooks/poststart", place.hook("poststart", "echo because; exit 3"))
            .set("/hooks/poststop", place.hook("poststop", ""));
        let run = place.run(containerd, spec);
        let id = run.id().to_owned();
        let error = run.output()?.failure()?;
        assert!(error.contains("because") && error.contains("exit status"), "{error}");
        // Some versions of ctr leave what they could not start.
        containerd.ctr(["task", "delete", &id])?;
        assert_eq!(place.log(), "poststart\npoststop\n");
        containerd.ctr(["container", "delete", &id]).map(drop)
    })
}

#[test]
fn one_of_the_start_is_the_containers_own_program_before_its_process() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "inside")?;
        // A directory that the user may not enter, and a file that all may write to.
        let (closed, told) = (place.file("rootfs/closed"), place.file("rootfs/told"));
        fs::create_dir(&closed)?;
        fs::set_permissions(&closed, Permissions::from_mode(0o700))?;
        fs::write(&told, "")?;
        fs::set_permissions(&told, Permissions::from_mode(0o666))?;
        let script = "(cat; echo; pwd; env | grep -v -e ^PWD -e ^SHLVL | sort; hostname) > /told";
        let spec = place
            .spec("cat /told")
            .set("/process/cwd", json!("/closed"))
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
            .set("/hostname", json!("inside"))
            .set("/annotations/of.the", json!("engine"))
            .set("/hooks/startContainer", inner_hook(script));
        let run = place.run(containerd, spec);
        let id = run.id().to_owned();
        let said = run.output()?.success()?;
        let (state, rest) = said.split_once('\n').context("it was told nothing")?;
        let state: Value = serde_json::from_str(state).context("its state")?;
        assert_eq!(state["id"], id);
        assert_eq!(state["status"], "created");
        assert_eq!(state["pid"], 1);
        assert_eq!(state["annotations"]["of.the"], "engine");
        assert_eq!(rest, "/closed\nGIVEN=yes\nPATH=/bin\ninside\n");
        Ok(())
    })
}

#[test]
fn failed_one_of_the_start_is_quoted_in_the_containers_output() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "inside")?;
        let spec = place
            .spec("touch /started")
            .set("/hooks/startContainer", inner_hook("echo because; exit 3"))
            .set("/hooks/poststop", place.hook("poststop", ""));
        let output = place.run(containerd, spec).output()?;
        assert_eq!(output.code, 1);
        let said = output.error_text();
        assert!(said.contains("hook #0") && said.contains("because"), "{said}");
        assert_eq!(place.log(), "poststop\n");
        assert!(!place.file("rootfs/started").exists());
        Ok(())
    })
}

#[test]
fn one_of_the_start_that_is_not_there_is_named_with_the_reason() -> Result<()> {
    scenario(|containerd| {
        let place = Place::new(containerd, "inside")?;
        let hook = json!([{ "path": "/no/such/hook" }]);
        let output = place
            .run(containerd, place.spec("touch /started").set("/hooks/startContainer", hook))
            .output()?;
        assert_eq!(output.code, 1);
        let said = output.error_text().to_lowercase();
        assert!(said.contains("/no/such/hook") && said.contains("no such file"), "{said}");
        assert!(!place.file("rootfs/started").exists());
        Ok(())
    })
}

/// A list with one hook, a shell in the container.
fn inner_hook(script: &str) -> Value {
    json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": ["PATH=/bin", "GIVEN=yes"],
    }])
}

#[test]
fn one_of_the_host_in_the_containers_namespaces_is_refused_by_name() -> Result<()> {
    if !only_a_vm("the refusal of hooks that neither host nor guest can run") {
        return Ok(());
    }
    scenario(|containerd| {
        let place = Place::new(containerd, "between")?;
        let spec = place
            .spec("true")
            .set("/hooks/prestart", place.hook("prestart", ""))
            .set("/hooks/createContainer", place.hook("createContainer", ""));
        let run = place.run(containerd, spec);
        let id = run.id().to_owned();
        let error = run.output()?.failure()?;
        assert!(error.contains("the createContainer hook /bin/sh cannot be run"), "{error}");
        assert_eq!(place.log(), "", "nothing was begun");
        containerd.ctr(["container", "delete", &id]).map(drop)
    })
}

#[test]
fn poststop_runs_also_where_the_shim_was_killed() -> Result<()> {
    if !only_a_vm("a shim that can be killed") {
        return Ok(());
    }
    scenario(|containerd| {
        let place = Place::new(containerd, "killed")?;
        let poststop = place.hook("poststop", "touch $place/done");
        let spec = place.spec("exec sleep 1000").set("/hooks/poststop", poststop);
        let container = place.run(containerd, spec).start()?;
        for shim in parts_of(containerd.mark(), Part::Shim)? {
            shim.signal(Signal::KILL)?;
        }
        let done = await_path(&place.file("done"), Deadline::for_command())?;
        assert!(done, "{}", place.log());
        container.remove()?;
        assert_eq!(place.log(), "poststop\n");
        Ok(())
    })
}
