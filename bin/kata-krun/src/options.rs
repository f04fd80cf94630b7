//! The command line.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::nic::{self, Mac};

/// How much libkrun says on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What becomes of a system call that no VMM makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Seccomp {
    /// It ends the process.
    Kill,
    /// The kernel logs it and lets it through, for whoever adds to the filter.
    Log,
}

/// A directory for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    /// By which the guest finds it.
    pub(crate) tag: String,
    pub(crate) directory: PathBuf,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its serial number, by which the guest finds it.
    pub(crate) serial: String,
    pub(crate) readonly: bool,
    /// A regular file or a block device.
    pub(crate) file: PathBuf,
}

/// A network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nic {
    /// The number of an inherited tap.
    pub(crate) tap: RawFd,
    pub(crate) mac: Mac,
    /// The longest packet that it will carry.
    pub(crate) mtu: u32,
}

/// Runs one virtual machine under KVM, in a jail; started by the runtime as process 1 of a PID
/// namespace
#[derive(Debug, Parser)]
#[command(name = "kata-krun", version)]
pub(crate) struct Options {
    /// The VM's name, for lists of processes
    #[arg(long)]
    pub(crate) name: String,

    /// Virtual CPUs
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) vcpus: u8,

    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB")]
    pub(crate) memory: u32,

    /// The guest kernel, an uncompressed ELF image
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,

    /// The initial ramdisk
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// A raw disk that the guest may read and not write
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,

    /// A raw disk or block device with a serial number for the guest, which may read it (ro) or
    /// write it, too (rw); may be repeated
    #[arg(long = "disk", value_name = "SERIAL,ro|rw,FILE", value_parser = parse_disk)]
    pub(crate) disks: Vec<Disk>,

    /// A network device on an inherited tap with IFF_VNET_HDR; may be repeated
    #[arg(long = "nic", value_name = "FD,MAC,MTU", value_parser = nic::parse)]
    pub(crate) nics: Vec<Nic>,

    /// The kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) append: String,

    /// A directory that the guest may mount by the tag; may be repeated
    #[arg(long = "share", value_name = "TAG=DIR", value_parser = parse_share)]
    pub(crate) shares: Vec<Share>,

    /// An empty directory in which a socket appears for each --vsock-port, named by its number
    #[arg(long, value_name = "DIR")]
    pub(crate) vsock_dir: PathBuf,

    /// A vsock port of the guest that can be reached from here; may be repeated
    #[arg(long = "vsock-port", value_name = "PORT")]
    pub(crate) vsock_ports: Vec<u32>,

    /// Stay in the network namespace that it is started in, which must be one of the sandbox's own
    #[arg(long)]
    pub(crate) keep_network: bool,

    /// Number of an inherited pipe that takes the guest's console
    #[arg(long, value_name = "N")]
    pub(crate) console_fd: RawFd,

    /// Number of an inherited pipe that takes one byte when the guest is about to run
    #[arg(long, value_name = "N")]
    pub(crate) ready_fd: RawFd,

    /// What becomes of a system call that no VMM makes
    #[arg(long, value_enum, default_value_t = Seccomp::Kill)]
    pub(crate) seccomp: Seccomp,

    /// How much is logged
    #[arg(long, value_enum, default_value_t = LogLevel::Warn)]
    pub(crate) log_level: LogLevel,
}

impl Options {
    /// Reads the program's command line; prints what is wrong with it and ends the program when it
    /// cannot.
    pub(crate) fn from_command_line() -> Self {
        Self::parse()
    }
}

/// Virtio 1.2 §5.11.4: the tag has room for 36 bytes.
fn parse_share(text: &str) -> Result<Share, String> {
    let (tag, directory) = text.split_once('=').ok_or("write it as TAG=DIRECTORY")?;
    match tag.len() {
        1..=36 => Ok(Share { tag: tag.to_owned(), directory: directory.into() }),
        length => Err(format!("a tag has 1 to 36 bytes, not {length}")),
    }
}

/// Virtio 1.2 §5.2.6: a serial number has room for 20 bytes.
fn parse_disk(text: &str) -> Result<Disk, String> {
    let mut parts = text.splitn(3, ',');
    let (Some(serial), Some(access), Some(file)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err("write it as SERIAL,ro,FILE or SERIAL,rw,FILE".to_owned());
    };
    let is_plain = serial.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_plain || !(1..=20).contains(&serial.len()) {
        return Err("a serial number is made of 1 to 20 letters and digits".to_owned());
    }
    let readonly = match access {
        "ro" => true,
        "rw" => false,
        other => return Err(format!("the access is `ro` or `rw`, not `{other}`")),
    };
    Ok(Disk { serial: serial.to_owned(), readonly, file: file.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_a_serial_number_what_may_be_done_and_a_file() {
        let disk = parse_disk("root,rw,/a,b").unwrap();
        assert_eq!((disk.serial.as_str(), disk.readonly), ("root", false));
        assert_eq!(disk.file, PathBuf::from("/a,b"));
        assert!(parse_disk("device0,ro,/a").unwrap().readonly);
        let long = format!("{},ro,/a", "s".repeat(21));
        for wrong in ["", "root", "root,rw", "root,w,/a", ",ro,/a", "a/b,ro,/a", &long] {
            assert!(parse_disk(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn share_is_a_tag_and_a_directory() {
        let share = parse_share("kataShared=/a=b").unwrap();
        assert_eq!((share.tag.as_str(), share.directory), ("kataShared", "/a=b".into()));
        assert!(parse_share("/a").is_err());
        assert!(parse_share("=/a").is_err());
        assert!(parse_share(&format!("{}=/a", "t".repeat(37))).is_err());
    }
}
