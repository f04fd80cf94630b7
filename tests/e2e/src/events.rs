//! What containerd tells about its containers.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::{Client, Input};
use crate::containerd::Containerd;
use crate::deadline::Deadline;

/// A listener to the events of a containerd.
#[derive(Debug)]
pub struct Events {
    client: Client,
}

impl Events {
    /// Listens, from the moment when this returns.
    pub(crate) fn of(containerd: &Containerd) -> Result<Self> {
        let client = containerd.start_ctr(["events"], Input::Nothing)?;
        // It does not say when it listens; so events are made until the first one is seen.
        for round in 0..100 {
            let label = format!("round={round}");
            containerd.ctr(["namespace", "label", containerd.namespace(), &label])?.success()?;
            let patience = Deadline::after(Duration::from_millis(100));
            if client.stdout.expect("/namespaces/update", patience).is_ok() {
                return Ok(Self { client });
            }
        }
        bail!("ctr events shows nothing: {}", client.stderr.text())
    }

    /// Waits for the deletion of the task of `container`.
    pub fn expect_delete(&self, container: &str) -> Result<()> {
        self.expect("/tasks/delete", &format!("\"container_id\":\"{container}\""))
    }

    /// Waits for the end of the first process of `container`.
    pub fn expect_exit(&self, container: &str) -> Result<()> {
        self.expect("/tasks/exit", &format!("\"id\":\"{container}\""))
    }

    fn expect(&self, topic: &str, content: &str) -> Result<()> {
        let deadline = Deadline::for_command();
        loop {
            let lines = self.client.stdout.times("\n");
            let told =
                self.lines().into_iter().any(|line| line.contains(topic) && line.contains(content));
            if told {
                return Ok(());
            }
            let next = self.client.stdout.expect_times("\n", lines + 1, deadline);
            next.with_context(|| format!("waiting for {topic}"))?;
        }
    }

    /// The topics of `container` so far that begin with `/tasks/`.
    #[must_use]
    pub fn topics(&self, container: &str) -> Vec<String> {
        let lines = self.lines().into_iter().filter(|line| line.contains(container));
        let topics = lines.filter_map(|line| {
            line.split(' ').find(|word| word.starts_with("/tasks/")).map(str::to_owned)
        });
        topics.collect()
    }

    /// Time, namespace, topic and content, a line each. The last line may be there in part only,
    /// and is left out.
    fn lines(&self) -> Vec<String> {
        let text = self.client.stdout.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    }
}
