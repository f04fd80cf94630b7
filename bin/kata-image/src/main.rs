//! `kata-image` builds what a guest boots (kernel and initrd) from a distribution's packages.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use kata_initrd::{KernelPackage, build_initrd, extract_vmlinux, fetch_kernel_package};

/// Builds what a guest boots, without root; the same input gives the same bytes.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
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
    /// Take the uncompressed kernel (ELF, with a PVH entry point) out of its package
    Kernel {
        #[command(flatten)]
        kernel: Kernel,
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Build an initrd from the agent and the modules of a kernel's package
    Initrd {
        #[command(flatten)]
        kernel: Kernel,
        /// The agent, statically linked
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// A module to add to those that every guest needs (can be repeated)
        #[arg(long = "module", value_name = "NAME")]
        modules: Vec<String>,
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Kernel {
    /// A package (.deb) of the kernel; repeat it for a kernel that ships as several
    #[arg(long = "kernel-package", value_name = "DEB", required = true)]
    packages: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::FetchKernel { package, output } => {
            eprintln!("downloading {package}");
            for file in fetch_kernel_package(&package, &output)? {
                println!("{}", file.display());
            }
            Ok(())
        }
        Command::Kernel { kernel, output } => {
            let package = open(&kernel)?;
            let vmlinux = extract_vmlinux(package.vmlinuz()).with_context(|| {
                format!("cannot use the kernel {} of the package", package.release())
            })?;
            write(&output, &vmlinux)
        }
        Command::Initrd { kernel, agent, modules, output } => {
            let package = open(&kernel)?;
            let program = fs::read(&agent)
                .with_context(|| format!("cannot read the agent {}", agent.display()))?;
            let initrd = build_initrd(&program, &package, &modules).with_context(|| {
                format!("cannot build an initrd from the agent {}", agent.display())
            })?;
            write(&output, &initrd)
        }
    }
}

fn open(kernel: &Kernel) -> Result<KernelPackage> {
    let package = KernelPackage::open(&kernel.packages)?;
    eprintln!("kernel {}", package.release());
    Ok(package)
}

/// Writes a file so that it is whole or not there.
fn write(output: &Path, content: &[u8]) -> Result<()> {
    let context = || format!("cannot write {}", output.display());
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(context)?;
    file.write_all(content).with_context(context)?;
    file.persist(output).with_context(context)?;
    eprintln!("wrote {} ({:.1} MiB)", output.display(), content.len() as f64 / 1_048_576.0);
    Ok(())
}
