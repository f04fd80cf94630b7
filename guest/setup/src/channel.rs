//! Finding the way to the host: the virtio-serial port named `agent.channel.0`, or vsock.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::uevent::Uevents;

/// The name that the runtime gives to the agent's serial port.
pub const PORT_NAME: &str = "agent.channel.0";

const PORTS: &str = "/sys/class/virtio-ports";

/// A way to the host.
#[derive(Debug)]
pub enum Channel {
    /// The serial port's node, open for reading and writing, non-blocking.
    Serial(File),
    /// This machine has this vsock context id.
    Vsock {
        /// Never one of the reserved ids 0 to 2.
        cid: u32,
    },
}

/// Why no way to the host can be found.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// There is no subscribing to device events.
    #[error("cannot listen for device events")]
    Events(#[source] io::Error),
    /// The port is there, but cannot be opened.
    #[error("cannot open the agent's serial port {path}")]
    Open {
        /// Its node.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What [`find`] may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// Whichever appears first.
    Any,
    /// Only vsock.
    Vsock,
}

/// Waits until there is a way to the host, driven by device events alone. It waits for ever if
/// there never is one: the host watches over the boot, and nobody else could be told.
///
/// # Errors
///
/// Fails when device events cannot be had, or when the port cannot be opened.
pub async fn find(accept: Accept) -> Result<Channel, ChannelError> {
    let events = Uevents::open().map_err(ChannelError::Events)?;
    loop {
        if accept == Accept::Any
            && let Some(path) = serial_port(Path::new(PORTS))
        {
            return open_serial(path);
        }
        if let Some(cid) = vsock_cid() {
            return Ok(Channel::Vsock { cid });
        }
        events.next().await.map_err(ChannelError::Events)?;
    }
}

/// Ports are numbered as the machine is built, so the name in sysfs is what counts.
fn serial_port(ports: &Path) -> Option<PathBuf> {
    std::fs::read_dir(ports).ok()?.flatten().find_map(|port| {
        let name = std::fs::read_to_string(port.path().join("name")).ok()?;
        (name.trim_end() == PORT_NAME).then(|| Path::new("/dev").join(port.file_name()))
    })
}

fn open_serial(path: PathBuf) -> Result<Channel, ChannelError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(&path)
        .map(Channel::Serial)
        .map_err(|source| ChannelError::Open { path, source })
}

/// `None` without vsock, and with a vsock that has no transport (yet).
fn vsock_cid() -> Option<u32> {
    let vsock = File::open("/dev/vsock").ok()?;
    local_cid(&vsock).filter(|cid| (3..u32::MAX).contains(cid))
}

#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
fn local_cid(vsock: &impl AsFd) -> Option<u32> {
    use std::os::fd::AsRawFd;

    /// `_IO(7, 0xb9)` of linux/vm_sockets.h.
    const IOCTL_VM_SOCKETS_GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let mut cid: u32 = 0;
    // SAFETY: the request writes one u32 through the pointer, which is valid for that.
    let result = unsafe {
        libc::ioctl(vsock.as_fd().as_raw_fd(), IOCTL_VM_SOCKETS_GET_LOCAL_CID as _, &raw mut cid)
    };
    (result == 0).then_some(cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_port_is_found_by_name_not_number() {
        let ports = tempfile::tempdir().unwrap();
        for (port, name) in
            [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport2p3", "agent.channel.0\n")]
        {
            std::fs::create_dir(ports.path().join(port)).unwrap();
            std::fs::write(ports.path().join(port).join("name"), name).unwrap();
        }
        std::fs::create_dir(ports.path().join("vport1p1")).unwrap();
        assert_eq!(serial_port(ports.path()), Some("/dev/vport2p3".into()));
    }

    #[test]
    fn serial_port_without_driver_is_none() {
        assert_eq!(serial_port(Path::new("/nonexistent")), None);
    }
}
