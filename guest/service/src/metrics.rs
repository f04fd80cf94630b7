//! GetMetrics: the agent and the guest in Prometheus's text format.

use std::fmt::Write as _;
use std::fs;

/// Everything, measured now. What the kernel does not tell is left out.
pub(crate) fn collect() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut metrics = Metrics::default();
    metrics.agent(&read("/proc/self/status"), &read("/proc/self/stat"));
    metrics.load(&read("/proc/loadavg"));
    metrics.memory(&read("/proc/meminfo"));
    metrics.cpu(&read("/proc/stat"));
    metrics.network(&read("/proc/net/dev"));
    metrics.text
}

/// Clock ticks per second in /proc, which Linux has fixed for user space (`USER_HZ`).
const TICKS: f64 = 100.0;

#[derive(Default)]
struct Metrics {
    text: String,
}

impl Metrics {
    fn gauge(&mut self, name: &str, labels: &str, value: f64) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    fn describe(&mut self, name: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn agent(&mut self, status: &str, stat: &str) {
        self.describe("kata_agent_process_memory_bytes", "Memory of the agent, by kind.");
        for (key, label) in [("VmRSS", "rss"), ("VmSize", "virtual"), ("VmHWM", "peak_rss")] {
            if let Some(kib) = keyed(status, key) {
                let labels = format!("{{item=\"{label}\"}}");
                self.gauge("kata_agent_process_memory_bytes", &labels, kib * 1024.0);
            }
        }
        self.describe("kata_agent_process_cpu_seconds_total", "Processor time of the agent.");
        // The command's name in brackets may hold spaces; after it, utime and stime are 12th and
        // 13th.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = after_name.split_ascii_whitespace().skip(11);
        let mut ticks = || fields.next().and_then(|field| field.parse::<f64>().ok());
        if let (Some(user), Some(system)) = (ticks(), ticks()) {
            self.gauge("kata_agent_process_cpu_seconds_total", "", (user + system) / TICKS);
        }
    }

    fn load(&mut self, loadavg: &str) {
        self.describe("kata_guest_load", "Load of the guest.");
        for (label, value) in ["load1", "load5", "load15"].iter().zip(loadavg.split(' ')) {
            if let Ok(value) = value.parse() {
                self.gauge("kata_guest_load", &format!("{{item=\"{label}\"}}"), value);
            }
        }
    }

    fn memory(&mut self, meminfo: &str) {
        self.describe("kata_guest_meminfo", "Memory of the guest in bytes.");
        for line in meminfo.lines() {
            let Some((key, _)) = line.split_once(':') else { continue };
            if let Some(kib) = keyed(meminfo, key) {
                let label = key.to_ascii_lowercase().replace(['(', ')'], "_");
                let label = label.trim_end_matches('_');
                self.gauge("kata_guest_meminfo", &format!("{{item=\"{label}\"}}"), kib * 1024.0);
            }
        }
    }

    fn cpu(&mut self, stat: &str) {
        const KINDS: [&str; 8] =
            ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
        self.describe("kata_guest_cpu_time", "Processor time of the guest in seconds.");
        for line in stat.lines().filter(|line| line.starts_with("cpu")) {
            let mut words = line.split_ascii_whitespace();
            let cpu = match words.next() {
                Some("cpu") => "total",
                Some(cpu) => cpu.trim_start_matches("cpu"),
                None => continue,
            };
            for (kind, ticks) in KINDS.iter().zip(words) {
                if let Ok(ticks) = ticks.parse::<f64>() {
                    let labels = format!("{{cpu=\"{cpu}\",item=\"{kind}\"}}");
                    self.gauge("kata_guest_cpu_time", &labels, ticks / TICKS);
                }
            }
        }
    }

    fn network(&mut self, dev: &str) {
        const COLUMNS: [(usize, &str); 8] = [
            (0, "recv_bytes"),
            (1, "recv_packets"),
            (2, "recv_errs"),
            (3, "recv_drop"),
            (8, "sent_bytes"),
            (9, "sent_packets"),
            (10, "sent_errs"),
            (11, "sent_drop"),
        ];
        self.describe("kata_guest_netdev_stat", "Traffic of the guest's interfaces.");
        for (interface, counters) in dev.lines().filter_map(|line| line.split_once(':')) {
            let counters: Vec<_> = counters.split_ascii_whitespace().collect();
            for (column, item) in COLUMNS {
                let value = counters.get(column).and_then(|value| value.parse().ok());
                let Some(value) = value else { continue };
                let labels = format!("{{interface=\"{}\",item=\"{item}\"}}", interface.trim());
                self.gauge("kata_guest_netdev_stat", &labels, value);
            }
        }
    }
}

/// The number after `key:`.
fn keyed(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix(':')?;
        value.split_ascii_whitespace().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collect_speaks_prometheus() {
        let text = collect();
        assert!(text.contains("kata_agent_process_memory_bytes{item=\"rss\"} "), "{text}");
        assert!(text.contains("kata_guest_cpu_time{cpu=\"total\",item=\"user\"} "), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
