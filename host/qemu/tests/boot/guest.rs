//! The guest's side of these tests. The guest's first process is this very test program, run with
//! [`ARGUMENTS`], so that there is nothing else to build: it loads the modules that a kata initrd
//! lists, greets on the console like the agent, and answers on the serial channel.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;

use kata_channel::{ChannelStream, SERIAL_PORT_NAME, SerialListener};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// What makes the first process of a guest, as the end of the kernel's command line.
pub(crate) const ARGUMENTS: [&str; 5] =
    ["--", "--ignored", "--nocapture", "--exact", "guest::first_process"];

/// Sends back what it gets.
pub(crate) const ECHO_PORT: u32 = 7;
/// Tells the kernel's command line.
pub(crate) const COMMAND_LINE_PORT: u32 = 8;
/// Reboots.
pub(crate) const REBOOT_PORT: u32 = 9;
/// Is refused, like any other.
pub(crate) const CLOSED_PORT: u32 = 10;

#[tokio::test]
#[ignore = "only a guest's first process runs it"]
async fn first_process() -> io::Result<()> {
    assert_eq!(std::process::id(), 1, "this is no test, but what the tests' guest runs");
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(target)?;
        match mount(kind, target, kind, MountFlags::empty(), None::<&CStr>) {
            // The kernel may have mounted /dev itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let command_line = fs::read_to_string("/proc/cmdline")?;
    load_modules()?;
    println!("kata-agent test started");
    let mut listener = SerialListener::new(open_port()?);
    while let Some((port, pending)) = listener.accept().await {
        match port {
            ECHO_PORT => drop(tokio::spawn(async move { echo(pending.accept().await?).await })),
            COMMAND_LINE_PORT => {
                let mut stream = pending.accept().await?;
                stream.write_all(command_line.as_bytes()).await?;
                stream.shutdown().await?;
            }
            REBOOT_PORT => reboot(RebootCommand::Restart)?,
            _ => pending.refuse(),
        }
    }
    Ok(())
}

async fn echo(stream: ChannelStream) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

fn load_modules() -> io::Result<()> {
    let list = match fs::read_to_string("/etc/kata-modules") {
        // The kernel has everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list?,
    };
    for path in list.lines() {
        let module = File::open(path)?;
        // A module that this machine has no use for is no failure of the test.
        if let Err(errno) = finit_module(&module, c"", 0) {
            writeln!(io::stderr(), "{path}: {errno}")?;
        }
    }
    Ok(())
}

/// The serial port as a socket, by way of two threads: with a file that reads and writes in part
/// tokio's pipes would wait for ever.
fn open_port() -> io::Result<UnixStream> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let directory = entry?.path();
        if fs::read_to_string(directory.join("name"))?.trim_end() == SERIAL_PORT_NAME {
            let node = PathBuf::from("/dev").join(directory.file_name().unwrap_or_default());
            let mut from_port = OpenOptions::new().read(true).write(true).open(node)?;
            let mut to_port = from_port.try_clone()?;
            let (socket, theirs) = StdUnixStream::pair()?;
            let (mut to_socket, mut from_socket) = (theirs.try_clone()?, theirs);
            std::thread::spawn(move || {
                // Before the host has opened its side the port is at its end.
                while io::copy(&mut from_port, &mut to_socket)? == 0 {
                    std::thread::yield_now();
                }
                Ok::<_, io::Error>(())
            });
            std::thread::spawn(move || io::copy(&mut from_socket, &mut to_port));
            socket.set_nonblocking(true)?;
            return UnixStream::from_std(socket);
        }
    }
    Err(io::Error::other("the machine has no port for the agent"))
}
