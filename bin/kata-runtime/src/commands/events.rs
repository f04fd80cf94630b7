//! `events`: what a container uses, as JSON objects, one a line.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kata_shim_api::metrics::{self, BlockFigure, HugePageFigures};
use kata_shim_api::{api, metadata, stand_in};
use serde_json::{Value, json};

use super::{Host, print};
use crate::cli::EventsArgs;
use crate::duration;
use crate::registry::Status;
use crate::sandbox::{Sandbox, has_ended, plain};

pub(super) fn run(host: &Host, args: &EventsArgs) -> Result<()> {
    let interval = duration::parse(&args.interval)?;
    let container = host.registry.load(&args.id)?;
    if container.status() == Status::Stopped {
        bail!("container with id {} is not running", args.id);
    }
    let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
    if args.stats {
        return tell_stats(&sandbox, &args.id).map(drop);
    }
    let news = watch(Sandbox::open(&host.registry, &container.sandbox)?, &args.id);
    while tell_stats(&sandbox, &args.id)? {
        if !tell_news_for(interval, &news, &args.id)? {
            return Ok(());
        }
    }
    news.iter().try_for_each(|OutOfMemory| tell_out_of_memory(&args.id))
}

/// Prints what the container uses now. `false` when it has ended.
fn tell_stats(sandbox: &Sandbox, id: &str) -> Result<bool> {
    let request = api::StatsRequest { id: id.to_owned(), ..Default::default() };
    let answer: api::StatsResponse = match sandbox.call("Stats", &request) {
        Err(error) if has_ended(&error) => return Ok(false),
        answer => answer.map_err(plain)?,
    };
    let data = data(&answer)?;
    print(&format!("{}\n", json!({ "type": "stats", "id": id, "data": data })))?;
    Ok(true)
}

/// Prints for as long as `interval` what is news of the container. `false` when it has ended.
fn tell_news_for(interval: Duration, news: &Receiver<OutOfMemory>, id: &str) -> Result<bool> {
    let start = Instant::now();
    loop {
        match news.recv_timeout(interval.saturating_sub(start.elapsed())) {
            Ok(OutOfMemory) => tell_out_of_memory(id)?,
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}

/// As runc does.
fn tell_out_of_memory(id: &str) -> Result<()> {
    print(&format!("{}\n", json!({ "type": "oom", "id": id })))
}

/// The guest's kernel has killed a process of the container for want of memory.
#[derive(Debug)]
struct OutOfMemory;

/// Watches the container until its end, which is the end of the news.
fn watch(sandbox: Sandbox, id: &str) -> Receiver<OutOfMemory> {
    let (told, news) = mpsc::channel();
    let request = api::WaitRequest { id: id.to_owned(), ..Default::default() };
    thread::spawn(move || {
        let mut known = 0;
        loop {
            let times = known.to_string();
            let along = [(metadata::WATCHER, times.as_str())];
            // A sandbox that is lost says nothing more.
            let Ok(answer) = sandbox.call_along("Wait", &request, &along) else { return };
            let times = stand_in::times_out_of_memory(&answer);
            // Nobody listens any more when printing has failed.
            if times <= known || told.send(OutOfMemory).is_err() {
                return;
            }
            known = times;
        }
    });
    news
}

/// The numbers in runc's shape.
fn data(answer: &api::StatsResponse) -> Result<Value> {
    let figures = metrics::figures(&answer.stats).context("the sandbox's figures are malformed")?;
    let usage = |usage: u64, limit: u64, max: u64, failures: u64| json!({ "usage": usage, "limit": limit, "max": max, "failcnt": failures });
    Ok(json!({
        "cpu": {
            "usage": {
                "total": figures.cpu_total_ns,
                "percpu": figures.cpu_each_ns,
                "kernel": figures.cpu_kernel_ns,
                "user": figures.cpu_user_ns,
            },
            "throttling": {
                "periods": figures.throttled_of_periods,
                "throttledPeriods": figures.throttled_periods,
                "throttledTime": figures.throttled_ns,
            },
        },
        "memory": {
            "cache": figures.memory_cache,
            "usage": usage(figures.memory_usage, figures.memory_limit, figures.memory_max, figures.memory_failures),
            "swap": usage(figures.swap_usage, figures.swap_limit, 0, 0),
            "kernel": usage(0, 0, 0, 0),
            "kernelTCP": usage(0, 0, 0, 0),
            "raw": {},
        },
        "pids": { "current": figures.pids, "limit": figures.pids_limit },
        "blkio": {
            "ioServiceBytesRecursive": block(&figures.block_bytes),
            "ioServicedRecursive": block(&figures.block_operations),
        },
        "hugetlb": huge_pages(&figures.huge_pages),
        "intel_rdt": {},
    }))
}

fn block(figures: &[BlockFigure]) -> Value {
    let entry = |one: &BlockFigure| json!({ "major": one.major, "minor": one.minor, "op": one.operation, "value": one.value });
    figures.iter().map(entry).collect()
}

fn huge_pages(figures: &[HugePageFigures]) -> Value {
    let entry = |one: &HugePageFigures| {
        let usage = json!({ "usage": one.usage, "max": one.max, "failcnt": one.failures });
        (one.size.clone(), usage)
    };
    Value::Object(figures.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_devices_are_in_runcs_shape() {
        let read = BlockFigure { major: 8, minor: 1, operation: "Read".to_owned(), value: 512 };
        assert_eq!(
            block(&[read]).to_string(),
            r#"[{"major":8,"minor":1,"op":"Read","value":512}]"#
        );
        let pages = HugePageFigures { size: "2MB".to_owned(), usage: 7, max: 9, failures: 1 };
        assert_eq!(huge_pages(&[pages]), json!({ "2MB": { "usage": 7, "max": 9, "failcnt": 1 } }));
    }
}
