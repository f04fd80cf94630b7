//! What the members of a pod have of the host's files, each other's and their own from before.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use kata_e2e::{CommandLine, Image, Part, Process, Runtime, Spec, only_a_vm};
use serde_json::json;

fn shell(host: &CommandLine, name: &str, script: &str) -> Result<String> {
    host.succeed(&["exec", &host.id(name), "sh", "-c", script])
}

fn delete(host: &CommandLine, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| host.succeed(&["delete", "--force", &host.id(name)]).map(drop))
}

/// What serves the pod's files: the VMM itself, where it has no program for that.
fn file_server(host: &CommandLine) -> Result<Process> {
    let mut all = host.processes()?;
    let found = all.iter().position(|process| process.is(Part::FileServer));
    let found = found.or_else(|| all.iter().position(|process| process.is(Part::Vmm)));
    ensure!(found.is_some(), "nothing serves its files");
    Ok(all.swap_remove(found.unwrap_or_default()))
}

/// As an engine restarts a member: at once, by the same id, with a root file system that is mounted
/// anew. Whoever served the first one lets go of it, so that its file system can end.
#[test]
fn member_that_is_made_again_at_once_has_its_new_root_and_the_old_one_is_let_go() -> Result<()> {
    if !only_a_vm("a pod that is one VM") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let root = |name: &str| -> Result<PathBuf> {
            let root = host.file(name);
            Image::unpack(&root)?;
            fs::write(root.join("which"), name)?;
            Ok(root)
        };
        let roots = [root("first")?, root("second")?];
        host.run_pod()?;
        let server = file_server(host)?;
        let before = server.lost_mounts()?;
        for round in 0..4 {
            let root = &roots[round % 2];
            host.run_member("member", |spec| spec.set("/root/path", json!(root)))?;
            let which = shell(host, "member", "cat /which")?;
            assert!(root.ends_with(&which), "in round {round} it has the {which} root");
            delete(host, &["member"])?;
        }
        CommandLine::until(|| Ok(server.lost_mounts()?.is_subset(&before)))?;
        delete(host, &["pod"])
    })
}

#[test]
fn directory_that_one_member_only_reads_and_another_writes_is_as_each_of_them_has_it() -> Result<()>
{
    if !only_a_vm("a pod that is one VM") {
        return Ok(());
    }
    CommandLine::scenario(Runtime::Kata, |host| {
        let data = host.file("data");
        fs::create_dir(&data)?;
        let with_data = |way: &'static str| {
            let mount = json!({
                "destination": "/data", "type": "bind", "source": data, "options": ["rbind", way],
            });
            move |spec: Spec| spec.push("/mounts", mount)
        };
        host.run_pod()?;
        // Each of them is there first once.
        for (first, second) in [("reader", "writer"), ("writer", "reader")] {
            for name in [first, second] {
                let way = if name == "reader" { "ro" } else { "rw" };
                host.run_member(name, with_data(way))?;
            }
            let written = format!("by the {second}");
            shell(host, "writer", &format!("echo {written} > /data/file"))?;
            assert_eq!(shell(host, "reader", "cat /data/file")?, format!("{written}\n"));
            let refused = "echo x 2>/dev/null > /data/other || echo refused";
            assert_eq!(shell(host, "reader", refused)?, "refused\n");
            delete(host, &["reader", "writer"])?;
        }
        ensure!(!data.join("other").exists());
        delete(host, &["pod"])
    })
}
