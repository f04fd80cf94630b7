//! `[agent.kata]`.

use std::time::Duration;

use crate::off::{OffKey, any_number, either, number, off, text};
use crate::section::{at_least, section};
use crate::setting::{LogLevel, choice};

section! {
    /// The agent in the guest, and how the host talks to it.
    pub struct Agent = "agent.kata", off OFF, off_tables &[("mem_agent", MEM_AGENT)], prefix _prefix {
        /// Let the agent log what helps to find a defect.
        enable_debug: bool = false;
        /// How much the agent logs: "trace", "debug", "info", "warn" or "error". enable_debug makes
        /// it at least "debug".
        log_level: LogLevel = LogLevel::Info;
        /// Serve a shell of the guest on the debug console port, if its image has one;
        /// "kata-runtime exec SANDBOX" opens it. Whoever reaches that port owns the guest.
        debug_console_enabled: bool = false;
        /// Milliseconds between two tries to connect to the agent, where the channel needs tries
        /// (vsock).
        dial_timeout_ms: u32 = 10, check at_least(1);
        /// Milliseconds that the guest's kernel may take from the start of the VM to the agent, and
        /// the agent from there to its first answer; less than 10000 counts as 10000.
        /// (`dial_timeout`, in seconds, is the Go runtime's name of this key.)
        reconnect_timeout_ms: u32 = 60_000;
        /// Seconds that a request to the agent may take. (The Go runtime keeps this key in the
        /// section runtime.)
        create_container_timeout: u32 = 30, check at_least(1);
        /// Milliseconds that the agent may take to answer whether it is there, which it is asked
        /// every 30 seconds (every so many milliseconds, if that is less). A sandbox whose guest
        /// leaves three such questions in a row without an answer is ended. 0 never asks.
        health_check_request_timeout_ms: u32 = 90_000;
        /// Kernel modules that the agent loads at start, each with its parameters: "e1000e EEE=1".
        kernel_modules: Vec<String> = Vec::new();
        /// The size in bytes of the pipes that carry a container's stdio inside the guest; 0 leaves
        /// the kernel's default.
        container_pipe_size: u32 = 0;
    }
}

impl Agent {
    /// How much the agent logs, with `enable_debug` taken into account.
    #[must_use]
    pub fn effective_log_level(&self) -> LogLevel {
        self.log_level.with_debug(self.enable_debug)
    }

    /// The time between two tries to connect.
    #[must_use]
    pub fn dial_timeout(&self) -> Duration {
        Duration::from_millis(self.dial_timeout_ms.into())
    }

    /// How long the guest's kernel may take to the agent, and the agent to its first answer; at
    /// least ten seconds.
    #[must_use]
    pub fn connect_deadline(&self) -> Duration {
        Duration::from_millis(self.reconnect_timeout_ms.max(10_000).into())
    }

    /// How long the agent may take to answer whether it is there; `None` if it is never asked.
    #[must_use]
    pub fn health_check_timeout(&self) -> Option<Duration> {
        let timeout = self.health_check_request_timeout_ms;
        (timeout > 0).then(|| Duration::from_millis(timeout.into()))
    }

    /// How long a request may take.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.create_container_timeout.into())
    }
}

choice! {
    /// Which agent runs in the guest.
    pub enum AgentName {
        /// Kata's own.
        Kata = "kata",
    }
}

const OFF: &[OffKey] = &[
    off("enable_tracing"),
    off("visible_cdi_devices"),
    any_number("cdh_api_timeout_ms"),
    any_number("cdh_api_timeout"),
    number("server_port", &[1024]),
    number("log_port", &[1025]),
    any_number("passfd_listener_port"),
    any_number("launch_process_timeout"),
    text("policy", &[""]),
];

const MEM_AGENT: &[OffKey] = &[
    off("mem_agent_enable"),
    either("memcg_disable"),
    off("memcg_swap"),
    any_number("memcg_swappiness_max"),
    any_number("memcg_period_secs"),
    any_number("memcg_period_psi_percent_limit"),
    any_number("memcg_eviction_psi_percent_limit"),
    any_number("memcg_eviction_run_aging_count_min"),
    either("compact_disable"),
    any_number("compact_period_secs"),
    any_number("compact_period_psi_percent_limit"),
    any_number("compact_psi_percent_limit"),
    any_number("compact_sec_max"),
    any_number("compact_order"),
    any_number("compact_threshold"),
    any_number("compact_force_times"),
];
