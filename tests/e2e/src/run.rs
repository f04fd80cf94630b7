//! A container to be.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::client::{Client, Input, Output};
use crate::container::Container;
use crate::containerd::{CONTAINER, Containerd};
use crate::image::Image;
use crate::runtime::Runtime;
use crate::spec::Spec;

/// One `ctr run`: what it is told before it starts.
#[derive(Debug, Clone)]
#[must_use = "it runs only when output, attach or start is called"]
pub struct Run<'a> {
    containerd: &'a Containerd,
    runtime: String,
    id: String,
    image: String,
    spec: Option<Spec>,
    command: Vec<String>,
    flags: Vec<OsString>,
    input: Input,
}

impl<'a> Run<'a> {
    pub(crate) fn new(containerd: &'a Containerd, command: Vec<String>) -> Self {
        Self {
            containerd,
            runtime: Runtime::under_test().name().to_owned(),
            id: containerd.unique(CONTAINER),
            image: Image::busybox().reference(),
            spec: None,
            command,
            flags: Vec::new(),
            input: Input::Nothing,
        }
    }

    /// Under this runtime instead of the one under test.
    pub fn under(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime.name().to_owned();
        self
    }

    /// Under the runtime whose name asks for a hypervisor, like `krun`.
    pub fn under_hypervisor(mut self, hypervisor: &str) -> Self {
        self.runtime = format!("io.containerd.kata-{hypervisor}.v2");
        self
    }

    /// From this image, which was imported.
    pub fn image(mut self, image: &Image) -> Self {
        self.image = image.reference();
        self
    }

    /// From this specification instead of an image; its own command counts.
    pub fn spec(mut self, spec: Spec) -> Self {
        self.spec = Some(spec);
        self
    }

    /// With one flag of `ctr run`, like `--read-only`.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// With one flag of `ctr run` that has a value.
    pub fn option(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.into(), value.into()]);
        self
    }

    /// With one more environment variable.
    pub fn env(self, name: &str, value: &str) -> Self {
        self.option("--env", &format!("{name}={value}"))
    }

    /// In this working directory.
    pub fn cwd(self, directory: &str) -> Self {
        self.option("--cwd", directory)
    }

    /// On this snapshotter.
    pub fn snapshotter(self, name: &str) -> Self {
        self.option("--snapshotter", name)
    }

    /// With a directory or file of the host, `options` like `rbind:ro`.
    pub fn bind(self, source: &Path, destination: &str, options: &str) -> Self {
        let source = source.display();
        self.mount(&format!("type=bind,src={source},dst={destination},options={options}"))
    }

    /// With one more mount, as `ctr run --mount` takes it.
    pub fn mount(self, mount: &str) -> Self {
        self.option("--mount", mount)
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

    /// The id that the container will have.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs it to its end, and removes it.
    pub fn output(self) -> Result<Output> {
        self.attach()?.wait()
    }

    /// Starts it and stays attached; it is removed at its end.
    pub fn attach(self) -> Result<Client> {
        let args = self.arguments(Some("--rm"))?;
        self.containerd.start_ctr(args, self.input)
    }

    /// Starts it and stays attached; the container stays when the task has ended.
    pub fn attach_and_keep(self) -> Result<(Client, Container<'a>)> {
        let args = self.arguments(None)?;
        let client = self.containerd.start_ctr(args, self.input)?;
        Ok((client, Container::new(self.containerd, self.id)))
    }

    /// Starts it, and lets it run by itself. What it writes at first goes nowhere.
    pub fn start(self) -> Result<Container<'a>> {
        let args = self.arguments(Some("--detach"))?;
        let started = self.containerd.ctr(args)?.success();
        started.with_context(|| format!("cannot start {}", self.id))?;
        Ok(Container::new(self.containerd, self.id))
    }

    /// Begins to start it, without waiting: when the client has ended well, it runs.
    pub fn starting(self) -> Result<(Client, Container<'a>)> {
        let args = self.arguments(Some("--detach"))?;
        let client = self.containerd.start_ctr(args, Input::Nothing)?;
        Ok((client, Container::new(self.containerd, self.id)))
    }

    /// The arguments of a `ctr` that runs it to its end and removes it.
    pub(crate) fn command_line(&self) -> Result<Vec<OsString>> {
        self.arguments(Some("--rm"))
    }

    fn arguments(&self, mode: Option<&str>) -> Result<Vec<OsString>> {
        let mut args: Vec<OsString> = vec!["run".into()];
        args.extend(mode.map(Into::into));
        args.extend(["--runtime".into(), self.runtime.clone().into()]);
        args.extend(["--fifo-dir".into(), self.containerd.directory().join("fifo").into()]);
        if self.input == Input::Terminal {
            args.push("--tty".into());
        }
        args.extend(self.flags.iter().cloned());
        match &self.spec {
            Some(spec) => {
                let file = self.containerd.directory().join(format!("{}.json", self.id));
                spec.write(&file, self.containerd.namespace(), &self.id)?;
                args.extend(["--config".into(), file.into(), self.id.clone().into()]);
            }
            None => {
                args.extend([self.image.clone().into(), self.id.clone().into()]);
                args.extend(self.command.iter().map(Into::into));
            }
        }
        Ok(args)
    }
}
