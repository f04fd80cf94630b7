//! The system calls that a VMM makes, and no others (seccomp(2)).
//!
//! Threads inherit it, and nothing takes it off. What is not listed ends the process: libkrun and
//! the C library never ask for it.

use anyhow::{Context, Result};
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use crate::options::Seccomp;

/// Calls that are let through whatever their arguments.
#[rustfmt::skip]
const CALLS: &[libc::c_long] = &[
    // Memory. What would map code is told apart below.
    libc::SYS_brk, libc::SYS_madvise, libc::SYS_memfd_create, libc::SYS_mremap, libc::SYS_munmap,
    // Threads and signals.
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_futex, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_membarrier,
    libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity, libc::SYS_sched_yield, libc::SYS_set_robust_list, libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    // Time and chance.
    libc::SYS_clock_getres, libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_getrandom, libc::SYS_gettimeofday,
    libc::SYS_nanosleep, libc::SYS_time, libc::SYS_timerfd_create, libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime,
    // Events.
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_epoll_wait,
    libc::SYS_eventfd2, libc::SYS_pipe2, libc::SYS_poll, libc::SYS_ppoll,
    // Descriptors.
    libc::SYS_close, libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl, libc::SYS_lseek,
    libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2,
    libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev,
    // Files, most of them for the guest.
    libc::SYS_access, libc::SYS_chmod, libc::SYS_copy_file_range, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_fallocate,
    libc::SYS_fchdir, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchmodat2, libc::SYS_fchown, libc::SYS_fchownat,
    libc::SYS_fdatasync, libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fremovexattr,
    libc::SYS_fsetxattr, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_getcwd,
    libc::SYS_getdents64, libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_linkat, libc::SYS_listxattr, libc::SYS_llistxattr,
    libc::SYS_lremovexattr, libc::SYS_lsetxattr, libc::SYS_lstat, libc::SYS_mkdirat, libc::SYS_mknodat,
    libc::SYS_newfstatat, libc::SYS_open, libc::SYS_openat, libc::SYS_openat2, libc::SYS_readlink, libc::SYS_readlinkat,
    libc::SYS_removexattr, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_setxattr, libc::SYS_stat, libc::SYS_statfs,
    libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync_file_range, libc::SYS_syncfs, libc::SYS_umask, libc::SYS_unlink,
    libc::SYS_unlinkat, libc::SYS_utimensat,
    // Files belong to the guest's users: a thread takes their ids on for the one call.
    libc::SYS_capget, libc::SYS_capset, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getresgid,
    libc::SYS_getresuid, libc::SYS_getuid, libc::SYS_setresgid, libc::SYS_setresuid,
    // The guest's vsock.
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_bind, libc::SYS_connect, libc::SYS_getpeername, libc::SYS_getsockname, libc::SYS_getsockopt,
    libc::SYS_listen, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // The machine's size.
    libc::SYS_getrlimit, libc::SYS_sysinfo, libc::SYS_uname,
];

/// All of KVM's requests have this in their second byte (linux/kvm.h).
const KVM_TYPE: u64 = 0xae << 8;

/// The size of a block device in bytes (linux/fs.h, `BLKGETSIZE64`).
const DEVICE_SIZE: u64 = 0x8008_1272;

/// Shuts the calling thread, and all that it will start, in. `no_new_privs` must be set.
pub(crate) fn filter(seccomp: Seccomp) -> Result<()> {
    let otherwise = match seccomp {
        Seccomp::Kill => ScmpAction::KillProcess,
        Seccomp::Log => ScmpAction::Log,
    };
    let filter = rules(otherwise).context("cannot make the filter of system calls")?;
    filter.load().context("cannot put the filter of system calls in place")
}

fn rules(otherwise: ScmpAction) -> Result<ScmpFilterContext> {
    let mut filter = ScmpFilterContext::new(otherwise)?;
    for call in CALLS {
        filter.add_rule(ScmpAction::Allow, number(*call))?;
    }
    let mut allow = |call, conditions: &[ScmpArgCompare]| {
        filter.add_rule_conditional(ScmpAction::Allow, number(call), conditions).map(drop)
    };
    // No memory becomes code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow(call, &[masked(2, libc::PROT_EXEC as u64, 0)])?;
    }
    // Threads, no processes.
    let thread = libc::CLONE_THREAD as u64;
    allow(libc::SYS_clone, &[masked(0, thread, thread)])?;
    // It wakes its own threads, and nobody else: it is process 1.
    allow(libc::SYS_tgkill, &[equal(0, 1)])?;
    allow(libc::SYS_prctl, &[equal(0, libc::PR_SET_NAME as u64)])?;
    // Limits are looked at.
    allow(libc::SYS_prlimit64, &[equal(2, 0)])?;
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        allow(call, &[equal(0, libc::AF_UNIX as u64)])?;
    }
    allow(libc::SYS_ioctl, &[masked(1, 0xff00, KVM_TYPE)])?;
    // Whether something is a terminal; how a descriptor waits; how large a disk and its sectors
    // are.
    let asked = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO, libc::FIOCLEX, libc::BLKSSZGET];
    for request in asked.into_iter().chain([DEVICE_SIZE]) {
        allow(libc::SYS_ioctl, &[masked(1, u64::from(u32::MAX), request)])?;
    }
    // Its arguments are behind a pointer. The C library takes the older call then.
    filter.add_rule(ScmpAction::Errno(libc::ENOSYS), number(libc::SYS_clone3))?;
    Ok(filter)
}

fn number(call: libc::c_long) -> ScmpSyscall {
    ScmpSyscall::from(i32::try_from(call).expect("system calls have small numbers"))
}

/// The argument is this; of ints only the lower half means something.
fn equal(argument: u32, value: u64) -> ScmpArgCompare {
    masked(argument, u64::from(u32::MAX), value)
}

fn masked(argument: u32, mask: u64, value: u64) -> ScmpArgCompare {
    ScmpArgCompare::new(argument, ScmpCompareOp::MaskedEqual(mask), value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn filter_can_be_made_and_names_no_call_twice() {
        rules(ScmpAction::KillProcess).unwrap();
        assert_eq!(CALLS.iter().collect::<HashSet<_>>().len(), CALLS.len());
    }

    #[test]
    fn ways_out_are_not_listed() {
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_open_by_handle_at,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_kill,
        ] {
            assert!(!CALLS.contains(&call), "{call}");
        }
    }
}
