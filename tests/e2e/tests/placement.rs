//! Containers that are kept to some of the host's processors and memory nodes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use kata_e2e::{CommandLine, IDLE, Part, Runtime, only_a_vm};
use serde_json::json;

/// Where each thread of a process may run, as the kernel lists it.
fn may_run_on(pid: u32) -> Result<Vec<String>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    // A thread may end while they are looked at.
    let statuses = threads.flatten().flat_map(|one| fs::read_to_string(one.path().join("status")));
    let of_each = statuses.map(|status| {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Ok(list.context("a thread without a list of processors")?.trim().to_owned())
    });
    of_each.collect()
}

/// The first processor that there is here, and the last one, which may be the same.
fn two_processors() -> Result<[String; 2]> {
    let lists = may_run_on(std::process::id())?;
    let list = lists.first().context("no thread")?;
    let end = |place: Option<&str>| place.unwrap_or(list).to_owned();
    let numbers = |c: char| c == ',' || c == '-';
    Ok([end(list.split(numbers).next()), end(list.rsplit(numbers).next())])
}

/// Whether the process's cgroup, of whichever version, or one around it names the processor. On a
/// machine with one processor that alone tells a process that is kept to it.
fn is_named_by_cgroup(pid: u32, processor: &str) -> Result<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let hierarchy = match controllers {
            "" => "/sys/fs/cgroup",
            "cpuset" => "/sys/fs/cgroup/cpuset",
            _ => return None,
        };
        Some(PathBuf::from(format!("{hierarchy}{path}")))
    });
    let mut names = false;
    for group in groups {
        let files = group.ancestors().map(|dir| dir.join("cpuset.cpus"));
        let mut lists = files.filter_map(|file| fs::read_to_string(file).ok());
        names |= lists.any(|list| list.trim() == processor);
    }
    Ok(names)
}

/// What stands for the container, and its VM, where it has one.
fn runs_on_nothing_but(host: &CommandLine, processor: &str) -> Result<()> {
    let mut pids = vec![host.pid("c")?];
    if Runtime::under_test() == Runtime::Kata {
        pids.push(host.await_part(Part::Vmm)?.pid);
    }
    for &pid in &pids {
        let lists = may_run_on(pid)?;
        let all = !lists.is_empty() && lists.iter().all(|list| list == processor);
        ensure!(all, "{pid}: {lists:?}, not {processor}");
    }
    let is_named = pids.last().map(|pid| is_named_by_cgroup(*pid, processor)).transpose()?;
    ensure!(is_named == Some(true), "{pids:?}: no cgroup names {processor}");
    Ok(())
}

#[test]
fn container_is_where_its_processors_are() -> Result<()> {
    let [first, last] = two_processors()?;
    CommandLine::scenario(Runtime::under_test(), |host| {
        let id = host.id("c");
        let mut named = json!({ "cpus": last, "mems": "0" });
        if first == last {
            named = json!({ "mems": "0" });
        }
        let bundle = host.bundle("c", IDLE, |spec| spec.set("/linux/resources/cpu", named))?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &id])?;
        if first == last {
            // What is named later is to be seen.
            ensure!(runs_on_nothing_but(host, &first).is_err(), "it is kept to one already");
        } else {
            runs_on_nothing_but(host, &last)?;
        }

        host.succeed(&["update", "--cpuset-cpus", &first, &id])?;
        runs_on_nothing_but(host, &first)?;
        // Another limit does not bring it back.
        host.succeed(&["update", "--pids-limit", "50", &id])?;
        runs_on_nothing_but(host, &first)?;

        for none in ["4000", "first", "99999"] {
            let refused = host.call(&["update", "--cpuset-cpus", none, &id])?;
            ensure!(refused.code != 0, "{refused}");
            runs_on_nothing_but(host, &first)?;
        }
        host.succeed(&["delete", "--force", &id]).map(drop)
    })
}

#[test]
fn what_the_host_has_not_is_refused_with_what_it_has() -> Result<()> {
    if !only_a_vm("a sentence about processors") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let refused = [
            (
                json!({ "cpus": "4000" }),
                "cannot run on the processors 4000 of the host; its cgroup has ",
            ),
            (
                json!({ "mems": "0,63" }),
                "cannot run on the memory nodes 0,63 of the host; its cgroup has 0",
            ),
            (
                json!({ "cpus": "0-x" }),
                "the resources' `cpu.cpus` is wrong: `0-x` is no list like `0-3,8`",
            ),
        ];
        for (named, why) in refused {
            let bundle = host.bundle("c", IDLE, |spec| spec.set("/linux/resources/cpu", named))?;
            let bundle = bundle.display().to_string();
            let created = host.call(&["create", "--bundle", &bundle, &host.id("c")])?;
            ensure!(created.code != 0 && created.error_text().contains(why), "{created}");
        }
        Ok(())
    })
}
