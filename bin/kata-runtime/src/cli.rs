//! The command line's definitions: runc's, since that is what callers speak, and a few for people.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Where containers are known, unless `--root` says otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/run/kata-containers";

/// Runs OCI containers in virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "kata-runtime",
    version = crate::commands::version_text(),
    disable_version_flag = true,
    // As in Go: callers add flags to those that are configured already, and the last one counts.
    args_override_self = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print the version.
    #[arg(long, short = 'v', action = ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What holds for every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The directory that knows the containers.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub(crate) root: PathBuf,
    /// The file to write errors to, beside standard error.
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// How errors are written to the file.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// The configuration file, instead of those in the usual places.
    #[arg(long, visible_alias = "kata-config", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Have kata-proxy, which create and run start, log in detail, whatever the configuration says.
    #[arg(long)]
    pub(crate) debug: bool,
    /// The cgroup's path of a spec is systemd's (`slice:prefix:name`). No unit of systemd's is
    /// made: the cgroup is, where systemd would have it.
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for callers of runc (`true`, `false`, `auto`); virtual machines need root.
    #[arg(long, value_name = "WHETHER", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "auto")]
    pub(crate) rootless: String,
    /// Accepted for callers of crun.
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) cgroup_manager: Option<String>,
    /// Accepted for callers of runc.
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) criu: Option<PathBuf>,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines of `key=value`.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container from a bundle; `start` runs it.
    Create(CreateArgs),
    /// Run the process of a container that was created.
    Start(IdArgs),
    /// Print a container's state as JSON.
    State(IdArgs),
    /// Send a signal to a container's first process.
    Kill(KillArgs),
    /// Delete a container that has ended.
    Delete(DeleteArgs),
    /// Create, start, wait, and delete.
    Run(RunArgs),
    /// Run one more process in a container; without a command, a shell in the guest of a sandbox.
    ///
    /// With a command, or with --process, the process is added to a container of this program's.
    /// Without either, CONTAINER is any sandbox on this host, also one of containerd's, and its
    /// debug console is opened: a shell of the guest itself, outside of all containers. That takes
    /// `debug_console_enabled = true` in the section agent.kata of the configuration and a guest
    /// image with a shell.
    Exec(Box<ExecArgs>),
    /// List containers.
    List(ListArgs),
    /// List the host's processes that stand for a container's.
    Ps(PsArgs),
    /// Freeze a container.
    Pause(IdArgs),
    /// Thaw a container.
    Resume(IdArgs),
    /// Set a container's limits anew.
    Update(Box<UpdateArgs>),
    /// Print what a container uses.
    ///
    /// The figures are the guest's, of the container's cgroup there. A guest counts no processor
    /// time of each processor, no kernel memory apart, and no share of caches or memory bandwidth
    /// (`percpu`, `kernel`, `kernelTCP` and `intel_rdt` are empty or 0), and no memory.stat is
    /// shown (`raw`). That the container ran out of memory (`oom`) is told when it happens, at most
    /// once a second, and once of what was before.
    Events(EventsArgs),
    /// Write a config.json to start from.
    Spec(SpecArgs),
    /// Print what this runtime can do as JSON.
    Features,
    /// Not supported: a virtual machine cannot be checkpointed.
    #[command(disable_help_flag = true)]
    Checkpoint(RefusedArgs),
    /// Not supported: a virtual machine cannot be restored.
    #[command(disable_help_flag = true)]
    Restore(RefusedArgs),
    Timeline(crate::timeline::Timeline),
    /// Print what the guest of a sandbox says: its console and its agent's log.
    Logs(LogsArgs),
    /// Say whether this host can run containers, and what to do where it cannot.
    #[command(visible_alias = "kata-check")]
    Check(CheckArgs),
    /// The saved guest that sandboxes go on from where the configuration has `enable_template`.
    #[command(subcommand)]
    Factory(FactoryCommand),
    /// Print versions, files, settings and host, for a report of a defect.
    #[command(visible_alias = "kata-env")]
    Env(EnvArgs),
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

/// What `create` and `run` share.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The container's id, unique on this host.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// The directory with config.json; the current one if not given.
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// The socket that gets the terminal's master end.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// The file that gets the process id, without a newline.
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// The socket that gets a descriptor of the process.
    #[arg(long, value_name = "SOCKET", hide = true)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Accepted for callers of runc; the guest's root is pivoted in the guest.
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Accepted for callers of runc; the guest has keyrings of its own.
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Descriptors to pass to the container, which a virtual machine cannot.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// Return when the container runs.
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Keep the container when it has ended.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted for callers of runc; this runtime is no subreaper.
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// A number, or a name with or without `SIG`.
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(crate) signal: String,
    /// To all processes of the container.
    #[arg(long, short)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// Kill it first if it runs; one that is not there is fine.
    #[arg(long, short)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// The program and its arguments, unless `--process` is given.
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// The file with the process as JSON.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Return when the process runs.
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// The socket that gets the terminal's master end.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// The file that gets the process id, without a newline.
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// The socket that gets a descriptor of the process.
    #[arg(long, value_name = "SOCKET", hide = true)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// With a terminal.
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// As this user.
    #[arg(long, short, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// In this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// With this in the environment.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// With this capability.
    #[arg(long, short, value_name = "CAPABILITY")]
    pub(crate) cap: Vec<String>,
    /// With these groups besides.
    #[arg(long, short = 'g', value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Without ever gaining privileges.
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Accepted for callers of runc; a container that is frozen takes no process.
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Accepted for callers of runc; the guest has no AppArmor.
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Accepted for callers of runc; the guest has no SELinux.
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// Only `/`: the process is in its container's cgroup in the guest.
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Vec<String>,
    /// Descriptors to pass to the process, which a virtual machine cannot.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Accepted for callers of runc; this runtime is no subreaper.
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
}

impl ExecArgs {
    /// Whether there is a process to add.
    pub(crate) fn has_a_process(&self) -> bool {
        self.process.is_some() || !self.command.is_empty()
    }

    /// Whether nothing is said of a process, so that the guest's console is meant.
    pub(crate) fn names_only_a_sandbox(&self) -> bool {
        // All of them by name: a further one is not forgotten here.
        let Self {
            id: _,
            command,
            process,
            console_socket,
            pid_file,
            pidfd_socket,
            detach,
            tty,
            user,
            cwd,
            env,
            cap,
            additional_gids,
            no_new_privs,
            ignore_paused,
            apparmor,
            process_label,
            cgroup,
            preserve_fds,
            no_subreaper,
        } = self;
        let says_a_file = [process, console_socket, pid_file, pidfd_socket, cwd]
            .iter()
            .any(|file| file.is_some());
        let says_a_text = [user, apparmor, process_label].iter().any(|text| text.is_some());
        let says_several = [command, env, cap, cgroup].iter().any(|all| !all.is_empty());
        let says_that = *detach || *tty || *no_new_privs || *ignore_paused || *no_subreaper;
        let says_a_number = *preserve_fds > 0 || !additional_gids.is_empty();
        !(says_a_file || says_a_text || says_several || says_that || says_a_number)
    }
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// How it is printed.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ListFormat,
    /// Only the ids.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// How it is printed.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ListFormat,
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// Arguments for ps(1).
    #[arg(value_name = "PS ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) ps_args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// How often, like `5s`, `500ms` or `1m30s`.
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(crate) interval: String,
    /// Once, and no more.
    #[arg(long)]
    pub(crate) stats: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// The directory to write it to.
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Not supported: virtual machines need root.
    #[arg(long)]
    pub(crate) rootless: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Print it for programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// Let warnings count as failures.
    #[arg(long, short)]
    pub(crate) strict: bool,
    /// Accepted for callers of Kata's: nothing is ever asked of the network.
    #[arg(long, short, hide = true)]
    pub(crate) no_network_checks: bool,
    /// Accepted for callers of Kata's: everything is always told.
    #[arg(long, short, hide = true)]
    pub(crate) verbose: bool,
}

/// Who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogSource {
    /// The guest's kernel, and whoever else writes to its console.
    Console,
    /// The agent.
    Agent,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The sandbox's id, which is its first container's.
    #[arg(value_name = "SANDBOX")]
    pub(crate) id: String,
    /// Go on until the sandbox ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only this one; without it both, each line with its source.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) source: Option<LogSource>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum FactoryCommand {
    /// Boot a guest and save it, in place of one that was saved before.
    Init,
    /// Remove what was saved. Sandboxes that went on from it run on.
    Destroy,
    /// Print whether there is one.
    Status,
}

#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    /// Print JSON instead of TOML.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RefusedArgs {
    /// Whatever runc takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// The container's id.
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
    /// A file with the spec's resources as JSON, `-` for standard input; the other flags do not
    /// count then.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Microseconds of a period in which the quota counts.
    #[arg(long, value_name = "N")]
    pub(crate) cpu_period: Option<u64>,
    /// Microseconds of processor time in a period.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Weight against others.
    #[arg(long, value_name = "N")]
    pub(crate) cpu_share: Option<u64>,
    /// Microseconds that may be saved up for later periods. Not supported but for 0.
    #[arg(long, value_name = "N")]
    pub(crate) cpu_burst: Option<u64>,
    /// Whether to run only when nobody else does. Not supported but for 0.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cpu_idle: Option<i64>,
    /// Microseconds of a period for real-time processes. Not supported but for 0.
    #[arg(long, value_name = "N")]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Microseconds of such a period that they may run. Not supported but for 0.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// Processors of the host to run on, like `0-3,8`.
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes of the host to use.
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// The most memory, in bytes or like `64m`; -1 for as much as there is.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Memory that is left alone when it gets short.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// The most memory and swap together.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Ignored with a warning, as with runc: Linux has no such limit any more.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) kernel_memory: Option<String>,
    /// Ignored with a warning, as with runc: Linux has no such limit any more.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Not supported: a VM has no share of the processor's cache to itself.
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,
    /// Not supported: a VM has no share of the memory bandwidth to itself.
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
    /// The most processes.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Weight of the container's block I/O.
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(words: &[&str]) -> ExecArgs {
        let words = [&["kata-runtime", "exec"], words].concat();
        match Cli::try_parse_from(words).unwrap().command {
            Command::Exec(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    /// Docker adds `--systemd-cgroup` for its driver to whatever its runtimeArgs have, Podman what
    /// `--runtime-flag` has to its own flags.
    #[test]
    fn flag_that_is_given_twice_counts_the_second_time() {
        let words = "kata-runtime --systemd-cgroup --systemd-cgroup --log /m --root /q --root=/r --log /l \
            exec --user 1 -d --cwd /a --detach --user 2 -e A=1 --env B=2 c1 true --user 3";
        let Cli { global, command, .. } = Cli::try_parse_from(words.split_whitespace()).unwrap();
        assert!(global.systemd_cgroup);
        assert_eq!((global.root, global.log), ("/r".into(), Some("/l".into())));
        let Command::Exec(exec) = command else { panic!("{command:?}") };
        assert_eq!((exec.user.as_deref(), exec.detach), (Some("2"), true));
        assert_eq!(exec.env, ["A=1", "B=2"], "those of which there may be several all count");
        assert_eq!(exec.command, ["true", "--user", "3"]);
        Cli::try_parse_from(["kata-runtime", "state", "c1", "c2"]).unwrap_err();
    }

    #[test]
    fn version_is_told_by_runcs_letter() {
        let told = Cli::try_parse_from(["kata-runtime", "-v"]).unwrap_err();
        assert_eq!(told.kind(), clap::error::ErrorKind::DisplayVersion);
        assert!(told.to_string().starts_with("kata-runtime version "), "{told}");
    }

    #[test]
    fn only_a_bare_id_means_the_console_of_a_guest() {
        assert!(exec(&["s1"]).names_only_a_sandbox());
        for option in [
            "--user=1000",
            "-e=A=B",
            "--cwd=/",
            "--cap=CAP_KILL",
            "-g=5",
            "--no-new-privs",
            "--ignore-paused",
            "--tty",
            "--detach",
            "--pid-file=/f",
            "--pidfd-socket=/s",
            "--preserve-fds=1",
            "--cgroup=/c",
            "--apparmor=p",
        ] {
            let args = exec(&[option, "s1"]);
            assert!(!args.names_only_a_sandbox() && !args.has_a_process(), "{option}");
        }
        assert!(exec(&["s1", "true"]).has_a_process());
        assert!(exec(&["--process=/p", "s1"]).has_a_process());
    }
}
