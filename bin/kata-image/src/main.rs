//! `kata-image` builds what a guest boots: the small kernel, the initrd, the rootfs image; the
//! first two also from a distribution's packages.

mod progress;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kata_initrd::{KernelPackage, Progress, build_initrd, extract_vmlinux, fetch_kernel_package};
use kata_kernel::{KernelOptions, build_kernel, cache_directory};
use kata_rootfs::{FileSystem, Init, RootfsOptions, Suite, build_rootfs, fetch_with_dependencies};

use progress::{Format, Teller};

/// Builds what a guest boots, without root; the same input gives the same bytes.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// How progress and results are told
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download a distribution kernel's packages with apt, and print their files
    FetchKernel {
        /// The kernel's package, or a meta package that depends on it
        #[arg(long, default_value = "linux-image-cloud-amd64")]
        package: String,
        /// The directory to download to; packages already in it are removed
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Build the small kernel from Debian's source, or take it out of the cache; or take a
    /// distribution's out of its package
    Kernel(KernelCommand),
    /// Build an initrd from the agent, and the modules of a kernel's package if one is given
    Initrd {
        #[command(flatten)]
        kernel: Packages,
        /// The agent, statically linked
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// A module to add to those that every guest needs (can be repeated)
        #[arg(long = "module", value_name = "NAME", requires = "packages")]
        modules: Vec<String>,
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Build a rootfs image: a disk with the agent and, if wanted, packages of Debian
    Rootfs(RootfsCommand),
}

#[derive(Debug, Args)]
struct Packages {
    /// A package (.deb) of the kernel; repeat it for a kernel that ships as several
    #[arg(long = "kernel-package", value_name = "DEB")]
    packages: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct KernelCommand {
    #[command(flatten)]
    kernel: Packages,
    /// The package with the source [default: linux-source-6.12, else what linux-source depends on]
    #[arg(long, value_name = "PACKAGE", conflicts_with = "packages")]
    source: Option<String>,
    /// How many processes compile at once [default: as many as there are processors]
    #[arg(short, long, conflicts_with = "packages")]
    jobs: Option<usize>,
    /// Where built kernels are kept [default: $KATA_CACHE_DIR, else /var/cache/kata-containers for
    /// root, else $XDG_CACHE_HOME/kata-containers]
    #[arg(long, value_name = "DIR", conflicts_with = "packages")]
    cache: Option<PathBuf>,
    /// Fail instead of building when the cache does not have it
    #[arg(long, conflicts_with = "packages")]
    only_cached: bool,
    /// Also write the compressed kernel (bzImage)
    #[arg(long, value_name = "FILE")]
    vmlinuz: Option<PathBuf>,
    /// The file to write the uncompressed kernel to (ELF with a PVH entry point)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct RootfsCommand {
    /// The agent, statically linked
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// The image's file system
    #[arg(long, value_enum, default_value_t = Kind::Erofs)]
    file_system: Kind,
    /// What the kernel starts: the agent, or systemd of Debian's package, of which the agent is a
    /// service
    #[arg(long, value_enum, default_value_t = FirstProcess::Agent)]
    init: FirstProcess,
    /// A Debian package to add with all that it depends on, unpacked, not configured (can be
    /// repeated)
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// The release of Debian that packages are taken from
    #[arg(long, default_value = "stable")]
    suite: String,
    /// Add a hash tree, by which the guest's kernel checks every block
    #[arg(long)]
    verity: bool,
    /// Write a configuration drop-in that names the image, its file system and its root hash
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Erofs,
    Ext4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FirstProcess {
    Agent,
    Systemd,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let teller = Teller::new(cli.format);
    match run(cli.command, &teller) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, teller: &Teller) -> Result<()> {
    match command {
        Command::FetchKernel { package, output } => {
            teller.stage(&format!("download {package}"));
            for file in fetch_kernel_package(&package, &output)? {
                println!("{}", file.display());
            }
            Ok(())
        }
        Command::Kernel(command) if command.kernel.packages.is_empty() => {
            small_kernel(&command, teller)
        }
        Command::Kernel(command) => distribution_kernel(&command, teller),
        Command::Initrd { kernel, agent, modules, output } => {
            let package = open(&kernel, teller)?;
            let initrd = build_initrd(&read_agent(&agent)?, package.as_ref(), &modules)
                .with_context(|| {
                    format!("cannot build an initrd from the agent {}", agent.display())
                })?;
            write(&output, &initrd, teller)
        }
        Command::Rootfs(command) => rootfs(&command, teller),
    }
}

fn small_kernel(command: &KernelCommand, teller: &Teller) -> Result<()> {
    let cache = command.cache.clone().map_or_else(cache_directory, Ok)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let options = KernelOptions {
        source: command.source.clone(),
        cache,
        jobs: command.jobs.unwrap_or(processors).max(1),
        only_cached: command.only_cached,
    };
    let Some(kernel) = build_kernel(&options, teller).context("cannot build the small kernel")?
    else {
        bail!("the small kernel is not in the cache {}", options.cache.display());
    };
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    if let Some(vmlinuz) = &command.vmlinuz {
        write(vmlinuz, &read(&kernel.vmlinuz)?, teller)?;
    }
    write(&command.output, &read(&kernel.vmlinux)?, teller)?;
    teller.fact("source", &kernel.version);
    teller.fact("key", &kernel.key);
    Ok(())
}

fn distribution_kernel(command: &KernelCommand, teller: &Teller) -> Result<()> {
    let package = open(&command.kernel, teller)?.context("no kernel package is named")?;
    let vmlinux = extract_vmlinux(package.vmlinuz())
        .with_context(|| format!("cannot use the kernel {} of the package", package.release()))?;
    if let Some(vmlinuz) = &command.vmlinuz {
        write(vmlinuz, package.vmlinuz(), teller)?;
    }
    write(&command.output, &vmlinux, teller)
}

fn rootfs(command: &RootfsCommand, teller: &Teller) -> Result<()> {
    let agent = read_agent(&command.agent)?;
    // It holds the packages until they are in the image.
    let place = tempfile::tempdir().context("cannot make a directory")?;
    let mut names = command.packages.clone();
    let init = match command.init {
        FirstProcess::Agent => Init::Agent,
        FirstProcess::Systemd => {
            // With the library that it loads modules by, if there are any; it is only recommended.
            names.extend(["systemd", "libkmod2"].map(str::to_owned));
            Init::Systemd
        }
    };
    let packages = if names.is_empty() {
        Vec::new()
    } else {
        teller.stage(&format!("download packages of {}", command.suite));
        let suite = Suite::new(&command.suite)?;
        fetch_with_dependencies(&suite, &names, place.path())?
    };
    teller.stage("build the file system");
    let file_system = match command.file_system {
        Kind::Erofs => FileSystem::Erofs,
        Kind::Ext4 => FileSystem::Ext4,
    };
    let image = build_rootfs(&RootfsOptions {
        agent: &agent,
        packages: &packages,
        init,
        file_system,
        verity: command.verity,
    })
    .context("cannot build the rootfs image")?;
    write(&command.output, &image.disk, teller)?;
    let params = image.verity.map(|verity| verity.kernel_verity_params()).unwrap_or_default();
    if let Some(config) = &command.config {
        let path = std::path::absolute(&command.output).context("cannot tell the image's path")?;
        write(config, drop_in(&path, file_system, &params)?.as_bytes(), teller)?;
    }
    if command.verity {
        teller.fact("kernel_verity_params", &params);
    }
    Ok(())
}

/// A configuration file that chooses this image and nothing else.
fn drop_in(image: &Path, file_system: FileSystem, verity: &str) -> Result<String> {
    let image = image.to_str().context("the image's path is not UTF-8")?;
    Ok(format!(
        "# Boots this image instead of an initrd. Written by kata-image.\n[hypervisor.qemu]\n\
         initrd = \"\"\nimage = {image:?}\nrootfs_type = \"{}\"\nkernel_verity_params = \"{verity}\"\n",
        file_system.name()
    ))
}

fn read_agent(agent: &Path) -> Result<Vec<u8>> {
    fs::read(agent).with_context(|| format!("cannot read the agent {}", agent.display()))
}

/// The kernel of the named packages; `None` if none is named.
fn open(kernel: &Packages, teller: &Teller) -> Result<Option<KernelPackage>> {
    if kernel.packages.is_empty() {
        return Ok(None);
    }
    let package = KernelPackage::open(&kernel.packages)?;
    teller.stage(&format!("kernel {}", package.release()));
    Ok(Some(package))
}

/// Writes a file so that it is whole or not there.
fn write(output: &Path, content: &[u8], teller: &Teller) -> Result<()> {
    let context = || format!("cannot write {}", output.display());
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).with_context(context)?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(context)?;
    file.write_all(content).with_context(context)?;
    file.persist(output).with_context(context)?;
    teller.file(output, content.len() as u64);
    Ok(())
}
