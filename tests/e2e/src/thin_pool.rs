//! A pool of thin devices (Linux, Documentation/admin-guide/device-mapper/thin-provisioning.rst)
//! for containerd's devicemapper snapshotter.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::client;
use crate::deadline::Deadline;
use crate::mark::Mark;

/// Sizes in bytes. The files are sparse.
const DATA: u64 = 2 << 30;
const METADATA: u64 = 32 << 20;

/// In sectors of 512 bytes: of a block of the pool, and of the blocks that may be left before it
/// warns.
const BLOCK: u32 = 128;
const LOW_WATER: u32 = 1024;

/// Whether files can be made block devices here.
#[must_use]
pub fn has_loop_devices() -> bool {
    // Where it is built in, or cannot be had, the answer is below.
    let _ = run("modprobe", &["loop"]);
    Path::new("/dev/loop-control").exists() && run("losetup", &["--find"]).is_ok()
}

/// A block device in a file. Dropped, it is gone, and the file stays.
#[derive(Debug)]
pub struct LoopDevice {
    node: String,
    /// What tells it from another test's device that gets its name once it is detached.
    file: PathBuf,
}

impl LoopDevice {
    /// Makes one of an existing file.
    pub fn of(file: &Path) -> Result<Self> {
        let file = file.canonicalize().context("there is no such file")?;
        let device = run("losetup", &["--find", "--show", &file.display().to_string()])?;
        Ok(Self { node: device.trim().to_owned(), file })
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Detaches it from its file; fails where somebody keeps it open or mounted.
    pub fn is_released(&self) -> Result<()> {
        // A device that is in use is detached only when it is not any more, and looks the same
        // until then. udev has a short look at each whose writer has closed it (udev(7), watch).
        run("losetup", &["--detach", &self.node])?;
        let deadline = Deadline::for_command();
        while self.is_attached()? {
            ensure!(!deadline.remaining().is_zero(), "{} is in use", self.node);
        }
        Ok(())
    }

    fn is_attached(&self) -> Result<bool> {
        let associated = ["--associated", &self.file.display().to_string()];
        Ok(!run("losetup", &associated)?.trim().is_empty())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.is_attached().unwrap_or(false) {
            return;
        }
        if let Err(error) = run("losetup", &["--detach", &self.node]) {
            eprintln!("the loop device {} stays: {error:#}", self.node);
        }
    }
}

/// A pool in files. Dropped, it is gone, with all devices in it.
#[derive(Debug)]
pub struct ThinPool {
    name: String,
    loops: Vec<LoopDevice>,
    /// The files.
    directory: TempDir,
}

impl ThinPool {
    /// Makes one; `None` where device-mapper has no thin devices.
    pub fn make() -> Result<Option<Self>> {
        let _ = run("modprobe", &["dm_thin_pool"]);
        let targets = run("dmsetup", &["targets"]).unwrap_or_default();
        if !has_loop_devices() || !targets.contains("thin-pool") {
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        let name = format!("pool-{}", Mark::unique());
        let mut pool = Self { name, loops: Vec::new(), directory };
        let metadata = pool.attach("metadata", METADATA)?;
        let data = pool.attach("data", DATA)?;
        let sectors = DATA / 512;
        let table = format!("0 {sectors} thin-pool {metadata} {data} {BLOCK} {LOW_WATER}");
        run("dmsetup", &["create", &pool.name, "--table", &table])?;
        Ok(Some(pool))
    }

    /// Its name, with which those of its devices begin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attach(&mut self, name: &str, size: u64) -> Result<String> {
        let file: PathBuf = self.directory.path().join(name);
        File::create(&file)?.set_len(size)?;
        let device = LoopDevice::of(&file)?;
        let node = device.node().to_owned();
        self.loops.push(device);
        Ok(node)
    }
}

impl Drop for ThinPool {
    fn drop(&mut self) {
        let listed =
            run("dmsetup", &["info", "-c", "--noheadings", "-o", "name"]).unwrap_or_default();
        let own = listed.lines().map(str::trim).filter(|name| name.starts_with(&self.name));
        let (pool, devices): (Vec<_>, Vec<_>) = own.partition(|name| *name == self.name);
        for name in devices.into_iter().chain(pool) {
            if let Err(error) = run("dmsetup", &["remove", "--retry", name]) {
                eprintln!("the device {name} stays: {error:#}");
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    client::run(command)?.success()
}
