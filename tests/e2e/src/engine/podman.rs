//! Podman's configuration for a fixture.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Engine, IMAGE};
use crate::runtime::{Installation, Runtime};

/// Writes containers.conf and storage.conf, which are read instead of the machine's.
pub(super) fn configure(engine: &Engine) -> Result<()> {
    let directory = engine.directory().display();
    let example = Installation::under_test().example("podman-containers.conf");
    let example = fs::read_to_string(&example)
        .with_context(|| format!("cannot read {}", example.display()))?;
    let runtime = match Runtime::under_test() {
        Runtime::Kata => "kata",
        Runtime::Runc => "runc",
    };
    let manager = engine.cgroups.manager();
    // The limits are such that runc can set them without CAP_SYS_RESOURCE, too.
    let containers = format!(
        r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[network]
network_backend = "netavark"
network_config_dir = "{directory}/networks"
[engine]
cgroup_manager = "{manager}"
events_logger = "file"
infra_image = "{IMAGE}:latest"
infra_command = ""
conmon_env_vars = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "KATA_CONF_FILE={directory}/configuration.toml"]
runtime = "{runtime}"
runtime_supports_json = ["crun", "runc", "kata"]
{example}
runc = ["/usr/sbin/runc", "/usr/bin/runc"]
"#
    );
    let storage = format!(
        "[storage]\ndriver = 'overlay'\ngraphroot = '{directory}/storage'\nrunroot = '{directory}/run'\n"
    );
    for (name, text) in [("containers.conf", containers), ("storage.conf", storage)] {
        fs::write(engine.file(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

pub(super) fn command(engine: &Engine) -> Command {
    let mut command = engine.network().command("podman");
    // Older conmons leave a file where Podman was started.
    command.current_dir(engine.directory());
    command.arg("--root").arg(engine.file("storage"));
    command.arg("--runroot").arg(engine.file("run"));
    command.arg("--tmpdir").arg(engine.file("tmp"));
    for (variable, name) in [
        ("CONTAINERS_CONF", "containers.conf"),
        ("CONTAINERS_STORAGE_CONF", "storage.conf"),
        ("KATA_CONF_FILE", "configuration.toml"),
    ] {
        command.env(variable, engine.file(name));
    }
    // Podman 5 has a word about them before anything that it says.
    command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
    command
}
