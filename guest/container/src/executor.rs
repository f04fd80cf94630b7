//! What libcontainer calls in a container's init, in place of its own way to run the command.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kata_log::chain;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};

use crate::command;
use crate::environment::Environment;
use crate::start_hooks::StartHooks;

/// A command with its environment, ready to be looked up and executed inside of the container.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    args: Vec<String>,
    environment: Environment,
    uid: u32,
    /// Filled by [`Command::resolve`].
    resolved: OnceLock<PathBuf>,
}

impl Command {
    /// `environment` is the specification's, without the default for `$HOME`.
    pub(crate) fn new(args: Vec<String>, environment: Environment, uid: u32) -> Self {
        Self { args, environment, uid, resolved: OnceLock::new() }
    }

    /// Finds the file. The container's root must be this process's.
    pub(crate) fn resolve(&self) -> Result<(), command::CommandError> {
        let name = self.args.first().map_or("", String::as_str);
        let path = command::find(name, self.environment.get("PATH"))?;
        let _ = self.resolved.set(path);
        Ok(())
    }

    /// The file as it was found; empty before that.
    pub(crate) fn file(&self) -> String {
        self.path().display().to_string()
    }

    fn path(&self) -> &Path {
        self.resolved.get().map_or(Path::new(""), PathBuf::as_path)
    }

    /// Replaces this process; returns only to say why it could not.
    pub(crate) fn execute(&self) -> io::Error {
        let path = self.path();
        let mut environment = self.environment.clone();
        // A name in another encoding is nothing against the others.
        let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
        environment.default_home(&String::from_utf8_lossy(&passwd), self.uid);

        let Ok(file) = CString::new(path.as_os_str().as_bytes()) else {
            return io::ErrorKind::InvalidInput.into();
        };
        let args: Result<Vec<_>, _> =
            self.args.iter().map(|arg| CString::new(arg.as_str())).collect();
        let Ok(args) = args else { return io::ErrorKind::InvalidInput.into() };
        match nix::unistd::execve(&file, &args, &environment.to_strings()) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        }
    }
}

/// Says `why` on the process's standard error, as runc does, for nobody else listens any more, and
/// exits.
fn fail(why: &str) -> ! {
    let _ = nix::unistd::write(io::stderr(), format!("{why}\n").as_bytes());
    crate::fork::exit(1)
}

/// What a container's init does when it is started: its hooks, then its command.
#[derive(Debug, Clone)]
pub(crate) struct InitExecutor {
    pub(crate) hooks: StartHooks,
    pub(crate) command: Command,
}

impl Executor for InitExecutor {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        if let Err(error) = self.hooks.run() {
            fail(&chain(&error));
        }
        let error = self.command.execute();
        fail(&format!("exec {}: {}", self.command.file(), command::in_words(&error)))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.command
            .resolve()
            .map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))
    }

    /// The environment goes to `execve` directly, in its order; this process's own is not its.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
