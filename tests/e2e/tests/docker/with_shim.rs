//! The same with a shim that Docker's containerd starts, and what only that has.

use std::fs;

use anyhow::{Result, ensure};
use kata_e2e::{Part, docker_with_shim, only_a_vm};

use super::{
    has_networks, holds_limits, is_in_two_networks, knows_names, lives, looks_after_containers,
    loses_the_daemon, outlives_the_daemon, refuses_the_hosts_network, runs, sees_the_end_of,
    starts_again,
};

#[test]
fn run_is_like_any_other_run() -> Result<()> {
    docker_with_shim(None, runs)
}

#[test]
fn container_is_seen_entered_paused_stopped_and_started_again() -> Result<()> {
    docker_with_shim(None, lives)
}

#[test]
fn networks_publish_ports_and_join_containers() -> Result<()> {
    docker_with_shim(None, has_networks)
}

#[test]
fn container_is_in_two_networks() -> Result<()> {
    docker_with_shim(None, is_in_two_networks)
}

#[test]
fn containers_find_each_other_and_the_world_by_name() -> Result<()> {
    docker_with_shim(None, knows_names)
}

#[test]
fn limits_hold_in_the_guest() -> Result<()> {
    if !only_a_vm("a cgroup of the second version whatever the host has") {
        return Ok(());
    }
    docker_with_shim(None, holds_limits)
}

#[test]
fn health_is_checked_and_failures_are_started_again() -> Result<()> {
    docker_with_shim(None, looks_after_containers)
}

#[test]
fn whatever_ends_is_started_again_until_it_is_stopped() -> Result<()> {
    docker_with_shim(None, starts_again)
}

#[test]
fn hosts_network_is_refused_in_one_sentence() -> Result<()> {
    if !only_a_vm("the refusal of the host's network") {
        return Ok(());
    }
    docker_with_shim(None, refuses_the_hosts_network)
}

#[test]
fn killed_daemon_leaves_containers_that_can_be_removed() -> Result<()> {
    docker_with_shim(None, outlives_the_daemon)
}

#[test]
fn daemon_killed_in_the_middle_of_something_leaves_what_can_be_removed() -> Result<()> {
    if !only_a_vm("a container that is being made") {
        return Ok(());
    }
    docker_with_shim(None, |docker| loses_the_daemon(docker, Part::Vmm))
}

#[test]
fn whichever_part_is_killed_docker_sees_the_end() -> Result<()> {
    if !only_a_vm("parts that can be killed") {
        return Ok(());
    }
    docker_with_shim(None, |docker| sees_the_end_of(docker, &[Part::Shim, Part::Vmm]))
}

#[test]
fn configuration_is_the_one_that_the_daemon_names() -> Result<()> {
    if !only_a_vm("a configuration") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\nkernel_params = \"named.by=daemon\"\n")?;
    docker_with_shim(Some(&file), |docker| {
        let said = docker.run("--rm --network none", "cat /proc/cmdline").output()?.success()?;
        ensure!(said.contains("named.by=daemon"), "{said}");
        // One that the daemon knows nothing about is found on its containerd's PATH.
        let flags = "--rm --network none --runtime io.containerd.kata.v2";
        let said = docker.run(flags, "cat /proc/cmdline").output()?.success()?;
        ensure!(!said.contains("named.by=daemon") && said.contains("agent."), "{said}");
        Ok(())
    })
}
