//! The commands, a file each.

mod check;
mod console;
mod create;
mod delete;
mod env;
mod events;
mod exec;
mod factory;
mod features;
mod kill;
mod list;
mod logs;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::io::Write;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow};
use oci_spec::runtime::VERSION as SPEC_VERSION;

use crate::cli::{Cli, Command, Global};
use crate::registry::Registry;
use crate::report::Report;
use crate::{Failure, VERSION};

/// What every command works with.
pub(crate) struct Host {
    pub(crate) registry: Registry,
    pub(crate) report: Report,
    /// The configuration file that the command line names; empty for the usual ones.
    pub(crate) config: String,
    /// Cgroups are named as systemd names them.
    pub(crate) systemd_cgroup: bool,
    /// The owners of sandboxes that this command starts log in detail.
    pub(crate) debug: bool,
}

impl Host {
    fn new(global: &Global) -> Result<Self> {
        let config = match &global.config {
            Some(path) => std::path::absolute(path).context("cannot tell what --config means")?,
            None => std::path::PathBuf::new(),
        };
        Ok(Self {
            registry: Registry::new(&global.root)?,
            report: Report::new(global),
            config: config.display().to_string(),
            systemd_cgroup: global.systemd_cgroup,
            debug: global.debug,
        })
    }
}

/// Runs what the command line asks for, and returns the exit code.
pub(crate) fn run(cli: &Cli) -> Result<u8, Failure> {
    let host = Host::new(&cli.global)?;
    let done = match &cli.command {
        Command::Exec(args) => return exec::run(&host, args),
        Command::Run(args) => return run::run(&host, args).map_err(Failure::from),
        Command::Check(args) => return check::run(&host, args).map_err(Failure::from),
        Command::Env(args) => env::run(&host, args),
        Command::Factory(command) => factory::run(&host, *command),
        Command::Logs(args) => logs::run(&host, args),
        Command::Create(args) => create::run(&host, args),
        Command::Start(args) => start::run(&host, &args.id),
        Command::State(args) => state::run(&host, &args.id),
        Command::Kill(args) => kill::run(&host, args),
        Command::Delete(args) => delete::run(&host, &args.id, args.force),
        Command::List(args) => list::run(&host, args),
        Command::Ps(args) => ps::run(&host, args),
        Command::Pause(args) => pause::pause(&host, &args.id),
        Command::Resume(args) => pause::resume(&host, &args.id),
        Command::Update(args) => update::run(&host, args),
        Command::Events(args) => events::run(&host, args),
        Command::Spec(args) => spec::run(args),
        Command::Features => features::run(),
        Command::Checkpoint(_) => Err(anyhow!("containers in a VM cannot be checkpointed")),
        Command::Restore(_) => {
            Err(anyhow!("containers in a VM cannot be restored from a checkpoint"))
        }
        Command::Timeline(timeline) => timeline.run(),
        Command::Version => print(&format!("kata-runtime {}\n", version_text())),
    };
    done.map(|()| 0).map_err(Failure::from)
}

/// The version as runc prints it: callers look for a line with `version`, and for one that begins
/// with `spec:`.
pub(crate) fn version_text() -> &'static str {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| format!("version {VERSION}\nspec: {SPEC_VERSION}"));
    &TEXT
}

/// Writes to standard output, which may be a pipe that nobody reads any more.
fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::cli::Cli;

    /// Docker takes what comes after the word for the version, and where the word is missing it has
    /// a warning instead.
    #[test]
    fn version_is_told_as_runc_tells_it() {
        let told = Cli::command().render_version();
        let (first, rest) = told.split_once('\n').unwrap();
        assert_eq!(first, concat!("kata-runtime version ", env!("CARGO_PKG_VERSION")));
        assert!(rest.starts_with("spec: "), "{rest}");
    }
}
