//! Hooks of the OCI specification where the command line is called by hand, compared with runc's.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use kata_e2e::{CommandLine, IDLE, Runtime, only_a_vm};
use serde_json::{Value, json};

/// Where hooks write what they have to say.
struct Log(PathBuf);

impl Log {
    fn of(host: &CommandLine) -> Self {
        Self(host.file("hooks"))
    }

    /// A list with one hook, a shell that first writes down its name. `$log` is this log.
    fn hook(&self, name: &str, script: &str) -> Value {
        let script = format!("log={}; echo {name} >> $log; {script}", self.0.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

#[test]
fn each_runs_in_its_order_and_sees_the_containers_network() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let log = Log::of(host);
        let netns = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
            [ $(readlink /proc/$pid/ns/net) != $(readlink /proc/self/ns/net) ] && echo own >> $log";
        let bundle = host.bundle("c", "true", |spec| {
            spec.set("/hooks/prestart", log.hook("prestart", netns))
                .set("/hooks/poststart", log.hook("poststart", ""))
                .set("/hooks/poststop", log.hook("poststop", ""))
        })?;
        host.succeed(&["run", "--bundle", &bundle.display().to_string(), &host.id("c")])?;
        assert_eq!(log.text(), "prestart\nown\npoststart\npoststop\n");
        Ok(())
    })
}

#[test]
fn failed_one_of_the_creation_is_quoted_and_poststop_follows() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let log = Log::of(host);
        let bundle = host.bundle("c", "true", |spec| {
            spec.set("/hooks/createRuntime", log.hook("createRuntime", "echo because; exit 3"))
                .set("/hooks/poststart", log.hook("poststart", ""))
                .set("/hooks/poststop", log.hook("poststop", ""))
        })?;
        let run = host.call(&["run", "--bundle", &bundle.display().to_string(), &host.id("c")])?;
        let said = run.failure()?;
        assert!(said.contains("because") && said.contains("exit status"), "{said}");
        assert_eq!(log.text(), "createRuntime\npoststop\n");
        Ok(())
    })
}

/// runc 1.1 runs it with the creation already, and later versions with the start.
#[test]
fn failed_one_of_the_start_ends_the_container() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let log = Log::of(host);
        let bundle = host.bundle("c", IDLE, |spec| {
            spec.set("/hooks/poststart", log.hook("poststart", "echo because; exit 3"))
                .set("/hooks/poststop", log.hook("poststop", ""))
        })?;
        let path = bundle.display().to_string();
        let said = host.call(&["run", "--detach", "--bundle", &path, &host.id("c")])?.failure()?;
        assert!(said.contains("because") && said.contains("exit status"), "{said}");
        assert_eq!(log.text(), "poststart\npoststop\n");
        assert_eq!(host.status("c")?, "gone");
        if Runtime::under_test() == Runtime::Kata {
            host.create("c", &bundle)?;
            let said = host.call(&["start", &host.id("c")])?.failure()?;
            assert!(said.contains("error running poststart hook #0"), "{said}");
            assert_eq!(host.status("c")?, "stopped");
            host.succeed(&["delete", &host.id("c")])?;
        }
        Ok(())
    })
}

/// By then `start` has done its part.
#[test]
fn failed_one_in_the_container_ends_it_with_a_word() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo because; exit 3"] }]);
        let bundle = host.bundle("c", IDLE, |spec| spec.set("/hooks/startContainer", hook))?;
        let path = bundle.display().to_string();
        let output = host.call(&["run", "--bundle", &path, &host.id("c")])?;
        assert_eq!(output.code, 1);
        let said = output.failure()?;
        assert!(said.contains("hook #0") && said.contains("because"), "{said}");
        host.create("c", &bundle)?;
        host.succeed(&["start", &host.id("c")])?;
        CommandLine::until(|| Ok(host.status("c")? == "stopped"))?;
        host.succeed(&["delete", &host.id("c")]).map(drop)
    })
}

/// The caller of `run` has most signals blocked, to pass them on.
#[test]
fn each_runs_in_the_bundle_with_no_signal_blocked() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let log = Log::of(host);
        let tells = "pwd >> $log; grep SigBlk /proc/self/status | tr -d ' \\t0' >> $log";
        let bundle = host.bundle("c", "true", |spec| {
            spec.set("/hooks/prestart", log.hook("prestart", tells))
                .set("/hooks/poststart", log.hook("poststart", tells))
                .set("/hooks/poststop", log.hook("poststop", tells))
        })?;
        let path = bundle.canonicalize()?.display().to_string();
        host.succeed(&["run", "--bundle", &path, &host.id("c")])?;
        let each = ["prestart", "poststart", "poststop"];
        let expected: String =
            each.iter().map(|name| format!("{name}\n{path}\nSigBlk:\n")).collect();
        assert_eq!(log.text(), expected);
        Ok(())
    })
}

#[test]
fn what_is_refused_is_refused_before_any_has_run() -> Result<()> {
    if !only_a_vm("what it refuses") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let log = Log::of(host);
        let inner = json!([{ "path": "/bin/true" }]);
        let device = json!({ "path": "/dev/sda", "type": "c", "major": 1, "minor": 3 });
        let network = |path: &str| json!([{ "type": "network", "path": path }]);
        let other = host.bundle("other", IDLE, |spec| spec)?;
        host.create("other", &other)?;
        let hosts = format!("/proc/{}/ns/net", std::process::id());
        let others = format!("/proc/{}/ns/net", host.pid("other")?);
        let refusals = [
            ("/linux/namespaces", json!([{ "type": "pid" }]), "the host's network cannot be"),
            ("/linux/namespaces", network(&hosts), "is the host's own"),
            ("/linux/namespaces", network(&others), "give each its own"),
            ("/linux/devices", json!([device]), "the device /dev/sda of the host"),
            ("/hooks/createContainer", inner, "the createContainer hook /bin/true cannot be run"),
        ];
        for (place, value, words) in refusals {
            let bundle = host.bundle("c", "true", |spec| {
                spec.set("/hooks/prestart", log.hook("prestart", ""))
                    .set("/hooks/createRuntime", log.hook("createRuntime", ""))
                    .set("/hooks/poststop", log.hook("poststop", ""))
                    .set(place, value)
            })?;
            let args = ["create", "--bundle", &bundle.display().to_string(), &host.id("c")];
            let said = host.call(&args)?.failure()?;
            assert!(said.contains(words), "{said}");
            assert_eq!(log.text(), "", "{words}");
            assert_eq!(host.status("c")?, "gone");
        }
        host.succeed(&["delete", "--force", &host.id("other")]).map(drop)
    })
}
