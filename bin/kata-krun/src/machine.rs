//! The machine, as libkrun is told about it (its header `libkrun.h` documents the calls).

#![expect(unsafe_code, reason = "libkrun's interface is C")]

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::jail::Inside;
use crate::nic;
use crate::options::{LogLevel, Nic, Options};

/// Open files that are asked for: every file that the guest has in its cache is one.
const WANTED_FDS: u64 = 1_000_000;

/// `KRUN_KERNEL_FORMAT_ELF`
const ELF: u32 = 1;
/// `KRUN_LOG_STYLE_NEVER`: no colours.
const PLAIN: u32 = 2;
/// `KRUN_LOG_OPTION_NO_ENV`: the environment decides nothing.
const NO_ENVIRONMENT: u32 = 1;
/// No socket of the guest's is served by the host (transparent socket impersonation).
const NO_IMPERSONATION: u32 = 0;
/// `KRUN_DISK_FORMAT_RAW`: stated, for a disk must not be able to say that it is something else.
const RAW: u32 = 0;
/// The serial number of the guest's root file system.
const IMAGE: &str = "image";
/// No window through which the guest would see the host's page cache.
const NO_WINDOW: u64 = 0;

/// Raises the limit of open files as far as allowed.
pub(crate) fn raise_file_limit() -> io::Result<()> {
    let both = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    if setrlimit(Resource::Nofile, both(WANTED_FDS)).is_err() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(WANTED_FDS);
        setrlimit(Resource::Nofile, both(hard))?;
    }
    Ok(())
}

/// A machine that has been described and not been started.
#[derive(Debug)]
pub(crate) struct Machine {
    context: u32,
}

impl Machine {
    /// Describes the machine to libkrun. Nothing of the guest runs yet. `nics` are libkrun's ends
    /// of the network devices, in the order of the options.
    pub(crate) fn configure(
        options: &Options,
        inside: &Inside,
        nics: Vec<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let level = match options.log_level {
            LogLevel::Error => 1,
            LogLevel::Warn => 2,
            LogLevel::Info => 3,
            LogLevel::Debug => 4,
            LogLevel::Trace => 5,
        };
        // SAFETY: descriptor 2 is standard error, which stays open.
        check("log to standard error", unsafe {
            krun::krun_init_log(libc::STDERR_FILENO, level, PLAIN, NO_ENVIRONMENT)
        })?;
        let context = krun::krun_create_ctx();
        check("describe a machine", context)?;
        let context = u32::try_from(context).expect("it was just seen not to be negative");
        let machine = Self { context };
        check(
            "set CPUs and memory",
            krun::krun_set_vm_config(context, options.vcpus, options.memory),
        )?;
        machine.add_kernel(inside, &options.append)?;
        machine.add_console(options.console_fd)?;
        // The guest counts its disks in this order, and looks for the image by its place.
        if let Some(image) = &inside.image {
            machine.add_disk(IMAGE, image, true)?;
        }
        for (disk, file) in options.disks.iter().zip(&inside.disks) {
            machine.add_disk(&disk.serial, file, disk.readonly)?;
        }
        for (nic, socket) in options.nics.iter().zip(nics) {
            machine.add_nic(nic, socket)?;
        }
        for (share, directory) in options.shares.iter().zip(&inside.shares) {
            machine.add_share(&share.tag, directory)?;
        }
        machine.add_vsock(&options.vsock_ports, &inside.vsock_dir)?;
        Ok(machine)
    }

    fn add_kernel(&self, inside: &Inside, append: &str) -> anyhow::Result<()> {
        let kernel = c_path(&inside.kernel)?;
        let initrd = inside.initrd.as_deref().map(c_path).transpose()?;
        let append = CString::new(append).context("the kernel's command line has a NUL in it")?;
        // SAFETY: all are C strings that live until the call returns, which copies them; without an
        // initial ramdisk it takes a null pointer.
        check("boot this kernel", unsafe {
            krun::krun_set_kernel(
                self.context,
                kernel.as_ptr(),
                ELF,
                initrd.as_ref().map_or(ptr::null(), |initrd| initrd.as_ptr()),
                append.as_ptr(),
            )
        })
    }

    /// The first console is the guest's `hvc0`; libkrun opens its output by name.
    fn add_console(&self, pipe: i32) -> anyhow::Result<()> {
        let path = CString::new(format!("/proc/self/fd/{pipe}")).context("it has no NUL")?;
        // SAFETY: a C string that lives until the call returns, which copies it.
        check("set up the console", unsafe {
            krun::krun_set_console_output(self.context, path.as_ptr())
        })
    }

    fn add_disk(&self, serial: &str, file: &Path, readonly: bool) -> anyhow::Result<()> {
        let serial = CString::new(serial).context("the disk's serial number has a NUL in it")?;
        let file = c_path(file)?;
        // SAFETY: both are C strings that live until the call returns, which copies them.
        check("add a disk", unsafe {
            krun::krun_add_disk2(self.context, serial.as_ptr(), file.as_ptr(), RAW, readonly)
        })
    }

    fn add_nic(&self, nic: &Nic, socket: OwnedFd) -> anyhow::Result<()> {
        let no_flags = 0;
        // SAFETY: there is no path, the address is that of six bytes, and the descriptor is
        // libkrun's from here on.
        check("add a network device", unsafe {
            krun::krun_add_net_unixgram(
                self.context,
                ptr::null(),
                socket.into_raw_fd(),
                nic.mac.0.as_ptr(),
                nic::features(nic),
                no_flags,
            )
        })
    }

    fn add_share(&self, tag: &str, directory: &Path) -> anyhow::Result<()> {
        let tag = CString::new(tag).context("the share's tag has a NUL in it")?;
        let directory = c_path(directory)?;
        // SAFETY: both are C strings that live until the call returns, which copies them.
        check("share a directory", unsafe {
            krun::krun_add_virtiofs2(self.context, tag.as_ptr(), directory.as_ptr(), NO_WINDOW)
        })
    }

    fn add_vsock(&self, ports: &[u32], directory: &Path) -> anyhow::Result<()> {
        check("leave the default vsock out", krun::krun_disable_implicit_vsock(self.context))?;
        check("add a vsock", krun::krun_add_vsock(self.context, NO_IMPERSONATION))?;
        for port in ports {
            let socket = c_path(&directory.join(port.to_string()))?;
            let guest_listens = true;
            // SAFETY: a C string that lives until the call returns, which copies it.
            check("offer a vsock port", unsafe {
                krun::krun_add_vsock_port2(self.context, *port, socket.as_ptr(), guest_listens)
            })?;
        }
        Ok(())
    }

    /// Tells that the guest is about to run, and runs it. The guest's end is the process's; only a
    /// failure to start returns.
    pub(crate) fn run(self, options: &Options) -> anyhow::Result<Infallible> {
        if options.ready_fd <= libc::STDERR_FILENO {
            bail!("--ready-fd={} is one of the standard three", options.ready_fd);
        }
        // SAFETY: the number was inherited for this, and nothing else in this process has claimed
        // it. A number that is not open makes the write fail.
        let mut ready = unsafe { File::from_raw_fd(options.ready_fd) };
        ready.write_all(&[1]).context("cannot tell that it is ready")?;
        drop(ready);
        check("start the machine", krun::krun_start_enter(self.context))?;
        bail!("the machine has ended without ending its process")
    }
}

/// libkrun's calls return a negative errno when they fail.
fn check(what: &str, result: i32) -> anyhow::Result<()> {
    if result < 0 {
        let error = io::Error::from_raw_os_error(result.saturating_neg());
        return Err(error).with_context(|| format!("cannot {what}"));
    }
    Ok(())
}

fn c_path(path: &Path) -> anyhow::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .with_context(|| format!("the path {} has a NUL in it", path.display()))
}
