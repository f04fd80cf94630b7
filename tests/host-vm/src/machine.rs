//! A running host VM.
//!
//! ```text
//!   boot ──▶ Ready ──▶ run ⇄ Output…, Status        any of these may end in Died: the emulation has crashed, which says nothing
//!     └────────────────┴──▶ Died, Silent            about what was tested; in Silent either hangs
//! ```

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::disk::Disk;
use crate::image::HostImage;
use crate::jobs::Line;

/// How long it may take until the machine takes jobs.
const BOOT: Duration = Duration::from_secs(180);

/// How long a job may say nothing before it counts as hanging. Longer than any test is silent.
const SILENCE: Duration = Duration::from_secs(300);

/// How long its shell may take for the next words of an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Every thread but the kernel's own, with what it waits for.
const PROCESSES: &str =
    "\nps -eLo pid,lwp,ppid,stat,wchan:24,etimes,time,args --no-headers | grep -v ']$'\n";

/// Where the machine's directory has what its kernel says.
const CONSOLE: &str = "console.log";

/// Memory in MiB: two guests with 2 GiB each, which they don't use up, and the engines.
const MEMORY_MIB: u32 = 4096;

/// AMD's virtualisation is part of `max`. The emulation crashes rarely, and never was seen to,
/// without five-level page tables.
const PROCESSOR: &str = "max,la57=off";

/// A device whose driver is asked something once a second, so that no interrupt is the last one for
/// long. When the machine leaves a guest, QEMU before 10.2 strikes one interrupt off the pending
/// ones without a lock (`do_vmexit`), and with it one that comes in that instant. If that was the
/// timer's, nothing happens until another one comes: such machines stood still until somebody
/// typed.
const HEARTBEAT: &str = "virtio-balloon-pci,guest-stats-polling-interval=1";

/// Room for translated code in MiB: throwing all of it away at once, when it is full, is when races
/// show.
const TRANSLATED_MIB: u32 = 1024;

/// A kernel that says little, starts only what tests need, and whose crash is the machine's end.
const KERNEL_PARAMETERS: &str = "console=ttyS0 root=/dev/vda rw systemd.unit=host-vm.target quiet \
    systemd.show_status=false net.ifnames=0 mitigations=off noreplace-smp cryptomgr.notests no_timer_check oops=panic panic=-1";

/// The first words of a kernel's end.
const PANIC: &str = "Kernel panic - not syncing";

/// The machine has ended, or its kernel has.
#[derive(Debug, thiserror::Error)]
#[error("the host VM{how}")]
pub struct Died {
    how: &'static str,
}

/// The machine hangs, or what runs there.
#[derive(Debug, thiserror::Error)]
#[error("the host VM has said nothing for {seconds} s: it hangs, or what runs there does")]
pub struct Silent {
    seconds: u64,
}

/// A host VM. It ends with this value, and with this process.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    lines: Receiver<Line>,
    jobs: UnixStream,
    directory: TempDir,
    // QEMU reads it as long as it runs.
    _disk: Arc<Disk>,
}

impl Machine {
    /// Boots one with `disk` and this many processors, and waits until it takes jobs. With more
    /// than one, which the emulation runs at the same time, guests in the machine were seen to hang
    /// or to reset themselves once in some fifty.
    pub fn boot(image: &HostImage, disk: Arc<Disk>, processors: u32) -> Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory for the host VM")?;
        let socket = directory.path().join("jobs.sock");
        let listener = UnixListener::bind(&socket).context("cannot make the socket for jobs")?;
        let mut qemu =
            qemu(image, &disk, processors, &directory).spawn().context("cannot start setpriv")?;
        let accepted = accept(&listener, &mut qemu);
        let jobs = accepted.inspect_err(|_| {
            let _ = qemu.kill();
            let _ = qemu.wait();
        })?;
        let lines = read_lines(jobs.try_clone()?);
        let mut machine = Self { qemu, lines, jobs, directory, _disk: disk };
        machine.become_ready()?;
        Ok(machine)
    }

    /// Runs a shell command as root to its end and gives every line of its output to `show`.
    /// Returns its exit status; [`Died`] if the machine ends before, and [`Silent`] if the job says
    /// nothing for five minutes. The command must be one line.
    pub fn run(&mut self, command: &str, mut show: impl FnMut(&str)) -> Result<i32> {
        ensure!(!command.contains('\n'), "a job is one line: {command:?}");
        if writeln!(self.jobs, "{command}").is_err() {
            return Err(Died { how: " takes no more jobs" }.into());
        }
        loop {
            match self.next_line(SILENCE)? {
                Line::Output(line) => show(&line),
                Line::Status(status) => return Ok(status),
                // Somebody has killed the service that runs jobs.
                Line::Ready => bail!("the host VM has lost a job"),
            }
        }
    }

    /// The end of what its kernel and QEMU have said.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let read = |name: &str| fs::read(self.directory.path().join(name)).unwrap_or_default();
        let log = [read(CONSOLE), read("qemu.log")].concat();
        let log = String::from_utf8_lossy(&log).into_owned();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The socket of its serial console, on which root is logged in.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.directory.path().join("console.sock")
    }

    /// What runs there, as root's shell on the console tells it. Little of it where the machine
    /// itself hangs.
    #[must_use]
    pub fn processes(&self) -> String {
        let ask = || -> io::Result<String> {
            let mut console = UnixStream::connect(self.console())?;
            console.set_read_timeout(Some(ANSWER))?;
            console.write_all(PROCESSES.as_bytes())?;
            let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
            let deadline = Instant::now() + 2 * ANSWER;
            while let Ok(length @ 1..) = console.read(&mut chunk) {
                said.extend_from_slice(&chunk[..length]);
                if Instant::now() > deadline {
                    break;
                }
            }
            Ok(String::from_utf8_lossy(&said).into_owned())
        };
        ask().unwrap_or_else(|error| format!("nobody tells: {error}"))
    }

    fn become_ready(&mut self) -> Result<()> {
        let prepared = self.wait_for_ready().and_then(|()| {
            let commands = self._disk.mount_commands();
            let mut said = String::new();
            let status = self.run(&commands, |line| said += &format!("{line}\n"))?;
            ensure!(status == 0, "the host VM cannot mount the project's disk: {said}");
            Ok(())
        });
        prepared.with_context(|| format!("the host VM's last words:\n{}", self.last_words(20)))
    }

    fn wait_for_ready(&mut self) -> Result<()> {
        let line = self.next_line(BOOT)?;
        ensure!(line == Line::Ready, "the host VM began with {line:?}");
        Ok(())
    }

    fn next_line(&mut self, patience: Duration) -> Result<Line> {
        self.lines.recv_timeout(patience).map_err(|error| {
            let console = fs::read(self.directory.path().join(CONSOLE)).unwrap_or_default();
            no_line(error, patience, &String::from_utf8_lossy(&console))
        })
    }
}

/// Why no line has come from a machine whose console says this.
fn no_line(error: RecvTimeoutError, patience: Duration, console: &str) -> anyhow::Error {
    match error {
        RecvTimeoutError::Disconnected => Died { how: " has ended by itself" }.into(),
        RecvTimeoutError::Timeout if console.contains(PANIC) => {
            Died { how: "'s kernel has panicked" }.into()
        }
        RecvTimeoutError::Timeout => Silent { seconds: patience.as_secs() }.into(),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Nothing in it is worth a shutdown.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Under `setpriv`, so that it ends with this process, however that ends.
fn qemu(image: &HostImage, disk: &Disk, processors: u32, directory: &TempDir) -> Command {
    let place = directory.path().display();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(image.qemu());
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-machine", "q35,usb=off,vmport=off,graphics=off"]);
    command.arg("-accel").arg(format!("tcg,thread=multi,tb-size={TRANSLATED_MIB}"));
    command.args(["-cpu", PROCESSOR, "-smp", &processors.to_string()]);
    command.args(["-m", &format!("{MEMORY_MIB}M")]);
    let drive = |file: PathBuf, mode: &str| {
        format!(
            "file={},format=raw,if=virtio,{mode}",
            file.display().to_string().replace(',', ",,")
        )
    };
    // Writes go to a file in the temporary directory that has no name.
    command.arg("-drive").arg(drive(image.disk(), "snapshot=on"));
    command.arg("-drive").arg(drive(disk.file(), "readonly=on"));
    command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initrd());
    command.args(["-append", KERNEL_PARAMETERS]);
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    command.args(["-device", HEARTBEAT]);
    command.arg("-chardev").arg(format!("socket,id=jobs,path={place}/jobs.sock"));
    command.args(["-device", "virtserialport,chardev=jobs,name=jobs"]);
    command.arg("-chardev").arg(format!(
        "socket,id=console,path={place}/console.sock,server=on,wait=off,logfile={place}/{CONSOLE}"
    ));
    command.args(["-serial", "chardev:console"]);
    command.env("TMPDIR", directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
    let log = fs::File::create(directory.path().join("qemu.log"));
    command.stderr(log.map_or_else(|_| Stdio::null(), Stdio::from));
    command
}

/// QEMU's connection for jobs. An error if it ends before it connects.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let deadline = Timespec { tv_sec: 10, tv_nsec: 0 };
    if poll(&mut fds, Some(&deadline)).context("cannot poll")? == 0 {
        let status = qemu.try_wait().context("cannot ask for QEMU's end")?;
        let how =
            status.map_or_else(|| "is silent".to_owned(), |status| format!("ended: {status}"));
        bail!("the host VM's QEMU {how}");
    }
    Ok(listener.accept().context("cannot accept QEMU's connection")?.0)
}

/// Reads lines until the connection's end, in a thread: so that the reader can have a deadline.
fn read_lines(stream: UnixStream) -> Receiver<Line> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let parsed = Line::parse(&String::from_utf8_lossy(&line));
            line.clear();
            if parsed.is_some_and(|parsed| sender.send(parsed).is_err()) {
                break;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_machine_is_no_failure_of_what_runs_there() {
        let (ended, silent) = (RecvTimeoutError::Disconnected, RecvTimeoutError::Timeout);
        let panicked = "[   12.3] Kernel panic - not syncing: Fatal exception";
        for (error, console, died) in
            [(ended, "", true), (silent, panicked, true), (silent, "login:", false)]
        {
            let error = no_line(error, SILENCE, console);
            assert_eq!((error.is::<Died>(), error.is::<Silent>()), (died, !died), "{error}");
            assert_eq!(error.context("its last words").is::<Died>(), died);
        }
    }
}
