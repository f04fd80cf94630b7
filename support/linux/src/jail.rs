//! What a child process is put into between fork and exec.
//!
//! A [`Jail`] is plain data; `install` turns it into a hook that runs in the child. The hook makes
//! system calls only: after the fork of a process with threads nothing else is safe, no allocation
//! and no lock. A step that fails writes its name to the child's stderr, since an `errno` is all
//! that passes back to the parent.
//!
//! The order matters: mounts before the user and capabilities go, capabilities before
//! `no_new_privs`, and the descriptors last.

#![expect(
    unsafe_code,
    reason = "the hook between fork and exec, and system calls without a safe face"
)]

mod nobody;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    PidfdFlags, Rlimit, Signal, getpid, pidfd_open, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySets, LinkNameSpaceType, UnshareFlags, clear_ambient_capability_set,
    move_into_link_name_space, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, unshare_unsafe,
};

pub use nobody::{DeviceNode, Nobody};
pub use rustix::process::Resource;
pub use rustix::thread::CapabilitySet;

/// How a child sees the file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mounts {
    /// As its parent does, in the parent's mount namespace.
    #[default]
    Shared,
    /// In a mount namespace of its own (mount_namespaces(7)) in which everything is read-only and
    /// no program gains privileges. Opening device nodes and writing to descriptors that were
    /// passed still works.
    ReadOnly,
}

/// The network namespace of a child (network_namespaces(7)).
#[derive(Debug, Clone, Default)]
pub enum Network {
    /// Its parent's.
    #[default]
    Shared,
    /// One of its own, with a loopback interface that is down.
    Own,
    /// An existing one.
    Joined(Arc<OwnedFd>),
}

/// The walls around a child. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Jail {
    /// The child's view of the file systems.
    pub mounts: Mounts,
    /// The child's network namespace.
    pub network: Network,
    /// An IPC namespace of its own: neither System V IPC nor POSIX message queues of the host.
    pub own_ipc: bool,
    /// A PID namespace of its own, in which the child is process 1 (pid_namespaces(7)): when it
    /// dies, the kernel kills whatever it has forked. With [`Mounts::ReadOnly`] it also gets a
    /// `/proc` that shows nothing else.
    pub own_pids: bool,
    /// All capabilities that the child and its descendants may ever have; `None` leaves them as
    /// they are. With this, `no_new_privs` is set as well (prctl(2)).
    pub capabilities: Option<CapabilitySet>,
    /// Whom the child becomes; `None` leaves it its parent's user and groups.
    pub user: Option<Nobody>,
    /// Whether the program becomes somebody else by itself, as jailers do. With the user it would
    /// lose its tie to its parent (prctl(2), `PR_SET_PDEATHSIG`), so its stdin is another one: a
    /// pipe whose other end only the parent has. Not with `own_pids`: no signal from inside or
    /// outside but one of its parent's ends process 1.
    pub changes_user: bool,
    /// Upper bounds, soft and hard (setrlimit(2)). Only lowering needs no privilege.
    pub limits: Vec<(Resource, u64)>,
}

impl Jail {
    /// Every wall there is, no capability, no core dumps: for a program that lives on the
    /// descriptors it was given.
    #[must_use]
    pub fn strict() -> Self {
        Self {
            mounts: Mounts::ReadOnly,
            network: Network::Own,
            own_ipc: true,
            own_pids: true,
            capabilities: Some(CapabilitySet::empty()),
            user: None,
            changes_user: false,
            limits: vec![(Resource::Core, 0)],
        }
    }
}

/// A step between fork and exec, and why it failed.
struct Failure(&'static str, Errno);

trait Step {
    fn step(self, name: &'static str) -> Result<(), Failure>;
}

impl Step for Result<(), Errno> {
    fn step(self, name: &'static str) -> Result<(), Failure> {
        self.map_err(|errno| Failure(name, errno))
    }
}

/// What ties a child to the process that forks it.
struct Parent {
    /// Readable once the parent is dead.
    alive: OwnedFd,
}

/// Makes `command`'s children enter `jail` and die with the thread that spawns them. Descriptors
/// above stderr are closed at exec; whatever is to be passed on must be unmarked by a hook that is
/// installed after this one.
pub(crate) fn install(command: &mut Command, jail: Jail) -> io::Result<()> {
    let parent = Parent { alive: pidfd_open(getpid(), PidfdFlags::empty())? };
    let enter = move || {
        enter(&jail, &parent).map_err(|Failure(step, errno)| {
            // Nothing can be done about a failure to complain.
            let _ = rustix::io::write(io::stderr(), step.as_bytes());
            errno.into()
        })
    };
    // SAFETY: `enter` and all that it calls make system calls on memory that was set up before the
    // fork. They neither allocate nor lock; paths are C strings.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Has the child begin with this limit; in no other respect is it in a jail.
pub(crate) fn limit(command: &mut Command, resource: Resource, limit: Rlimit) {
    // SAFETY: between fork and exec this makes one system call, and neither allocates nor locks.
    unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit)?)) };
}

/// Has the child begin with no signal blocked; in no other respect is it in a jail.
pub(crate) fn unblock_signals(command: &mut Command) {
    let none = SigSet::empty();
    // SAFETY: between fork and exec this makes one system call on memory that was set up before the
    // fork, and neither allocates nor locks.
    unsafe { command.pre_exec(move || Ok(none.thread_set_mask()?)) };
}

/// Spawns, as process 1 of a new PID namespace if the jail says so.
pub(crate) fn spawn(command: &mut Command, own_pids: bool) -> io::Result<Child> {
    if !own_pids {
        return command.spawn();
    }
    // A namespace that was unshared is entered by the thread's next children, not by the thread
    // itself. It is set back before anything else can run on this thread.
    let outer = File::open("/proc/thread-self/ns/pid_for_children")?;
    // SAFETY: unsharing the PID namespace touches neither descriptors nor memory of this process.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    let child = command.spawn();
    move_into_link_name_space(outer.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    child
}

fn tie_to(parent: &Parent) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("tie its life to its parent's")?;
    // Had the parent died before, the signal would never come.
    let mut alive = [PollFd::new(&parent.alive, PollFlags::IN)];
    match poll(&mut alive, Some(&Timespec::default())) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Failure("find its parent alive", Errno::SRCH)),
        Err(errno) => Err(Failure("look for its parent", errno)),
    }
}

/// asm-generic/fcntl.h; libc has no name for it.
const F_SETSIG: libc::c_int = 10;

/// Has the kernel kill this process when nobody can write to its stdin, a pipe, any more. It is
/// root that orders this, so it holds for whomever the process becomes (fcntl(2), `F_SETOWN`).
fn tie_by_stdin() -> Result<(), Failure> {
    let orders = [
        (libc::F_SETOWN, getpid().as_raw_nonzero().get()),
        (F_SETSIG, libc::SIGKILL),
        (libc::F_SETFL, libc::O_ASYNC),
    ];
    for (order, value) in orders {
        // SAFETY: these take a number, and stdin is open in every child.
        let result = unsafe { libc::fcntl(libc::STDIN_FILENO, order, value) };
        check(result.into()).step("tie its life to its stdin")?;
    }
    Ok(())
}

fn enter(jail: &Jail, parent: &Parent) -> Result<(), Failure> {
    if jail.changes_user {
        tie_by_stdin()?;
    }
    tie_to(parent)?;
    enter_namespaces(jail)?;
    if jail.mounts == Mounts::ReadOnly {
        make_mounts_read_only(jail.own_pids, jail.user.as_ref())?;
    }
    for &(resource, limit) in &jail.limits {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).step("lower its limits")?;
    }
    if let Some(keep) = jail.capabilities {
        keep_in_bounding_set(keep)?;
    }
    if let Some(user) = &jail.user {
        user.replace_root()?;
        // With the user the tie was taken away (prctl(2), PR_SET_PDEATHSIG).
        tie_to(parent)?;
    }
    if let Some(keep) = jail.capabilities {
        let keep = if jail.user.is_some() { CapabilitySet::empty() } else { keep };
        drop_capabilities(keep)?;
        set_no_new_privs(true).step("give new privileges up")?;
    }
    close_on_exec().step("close descriptors at exec")
}

fn enter_namespaces(jail: &Jail) -> Result<(), Failure> {
    if let Network::Joined(namespace) = &jail.network {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .step("enter its network namespace")?;
    }
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNS, jail.mounts == Mounts::ReadOnly);
    flags.set(UnshareFlags::NEWNET, matches!(jail.network, Network::Own));
    flags.set(UnshareFlags::NEWIPC, jail.own_ipc);
    if flags.is_empty() {
        return Ok(());
    }
    // SAFETY: `FILES` is not among the flags, so no descriptor changes its meaning.
    unsafe { unshare_unsafe(flags) }.step("enter namespaces of its own")
}

fn make_mounts_read_only(fresh_proc: bool, user: Option<&Nobody>) -> Result<(), Failure> {
    // Private first: what follows must not spread to the host.
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("make its mounts private")?;
    if fresh_proc {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(c"proc", c"/proc", c"proc", flags, None::<&CStr>).step("mount its own /proc")?;
    }
    if let Some(user) = user {
        user.make_devices()?;
    }
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: mount_setattr(2) reads a C string and a struct of the size that is passed with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check(result).step("make its mounts read-only")
}

fn keep_in_bounding_set(keep: CapabilitySet) -> Result<(), Failure> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel has no capability for.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Failure("drop capabilities for good", errno)),
        }
    }
    Ok(())
}

fn drop_capabilities(keep: CapabilitySet) -> Result<(), Failure> {
    clear_ambient_capability_set().step("clear ambient capabilities")?;
    let sets =
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).step("drop capabilities")
}

/// Marks every descriptor above stderr, also those that a library has opened without the flag.
fn close_on_exec() -> Result<(), Errno> {
    // SAFETY: close_range(2) with this flag closes nothing in this process image.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    check(result)
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
