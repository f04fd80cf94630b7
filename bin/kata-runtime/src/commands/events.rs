//! `events`: what a container uses, as JSON objects, one a line.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kata_shim_api::{api, metrics};
use serde_json::{Value, json};

use super::{Host, print};
use crate::cli::EventsArgs;
use crate::registry::Status;
use crate::sandbox::{Sandbox, has_ended, plain};

pub(super) fn run(host: &Host, args: &EventsArgs) -> Result<()> {
    let interval = duration(&args.interval)?;
    loop {
        let container = host.registry.load(&args.id)?;
        if container.status() == Status::Stopped {
            bail!("container with id {} is not running", args.id);
        }
        let sandbox = Sandbox::open(&host.registry, &container.sandbox)?;
        let request = api::StatsRequest { id: args.id.clone(), ..Default::default() };
        let answer: api::StatsResponse = match sandbox.call("Stats", &request) {
            Err(error) if has_ended(&error) && !args.stats => return Ok(()),
            answer => answer.map_err(plain)?,
        };
        let data = data(&answer)?;
        print(&format!("{}\n", json!({ "type": "stats", "id": args.id, "data": data })))?;
        if args.stats {
            return Ok(());
        }
        thread::sleep(interval);
    }
}

/// A duration as Go writes it, as far as anybody writes one here: a number with `ms`, `s`, `m` or
/// `h`.
fn duration(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("duration interval must be a number with ms, s, m or h: {text:?}");
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => bail!(wrong()),
    };
    let number: f64 = number.parse().ok().with_context(wrong)?;
    let duration = Duration::try_from_secs_f64(number * factor).ok().with_context(wrong)?;
    if duration.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    Ok(duration)
}

/// The numbers in runc's shape.
fn data(answer: &api::StatsResponse) -> Result<Value> {
    let figures = metrics::figures(&answer.stats).context("the sandbox's figures are malformed")?;
    let usage = |usage: u64, limit: u64, max: u64, failures: u64| json!({ "usage": usage, "limit": limit, "max": max, "failcnt": failures });
    Ok(json!({
        "cpu": {
            "usage": {
                "total": figures.cpu_total_ns,
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
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("1.5m").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        for wrong in ["", "5", "s", "-1s", "0s", "1e400s", "5 s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
