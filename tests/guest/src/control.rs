//! QEMU's control socket (QMP): one command after the other, events are skipped.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// QEMU answers at once, but for a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection on which commands can be given.
#[derive(Debug)]
pub(crate) struct Control(RefCell<BufReader<UnixStream>>);

impl Control {
    /// Waits for QEMU's greeting, and answers it.
    pub(crate) fn greet(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let control = Self(RefCell::new(BufReader::new(stream)));
        let greeting = control.read().context("QEMU does not greet")?;
        ensure!(greeting.get("QMP").is_some(), "QEMU greets with {greeting}");
        control.execute("qmp_capabilities", &json!({}))?;
        Ok(control)
    }

    /// Executes one command and gives what it returns.
    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.0.borrow_mut().get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn read(&self) -> Result<Value> {
        let mut line = String::new();
        self.0.borrow_mut().read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}
