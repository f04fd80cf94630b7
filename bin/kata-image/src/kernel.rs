//! `kata-image kernel`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kata_initrd::extract_vmlinux;
use kata_kernel::{
    Kernel, KernelOptions, build_kernel, cache_directories, cache_directory, cached_kernel,
};

use crate::cli::KernelCommand;
use crate::output::write;
use crate::progress::Teller;

/// The names of a kernel in a directory, uncompressed and compressed.
const VMLINUX: &str = "vmlinux.container";
const VMLINUZ: &str = "vmlinuz.container";

/// What the first bytes of an ELF file are.
const ELF: &[u8] = b"\x7fELF";

pub(crate) fn run(command: &KernelCommand, teller: &Teller) -> Result<()> {
    if let Some(path) = &command.from {
        return given(path, command, teller);
    }
    if command.kernel.packages.is_empty() {
        return small(command, teller);
    }
    let package = crate::open(&command.kernel, teller)?.context("no kernel package is named")?;
    let vmlinux = extract_vmlinux(package.vmlinuz())
        .with_context(|| format!("cannot use the kernel {} of the package", package.release()))?;
    if let Some(vmlinuz) = &command.vmlinuz {
        write(vmlinuz, package.vmlinuz(), teller)?;
    }
    write(&command.output, &vmlinux, teller)
}

fn small(command: &KernelCommand, teller: &Teller) -> Result<()> {
    let kernel =
        if command.only_cached { cached(command, teller)? } else { built(command, teller)? };
    if let Some(vmlinuz) = &command.vmlinuz {
        write(vmlinuz, &read(&kernel.vmlinuz)?, teller)?;
    }
    write(&command.output, &read(&kernel.vmlinux)?, teller)?;
    teller.fact("version", &kernel.version()?);
    teller.fact("key", &kernel.key);
    Ok(())
}

fn built(command: &KernelCommand, teller: &Teller) -> Result<Kernel> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let options = KernelOptions {
        source: command.source.clone(),
        cache: command.cache.clone().map_or_else(cache_directory, Ok)?,
        jobs: command.jobs.unwrap_or(processors).max(1),
    };
    build_kernel(&options, teller).context("cannot build the small kernel")
}

fn cached(command: &KernelCommand, teller: &Teller) -> Result<Kernel> {
    let caches = command.cache.clone().map_or_else(cache_directories, |cache| Ok(vec![cache]))?;
    let found = cached_kernel(command.source.as_deref(), &caches);
    let Some(found) = found.context("cannot look for the small kernel")? else {
        let places: Vec<String> = caches.iter().map(|cache| cache.display().to_string()).collect();
        bail!("no small kernel for this version is in the cache {}", places.join(" or "));
    };
    if let Some(why) = found.outdated {
        teller.note(&format!("the small kernel is of an earlier build: {why}"));
    }
    Ok(found.kernel)
}

/// A kernel that somebody else has built.
fn given(path: &Path, command: &KernelCommand, teller: &Teller) -> Result<()> {
    let (image, compressed) = find(path)?;
    let kernel = read(&image)?;
    let vmlinux = extract_vmlinux(&kernel)
        .with_context(|| format!("cannot use the kernel {}", image.display()))?;
    write(&command.output, &vmlinux, teller)?;
    let Some(vmlinuz) = &command.vmlinuz else { return Ok(()) };
    match compressed {
        Some(compressed) => write(vmlinuz, &read(&compressed)?, teller),
        None if kernel.starts_with(ELF) => {
            // Another kernel's must not stay beside this one.
            match fs::remove_file(vmlinuz) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("cannot remove {}", vmlinuz.display()))
                }
                _ => {
                    let (from, to) = (image.display(), vmlinuz.display());
                    teller.note(&format!("{from} is not compressed, so there is no {to}"));
                    Ok(())
                }
            }
        }
        None => write(vmlinuz, &kernel, teller),
    }
}

/// The kernel at `path`, and its compressed form if that is another file.
fn find(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    if !path.is_dir() {
        return Ok((path.to_owned(), None));
    }
    let [vmlinux, vmlinuz] = [VMLINUX, VMLINUZ].map(|name| path.join(name));
    match (vmlinux.exists(), vmlinuz.exists()) {
        (true, true) => Ok((vmlinux, Some(vmlinuz))),
        (true, false) => Ok((vmlinux, None)),
        (false, true) => Ok((vmlinuz, None)),
        (false, false) => {
            bail!("the directory {} has neither {VMLINUX} nor {VMLINUZ}", path.display())
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
