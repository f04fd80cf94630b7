//! `update`: sets a container's limits anew.

use std::fs;
use std::io::Read;

use anyhow::{Context, Result, bail};
use kata_shim_api::protobuf::MessageField;
use kata_shim_api::{Any, api};
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
};

use super::Host;
use crate::cli::UpdateArgs;
use crate::registry::{Status, UNKNOWN};
use crate::sandbox::{Sandbox, plain};
use crate::size;

/// More than any container's limits need.
const LARGEST: u64 = 1 << 20;

pub(super) fn run(host: &Host, args: &UpdateArgs) -> Result<()> {
    let resources = resources(host, args)?;
    let _locked = host.registry.lock(&args.id)?.context(UNKNOWN)?;
    let container = host.registry.load(&args.id)?;
    if container.status() == Status::Stopped {
        bail!("container not running");
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    let resources = Any { value: serde_json::to_vec(&resources)?, ..Any::default() };
    let request = api::UpdateTaskRequest {
        id: args.id.clone(),
        resources: MessageField::some(resources),
        ..Default::default()
    };
    sandbox.call::<api::Empty>("Update", &request).map_err(plain).map(drop)
}

fn resources(host: &Host, args: &UpdateArgs) -> Result<LinuxResources> {
    let schemas =
        [("--l3-cache-schema", &args.l3_cache_schema), ("--mem-bw-schema", &args.mem_bw_schema)];
    if let Some((flag, _)) = schemas.iter().find(|(_, schema)| schema.is_some()) {
        bail!(
            "cache and memory bandwidth of the host's processors are not divided among VMs; run without {flag}"
        );
    }
    let Some(path) = &args.resources else {
        warn_of_kernel_memory(host, args)?;
        return from_flags(args);
    };
    let mut text = Vec::new();
    let shown = path.display();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(LARGEST).read_to_end(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut text))
    }
    .with_context(|| format!("cannot read the resources from {shown}"))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("cannot understand the resources from {shown}"))
}

fn bytes(flag: &str, text: Option<&str>) -> Result<Option<i64>> {
    text.map(size::parse).transpose().with_context(|| format!("invalid value for {flag}"))
}

/// In runc's words.
fn warn_of_kernel_memory(host: &Host, args: &UpdateArgs) -> Result<()> {
    let all =
        [("kernel-memory", &args.kernel_memory), ("kernel-memory-tcp", &args.kernel_memory_tcp)];
    let mut is_set = false;
    for (flag, text) in all {
        is_set |= bytes(flag, text.as_deref())?.is_some_and(|bytes| bytes != 0);
    }
    if is_set {
        host.report.warning("Kernel memory settings are ignored and will be removed");
    }
    Ok(())
}

fn from_flags(args: &UpdateArgs) -> Result<LinuxResources> {
    let mut cpu = LinuxCpuBuilder::default().build()?;
    cpu.set_period(args.cpu_period)
        .set_quota(args.cpu_quota)
        .set_shares(args.cpu_share)
        .set_burst(args.cpu_burst)
        .set_idle(args.cpu_idle)
        .set_realtime_period(args.cpu_rt_period)
        .set_realtime_runtime(args.cpu_rt_runtime)
        .set_cpus(args.cpuset_cpus.clone())
        .set_mems(args.cpuset_mems.clone());
    let mut memory = LinuxMemoryBuilder::default().build()?;
    memory
        .set_limit(bytes("memory", args.memory.as_deref())?)
        .set_reservation(bytes("memory-reservation", args.memory_reservation.as_deref())?)
        .set_swap(bytes("memory-swap", args.memory_swap.as_deref())?);
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu));
    resources.set_memory(Some(memory));
    if let Some(limit) = args.pids_limit {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(limit).build()?));
    }
    if let Some(weight) = args.blkio_weight {
        resources.set_block_io(Some(LinuxBlockIoBuilder::default().weight(weight).build()?));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::{Cli, Command};

    fn told(flags: &str) -> Value {
        let words = format!("kata-runtime update {flags} c");
        let Command::Update(args) = Cli::try_parse_from(words.split_whitespace()).unwrap().command
        else {
            panic!("{words} is another command")
        };
        serde_json::to_value(from_flags(&args).unwrap()).unwrap()
    }

    #[test]
    fn each_flag_sets_what_the_specification_calls_so_and_nothing_else() {
        let none = json!({ "cpu": {}, "memory": {} });
        assert_eq!(told(""), none);
        for (flag, pointer, value) in [
            ("--cpu-period 50000", "/cpu/period", json!(50000)),
            ("--cpu-quota -1", "/cpu/quota", json!(-1)),
            ("--cpu-share 5", "/cpu/shares", json!(5)),
            ("--cpu-burst 6", "/cpu/burst", json!(6)),
            ("--cpu-idle 1", "/cpu/idle", json!(1)),
            ("--cpu-rt-period 7", "/cpu/realtimePeriod", json!(7)),
            ("--cpu-rt-runtime 8", "/cpu/realtimeRuntime", json!(8)),
            ("--cpuset-cpus 0-1", "/cpu/cpus", json!("0-1")),
            ("--cpuset-mems 0", "/cpu/mems", json!("0")),
            ("--memory 64m", "/memory/limit", json!(64 << 20)),
            ("--memory-reservation 1k", "/memory/reservation", json!(1024)),
            ("--memory-swap -1", "/memory/swap", json!(-1)),
            ("--pids-limit 9", "/pids/limit", json!(9)),
            ("--blkio-weight 10", "/blockIO/weight", json!(10)),
        ] {
            let mut all = told(flag);
            assert_eq!(all.pointer(pointer), Some(&value), "{flag}: {all}");
            let (group, name) = pointer[1..].split_once('/').unwrap();
            all[group].as_object_mut().unwrap().remove(name);
            let mut expected = none.clone();
            expected[group] = json!({});
            assert_eq!(all, expected, "{flag}");
        }
    }
}
