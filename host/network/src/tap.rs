//! Taps as descriptors. Everything here works on the namespace of the calling thread.

#![expect(unsafe_code, reason = "the ioctl that attaches a descriptor to a tap")]

use std::ffi::c_char;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The device of which every open descriptor can become a tap.
const TUN: &str = "/dev/net/tun";

/// The kernel's own network back end for VMs.
const VHOST_NET: &str = "/dev/vhost-net";

mod ioctl {
    // linux/if_tun.h: TUNSETIFF. Its number says int, and it takes a struct ifreq.
    nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);
    // TUNSETPERSIST and TUNSETOWNER, which take the number itself.
    nix::ioctl_write_int_bad!(tun_set_persist, 0x4004_54cb);
    nix::ioctl_write_int_bad!(tun_set_owner, 0x4004_54cc);
}

/// Makes the tap `name`, down, in the calling thread's namespace. It exists as long as a descriptor
/// for it does.
pub(crate) fn make(name: &str) -> io::Result<OwnedFd> {
    let tun = open_tun()?;
    attach(tun.as_fd(), name)?;
    Ok(tun.into())
}

/// Makes the tap outlive its descriptors, for the user `owner` to open it.
pub(crate) fn keep(tap: &OwnedFd, owner: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and these requests take a number.
    unsafe {
        ioctl::tun_set_owner(tap.as_raw_fd(), owner.cast_signed())?;
        ioctl::tun_set_persist(tap.as_raw_fd(), 1)?;
    }
    Ok(())
}

/// Opens the macvtap with this index, which is in the calling thread's namespace. Its device file
/// may be nowhere on the host, so one is made that nobody else sees.
pub(crate) fn open_macvtap(name: &str, index: u32) -> io::Result<OwnedFd> {
    let sysfs = detached("sysfs")?;
    let mut number = String::new();
    let file = openat(
        &sysfs,
        format!("class/macvtap/tap{index}/dev"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    File::from(file).read_to_string(&mut number)?;
    let (major, minor) = parse_device(&number)
        .ok_or_else(|| io::Error::other(format!("{number:?} is no device number")))?;
    let tmpfs = detached("tmpfs")?;
    mknodat(
        &tmpfs,
        "tap",
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        makedev(major, minor),
    )?;
    let tap = openat(&tmpfs, "tap", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    attach(tap.as_fd(), name)?;
    Ok(tap)
}

/// A vhost-net descriptor; `None` where the host has no such device.
pub(crate) fn open_vhost() -> io::Result<Option<OwnedFd>> {
    match File::options().read(true).write(true).open(VHOST_NET) {
        Ok(vhost) => Ok(Some(vhost.into())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the kernel can move a VM's frames by itself here (vhost-net). An error if it could, and
/// this process must not.
pub fn has_vhost() -> io::Result<bool> {
    Ok(open_vhost()?.is_some())
}

/// What keeps taps from being made here, in words that fit into a sentence; `None` where they can
/// be.
#[must_use]
pub fn tap_obstacle() -> Option<String> {
    open_tun().err().map(|error| format!("{TUN}: {error}"))
}

fn open_tun() -> io::Result<File> {
    File::options().read(true).write(true).open(TUN)
}

/// Whether there is no device, or a node without a driver.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

/// Ethernet frames, each behind a header in which checksums and segmentation can be left to the
/// other side.
fn attach(device: std::os::fd::BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: a struct ifreq is plain memory, for which zeros are fine.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::Error::other(format!("{name} is too long for an interface's name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the argument is a valid pointer to the struct that this
    // request reads and writes.
    unsafe { ioctl::tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// A file system that is mounted nowhere and goes with its descriptor. A sysfs shows the namespace
/// in which it was made.
fn detached(kind: &str) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn parse_device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Turns IPv6 off on `name`, so that the namespace does not speak to the guest over its own side of
/// the tap.
pub(crate) fn silence(name: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, b"1")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_number_is_two_numbers() {
        assert_eq!(parse_device("236:1\n"), Some((236, 1)));
        for bad in ["", "236", "a:b", "1:2:3"] {
            assert_eq!(parse_device(bad), None, "{bad}");
        }
    }

    #[test]
    fn name_that_is_too_long_is_refused() {
        let null = File::open("/dev/null").unwrap();
        attach(null.as_fd(), "sixteen-letters-").unwrap_err();
    }
}
