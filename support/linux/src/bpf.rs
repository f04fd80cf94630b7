//! Programs for the kernel (bpf(2)): loading one, and having it judge the devices of a cgroup or
//! look up the sockets of a network namespace.

#![expect(unsafe_code, reason = "bpf has no safe wrapper")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction, as `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and kind of operand.
    pub code: u8,
    /// The destination in the low four bits, the source in the high ones. (On a big-endian machine
    /// the two halves change places; all that this software runs on are little-endian.)
    pub registers: u8,
    /// Of a jump: instructions to skip; of a load: bytes from the source register.
    pub offset: i16,
    /// The operand, if it is a constant.
    pub immediate: i32,
}

/// What a program is asked about, with its number of linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What becomes of a packet at a network interface (tc-bpf(8)).
    Classifier = 3,
    /// Whether the processes of a cgroup may access a device.
    CgroupDevice = 15,
    /// Which socket gets a packet that no connection waits for.
    SocketLookup = 30,
}

impl Kind {
    /// Where it is going to be attached, if the kernel wants to know that when the program is
    /// loaded.
    fn attachment(self) -> u32 {
        match self {
            Self::SocketLookup => SOCKET_LOOKUP,
            Self::Classifier | Self::CgroupDevice => 0,
        }
    }
}

/// How often a load is tried.
const LOADS: u32 = 16;

/// Commands, the place of a program and flags, with their numbers of linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const LINK_CREATE: libc::c_int = 28;
const CGROUP_DEVICE: u32 = 6;
const SOCKET_LOOKUP: u32 = 36;
const SOCKET_MAP: u32 = 15;
/// Groups below may have filters of their own, which can only forbid more.
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// The kernel has helper functions for programs under the GPL alone; without them any licence will
/// do.
const LICENCE: &CStr = c"Apache-2.0";

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    /// A log, the kernel's version, flags, a name and a device: none.
    unused: [u32; 11],
    attachment: u32,
}

/// The part of `union bpf_attr` that makes a map.
#[repr(C)]
struct Map {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// The part of `union bpf_attr` that sets an entry of a map.
#[repr(C)]
struct Entry {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that makes a link.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that attaches one.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// Hands a program to the kernel, which checks it. Its descriptor closes on exec. An error is
/// ENOSYS or EINVAL from a kernel without such programs, EPERM without the right to load any, and
/// EINVAL, EACCES or E2BIG for a program that it does not take, such as one that calls a helper
/// function for programs under the GPL alone.
pub fn load(kind: Kind, program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: kind as u32,
        count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        unused: [0; 11],
        attachment: kind.attachment(),
    };
    Ok(owned(unless_interrupted(|| bpf(PROG_LOAD, &attributes))?))
}

/// The kernel gives the check of a program up when a signal arrives, such as that of a child's end,
/// and says EAGAIN; the next time it is handled already. As libraries do, for a few times.
fn unless_interrupted<T>(mut load: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..LOADS {
        match load() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    load()
}

/// Lets `program` judge every access from `cgroup` and below from now on, in place of `replaced`,
/// of which there is no moment without either. It stays for as long as the group does. An error
/// when `replaced` is not attached there, and on a kernel without such programs.
pub fn attach_to_cgroup(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = Attach {
        target: number(cgroup),
        program: number(program),
        kind: CGROUP_DEVICE,
        flags: if replaced.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
        replaced: replaced.map_or(0, number),
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

/// A map with one entry, of number 0: `socket`, which leaves it when it is closed. A program finds
/// it there ([`SOCKET_OF_MAP`]). Its descriptor closes on exec. An error as of [`load`], or when
/// the socket neither listens nor is connected.
pub fn map_of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Map { kind: SOCKET_MAP, key_size: 4, value_size: 4, entries: 1 };
    let map = owned(bpf(MAP_CREATE, &attributes)?);
    let (key, value) = (SOCKET_OF_MAP, number(socket));
    let attributes = Entry {
        map: number(map.as_fd()),
        padding: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: std::ptr::from_ref(&value) as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE, &attributes)?;
    Ok(map)
}

/// The number of the only entry of a [`map_of_socket`].
pub const SOCKET_OF_MAP: u32 = 0;

/// Has `program` ([`Kind::SocketLookup`]) look up sockets in a network namespace, before the kernel
/// does, for as long as the descriptor that is returned stays open. It closes on exec. An error is
/// EINVAL from a kernel without such programs (before 5.9).
pub fn attach_to_namespace(
    namespace: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let attributes =
        Link { program: number(program), target: number(namespace), kind: SOCKET_LOOKUP, flags: 0 };
    Ok(owned(bpf(LINK_CREATE, &attributes)?))
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// A descriptor that the kernel has just made.
fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: it is the answer to a command that makes one, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: these commands only read: the attributes, whose size is given, and what they point
    // to, which outlives the call and has the length that they say.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_that_a_signal_interrupts_is_tried_again_but_not_for_ever() {
        let mut interruptions = 3;
        let loaded = unless_interrupted(|| match interruptions {
            0 => Ok(7),
            _ => {
                interruptions -= 1;
                Err(io::ErrorKind::WouldBlock.into())
            }
        });
        assert_eq!(loaded.unwrap(), 7);

        let mut tries = 0;
        let never: io::Result<()> = unless_interrupted(|| {
            tries += 1;
            Err(io::ErrorKind::WouldBlock.into())
        });
        assert_eq!((never.unwrap_err().kind(), tries), (io::ErrorKind::WouldBlock, LOADS));
        let refused: io::Result<()> =
            unless_interrupted(|| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
