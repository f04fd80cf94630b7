//! QEMU's control socket (QMP): one command after the other, and the events meanwhile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// QEMU answers at once, but for a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection on which commands can be given.
#[derive(Debug)]
pub(crate) struct Control {
    stream: RefCell<BufReader<UnixStream>>,
    /// Those that nobody has waited for yet.
    events: RefCell<VecDeque<Value>>,
}

impl Control {
    /// Waits for QEMU's greeting, and answers it.
    pub(crate) fn greet(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let stream = RefCell::new(BufReader::new(stream));
        let control = Self { stream, events: RefCell::default() };
        let greeting = control.read().context("QEMU does not greet")?;
        ensure!(greeting.get("QMP").is_some(), "QEMU greets with {greeting}");
        control.execute("qmp_capabilities", &json!({}))?;
        Ok(control)
    }

    /// Executes one command and gives what it returns.
    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.stream.borrow_mut().get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            self.events.borrow_mut().push_back(answer);
        }
    }

    /// The data of the next event of this name that `is_it`, also of those that have come already.
    pub(crate) fn event(&self, name: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let next = self.events.borrow_mut().pop_front();
            let mut event =
                next.map_or_else(|| self.read(), Ok).with_context(|| format!("no {name}"))?;
            if event["event"] == name && is_it(&event["data"]) {
                return Ok(event["data"].take());
            }
        }
    }

    fn read(&self) -> Result<Value> {
        let mut line = String::new();
        self.stream.borrow_mut().read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}
