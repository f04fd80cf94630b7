//! From inputs to a kernel: look into the cache, else unpack, configure, compile.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_initrd::Progress;

use crate::additions;
use crate::cache::{CacheError, Kernel};
use crate::inputs::Inputs;
use crate::source::unpack;
use crate::{Configuration, ConfigurationError, SourceError};

/// Who and where a kernel says it was built.
const BUILDER: &str = "kata";

/// About how many steps make takes for these fragments: for progress only.
const COMPILED: u64 = 2100;

/// Lines of the compiler's last words that an error quotes.
const QUOTED_LINES: usize = 12;

/// Why no kernel could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The fragments, or what Kconfig made of them.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program is missing.
    #[error(
        "cannot run {program}; building a kernel takes gcc, make, binutils, flex, bison, bc, lz4 and libelf-dev"
    )]
    Program {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A program failed.
    #[error("{what} failed: {last_words}")]
    Failed {
        /// What it was to do.
        what: &'static str,
        /// The last lines that it said.
        last_words: String,
    },
    /// The tree cannot be read or written.
    #[error("cannot use the build tree {}", path.display())]
    Tree {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// What to build, and how.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// The source package; `None` for the usual one (see [`Source::find`]).
    pub source: Option<String>,
    /// The cache; see [`crate::cache_directory`].
    pub cache: PathBuf,
    /// How many processes compile at once, at least 1.
    pub jobs: usize,
}

/// The kernel of these options, built unless the cache has it.
///
/// # Errors
/// When a symbol of the configuration is dropped, or a package, a program or the compilation fails.
/// Nothing is left but, maybe, an empty cache.
pub fn build_kernel(
    options: &KernelOptions,
    progress: &dyn Progress,
) -> Result<Kernel, BuildError> {
    let configuration = Configuration::merged()?;
    let inputs = Inputs::find(options.source.as_deref(), &configuration)?;
    let kernel = Kernel::of(&options.cache, &inputs.key());
    if kernel.vmlinux.exists() {
        return Ok(kernel);
    }
    let source = &inputs.source;
    fs::create_dir_all(&options.cache).map_err(tree_error(&options.cache))?;
    let work = tempfile::Builder::new()
        .prefix("kernel-build-")
        .tempdir_in(&options.cache)
        .map_err(tree_error(&options.cache))?;
    progress.stage(&format!("download {} {}", source.package, source.version));
    let package = source.fetch(&work.path().join("package"), progress)?;
    progress.stage("unpack");
    let tree = Tree { path: work.path().join("linux") };
    let time = unpack(&package, &tree.path, progress)?;
    additions::add_to(&tree.path).map_err(|(file, error)| tree_error(&file)(error))?;
    progress.stage("configure");
    tree.configure(&configuration)?;
    progress.stage("compile");
    progress.total(COMPILED);
    tree.compile(options.jobs, &date(time)?, progress)?;
    progress.stage("strip");
    let stripped = work.path().join("stripped");
    let mut strip = tool("strip");
    strip.arg("--strip-all").arg("-o").arg(&stripped).arg(tree.path.join("vmlinux"));
    output(&mut strip, "stripping the kernel")?;
    let bzimage = tree.path.join("arch/x86/boot/bzImage");
    let config = tree.path.join(".config");
    kernel.store(&stripped, &bzimage, &config)?;
    Ok(kernel)
}

/// An unpacked source, in which the kernel is built: only so are all paths in it relative.
struct Tree {
    path: PathBuf,
}

impl Tree {
    fn make(&self) -> Command {
        let mut make = tool("make");
        make.arg("-C").arg(&self.path).args(ABSENT);
        make
    }

    /// Everything off, but for what the fragments want, and what that needs.
    fn configure(&self, configuration: &Configuration) -> Result<(), BuildError> {
        let wanted = self.path.join("kata.config");
        fs::write(&wanted, configuration.to_kconfig()).map_err(tree_error(&wanted))?;
        let mut make = self.make();
        make.env("KCONFIG_ALLCONFIG", &wanted).arg("allnoconfig");
        output(&mut make, "configuring the kernel")?;
        let made = self.path.join(".config");
        let made = fs::read_to_string(&made).map_err(tree_error(&made))?;
        Ok(configuration.check(&made)?)
    }

    fn compile(&self, jobs: usize, date: &str, progress: &dyn Progress) -> Result<(), BuildError> {
        let mut make = self.make();
        make.arg(format!("-j{jobs}"))
            .args(["vmlinux", "bzImage"])
            // What else would differ from build to build (Linux,
            // Documentation/kbuild/reproducible-builds.rst).
            .env("KBUILD_BUILD_TIMESTAMP", date)
            .env("KBUILD_BUILD_USER", BUILDER)
            .env("KBUILD_BUILD_HOST", BUILDER)
            .env("KBUILD_BUILD_VERSION", "1");
        // One pipe for both, so that the last words are in order.
        let program = |source| BuildError::Program { program: "make".to_owned(), source };
        let (reader, writer) = io::pipe().map_err(program)?;
        make.stdout(writer.try_clone().map_err(program)?).stderr(writer);
        let mut child = make.spawn().map_err(program)?;
        // The command still holds the pipe's other end, which would never close.
        drop(make);
        let mut last = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(file) = line.strip_prefix("  ") {
                progress.step(file.split_whitespace().last().unwrap_or_default());
            }
            last.push_back(line);
            if last.len() > QUOTED_LINES {
                last.pop_front();
            }
        }
        if child.wait().map_err(program)?.success() {
            return Ok(());
        }
        let last_words = Vec::from(last).join(" | ");
        Err(BuildError::Failed { what: "compiling the kernel", last_words })
    }
}

/// A time as the kernel shows it (`uname -v`).
fn date(seconds: u64) -> Result<String, BuildError> {
    let mut date = tool("date");
    date.args(["--utc", &format!("--date=@{seconds}"), "+%a %b %e %H:%M:%S UTC %Y"]);
    let text = output(&mut date, "formatting a date")?;
    Ok(text.trim_end().to_owned())
}

/// Programs that no kernel of ours needs. The configuration, which the kernel carries, has their
/// versions if make finds them.
const ABSENT: [&str; 3] = ["RUSTC=none", "BINDGEN=none", "PAHOLE=none"];

/// A program that makes bytes of a kernel, or is asked for its version. Of the caller's environment
/// it has nothing but where programs and temporary files are: a CC, KCFLAGS or LLVM of the caller's
/// would be in the kernel and not in its hash, and a Makefile's options are for its own make.
pub(crate) fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// What a program says that succeeds.
pub(crate) fn output(command: &mut Command, what: &'static str) -> Result<String, BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| BuildError::Program { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = words.lines().collect();
    let last_words = lines[lines.len().saturating_sub(QUOTED_LINES)..].join(" | ");
    Err(BuildError::Failed { what, last_words })
}

fn tree_error(path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Tree { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn make_gets_nothing_of_the_callers_environment_but_where_things_are() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("Makefile"), "all:\n\t@env\n").unwrap();
        let text =
            output(&mut Tree { path: directory.path().to_owned() }.make(), "asking").unwrap();
        // Cargo runs this with variables of its own.
        assert!(env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert!(!text.contains("CARGO_"), "{text}");
        assert!(text.contains("\nPATH=") || text.starts_with("PATH="), "{text}");
        assert!(text.contains("RUSTC=none"), "{text}");
    }
}
