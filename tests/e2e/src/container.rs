//! A container that runs by itself, and processes in it.

use std::ffi::OsString;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{Client, Input, Output};
use crate::containerd::Containerd;
use crate::json;

/// A container that was started and not removed.
#[derive(Debug)]
#[must_use = "remove it, or the leak check will tell"]
pub struct Container<'a> {
    containerd: &'a Containerd,
    id: String,
}

impl<'a> Container<'a> {
    pub(crate) fn new(containerd: &'a Containerd, id: String) -> Self {
        Self { containerd, id }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// One more process to be in it.
    pub fn exec(&self, command: impl IntoIterator<Item = impl Into<String>>) -> Exec<'a> {
        Exec {
            containerd: self.containerd,
            container: self.id.clone(),
            id: self.containerd.unique("x"),
            command: command.into_iter().map(Into::into).collect(),
            flags: Vec::new(),
            input: Input::Nothing,
        }
    }

    /// One more process to be in it: a shell with `script`.
    pub fn shell(&self, script: &str) -> Exec<'a> {
        self.exec(["sh", "-c", script])
    }

    /// Sends a signal, like `KILL`, to its first process.
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.task(["kill", "--signal", signal, &self.id])
    }

    /// Sends a signal to the process of an exec.
    pub fn kill_exec(&self, exec: &str, signal: &str) -> Result<()> {
        self.task(["kill", "--exec-id", exec, "--signal", signal, &self.id])
    }

    /// Sends a signal to all its processes.
    pub fn kill_all(&self, signal: &str) -> Result<()> {
        self.task(["kill", "--all", "--signal", signal, &self.id])
    }

    /// Freezes it.
    pub fn pause(&self) -> Result<()> {
        self.task(["pause", &self.id])
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<()> {
        self.task(["resume", &self.id])
    }

    fn task<const N: usize>(&self, args: [&str; N]) -> Result<()> {
        let words = args.join(" ");
        let output = self.containerd.ctr(["task"].into_iter().chain(args))?;
        output.success().map(drop).with_context(|| format!("ctr task {words}"))
    }

    /// Its state as `ctr task ls` shows it, like `RUNNING`; `None` when it has no task.
    pub fn status(&self) -> Result<Option<String>> {
        Ok(self.listed()?.and_then(|columns| columns.get(2).cloned()))
    }

    /// The process id that containerd tells.
    pub fn pid(&self) -> Result<u32> {
        let columns = self.listed()?.with_context(|| format!("{} has no task", self.id))?;
        let pid = columns.get(1).with_context(|| format!("{} has no pid", self.id))?;
        pid.parse().with_context(|| format!("the pid of {} is {pid}", self.id))
    }

    fn listed(&self) -> Result<Option<Vec<String>>> {
        let table = self.containerd.ctr(["task", "ls"])?.success()?;
        let rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect());
        Ok(rows.into_iter().find(|row: &Vec<String>| row.first() == Some(&self.id)))
    }

    /// The process ids that `ctr task ps` shows.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let table = self.containerd.ctr(["task", "ps", &self.id])?.success()?;
        let pids = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        pids.map(|pid| pid.parse().with_context(|| format!("{pid} is not a pid"))).collect()
    }

    /// What `ctr task metrics` tells.
    pub fn metrics(&self) -> Result<Value> {
        let text = self.containerd.ctr(["task", "metrics", "--format", "json", &self.id])?;
        json::last_value(&text.success()?)
    }

    /// Waits for its end and tells its exit code. The task is deleted then, the container not.
    pub fn wait(&self) -> Result<i32> {
        let client = self.containerd.start_ctr(["task", "attach", &self.id], Input::Nothing)?;
        Ok(client.wait()?.code)
    }

    /// Deletes the task, which has ended, and the container.
    pub fn delete(self) -> Result<()> {
        self.task(["delete", &self.id])?;
        self.remove_container()
    }

    /// Kills it if it runs, and deletes task and container, however much of it is still there.
    pub fn remove(self) -> Result<()> {
        if self.status()?.is_some() {
            let deleted = self.task(["delete", "--force", &self.id]);
            if self.status()?.is_some() {
                deleted?;
            }
        }
        self.remove_container()
    }

    fn remove_container(&self) -> Result<()> {
        let output = self.containerd.ctr(["container", "delete", &self.id])?.success();
        output.map(drop).with_context(|| format!("cannot delete the container {}", self.id))
    }
}

/// One `ctr task exec`: what it is told before it starts.
#[derive(Debug, Clone)]
#[must_use = "it runs only when output or attach is called"]
pub struct Exec<'a> {
    containerd: &'a Containerd,
    container: String,
    id: String,
    command: Vec<String>,
    flags: Vec<OsString>,
    input: Input,
}

impl Exec<'_> {
    /// The id that the process will have.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// With one flag of `ctr task exec` that has a value.
    pub fn option(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.into(), value.into()]);
        self
    }

    /// As this user.
    pub fn user(self, user: &str) -> Self {
        self.option("--user", user)
    }

    /// In this working directory.
    pub fn cwd(self, directory: &str) -> Self {
        self.option("--cwd", directory)
    }

    /// In a terminal.
    pub fn tty(mut self) -> Self {
        self.input = Input::Terminal;
        self
    }

    /// With this on its standard input.
    pub fn stdin(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Runs it to its end.
    pub fn output(self) -> Result<Output> {
        self.attach()?.wait()
    }

    /// Starts it and stays attached.
    pub fn attach(self) -> Result<Client> {
        let mut args: Vec<OsString> = vec!["task".into(), "exec".into()];
        args.extend(["--exec-id".into(), self.id.into()]);
        args.extend(["--fifo-dir".into(), self.containerd.directory().join("fifo").into()]);
        if self.input == Input::Terminal {
            args.push("--tty".into());
        }
        args.extend(self.flags);
        args.push(self.container.into());
        args.extend(self.command.into_iter().map(Into::into));
        self.containerd.start_ctr(args, self.input)
    }
}
