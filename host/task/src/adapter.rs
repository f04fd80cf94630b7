//! Joins the two halves of a process's streams: the host's, which `stdio` opens, and the guest's,
//! which the sandbox has.

use std::sync::Arc;

use async_trait::async_trait;
use kata_sandbox::{AttachedStdio, Delivery, GuestProcess, Stdio};

use crate::stdio::{
    self, GuestStreams, ProcessStdio, StdioError, StdioIds, StdioSpec, StreamError,
};

/// Streams that the engine named. An init's are opened when it is created, since engines connect to
/// them then; an exec's when it is started, since before that nobody may hold them open.
pub(crate) struct HostStdio {
    spec: StdioSpec,
    ids: StdioIds,
    opened: Option<ProcessStdio>,
}

impl HostStdio {
    pub(crate) fn new(spec: StdioSpec, ids: StdioIds) -> Self {
        Self { spec, ids, opened: None }
    }

    /// Opens them now.
    pub(crate) async fn opened(mut self) -> Result<Self, StdioError> {
        self.opened = Some(ProcessStdio::open(&self.spec, &self.ids).await?);
        Ok(self)
    }
}

#[async_trait]
impl Stdio for HostStdio {
    async fn open(&mut self) -> Result<(), kata_sandbox::StdioError> {
        if self.opened.is_none() {
            self.opened = Some(ProcessStdio::open(&self.spec, &self.ids).await?);
        }
        Ok(())
    }

    fn attach(self: Box<Self>, process: GuestProcess) -> Arc<dyn AttachedStdio> {
        let opened = self.opened.expect("the sandbox opens before it attaches");
        Arc::new(opened.attach(Arc::new(process)))
    }
}

#[async_trait]
impl AttachedStdio for stdio::AttachedStdio {
    async fn drained(&self) -> Delivery {
        self.drained().await
    }

    async fn delivered(&self) {
        self.delivered().await;
    }

    async fn close_stdin(&self) {
        self.close_stdin();
    }
}

#[async_trait]
impl GuestStreams for GuestProcess {
    async fn read_stdout(&self, max: u32) -> Result<Vec<u8>, StreamError> {
        self.read_stdout(max).await.map_err(StreamError::new)
    }

    async fn read_stderr(&self, max: u32) -> Result<Vec<u8>, StreamError> {
        self.read_stderr(max).await.map_err(StreamError::new)
    }

    async fn write_stdin(&self, bytes: Vec<u8>) -> Result<usize, StreamError> {
        let taken = self.write_stdin(bytes).await.map_err(StreamError::new)?;
        Ok(usize::try_from(taken)
            .expect("a usize has at least 32 bits on every platform that runs this"))
    }

    async fn close_stdin(&self) -> Result<(), StreamError> {
        self.close_stdin().await.map_err(StreamError::new)
    }
}
