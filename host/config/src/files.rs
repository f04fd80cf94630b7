//! Which files make up the configuration, and whether root may trust them.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::ConfigError;

/// Where the file lies on a host that has its own.
const OF_HOST: &str = "/etc/kata-containers";

/// Where the file lies below a prefix.
const BELOW_PREFIX: &str = "share/defaults/kata-containers";

/// The name of containerd's shim is these two with a variant between them, or
/// `containerd-shim-kata-v2`.
const SHIM: (&str, &str) = ("containerd-shim-kata-", "-v2");

/// The directory of drop-ins, beside the file.
const DROP_INS: &str = "config.d";

/// No sensible configuration comes near it; a mistaken path to something huge stops here.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A file's name and content.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: Arc<PathBuf>,
    pub(crate) text: String,
}

/// The installation prefix of a program that is installed as `<prefix>/bin/…` or as
/// `<prefix>/libexec/kata-containers/…`; `/usr/local` when the path is too short to tell.
#[must_use]
pub fn prefix_of(program: &Path) -> PathBuf {
    let folder = program.parent();
    let folder = folder.and_then(|folder| match folder.ends_with("libexec/kata-containers") {
        true => folder.parent(),
        false => Some(folder),
    });
    let prefix = folder.and_then(Path::parent).filter(|prefix| prefix.is_absolute());
    prefix.unwrap_or(Path::new("/usr/local")).to_path_buf()
}

/// Where the program `name` is, below the installation's prefix, that only other programs of this
/// software start.
#[must_use]
pub fn companion(prefix: &Path, name: &str) -> PathBuf {
    prefix.join("libexec/kata-containers").join(name)
}

/// Which configuration a program asks for by the name that it was started under: `qemu` for
/// `containerd-shim-kata-qemu-v2`, which containerd runs for `io.containerd.kata-qemu.v2`. `None`
/// for every other name, and where the word between is none that a file name should be made of.
#[must_use]
pub fn variant_of(program: &Path) -> Option<&str> {
    let name = program.file_name()?.to_str()?;
    let variant = name.strip_prefix(SHIM.0)?.strip_suffix(SHIM.1)?;
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (!variant.is_empty() && variant.bytes().all(is_plain)).then_some(variant)
}

/// The files that are looked for when none is named, first choice first: the host's own, then the
/// one installed under `prefix` and under the usual prefixes. Their name is `configuration.toml`,
/// with a variant `configuration-VARIANT.toml`.
#[must_use]
pub fn candidates(variant: Option<&str>, prefix: &Path) -> Vec<PathBuf> {
    let name = match variant {
        Some(variant) => format!("configuration-{variant}.toml"),
        None => "configuration.toml".to_owned(),
    };
    let mut files = vec![Path::new(OF_HOST).join(&name)];
    for prefix in [prefix, Path::new("/usr/local"), Path::new("/usr"), Path::new("/opt/kata")] {
        let file = prefix.join(BELOW_PREFIX).join(&name);
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// Finds the configuration file: the one named by the environment (`KATA_CONF_FILE`), else the one
/// named by the shim's option (`ConfigPath`), else the first of [`candidates`] that exists, else
/// `None`: the defaults hold.
///
/// A named file must exist, and so must one of those of a variant. An empty name counts as none.
/// The result has no symbolic links, so that drop-ins are looked for beside the real file.
pub fn locate(
    option: Option<&Path>,
    env: Option<&Path>,
    variant: Option<&str>,
    prefix: &Path,
) -> Result<Option<PathBuf>, ConfigError> {
    for (named, by) in [(env, "KATA_CONF_FILE"), (option, "ConfigPath")] {
        let Some(path) = named.filter(|path| !path.as_os_str().is_empty()) else { continue };
        let path = path.to_path_buf();
        if !path.is_absolute() {
            return Err(ConfigError::Relative { path, by });
        }
        return match path.canonicalize() {
            Ok(real) => Ok(Some(real)),
            Err(source) => Err(ConfigError::Missing { path, by, source }),
        };
    }
    let candidates = candidates(variant, prefix);
    for path in &candidates {
        match path.canonicalize() {
            Ok(real) => return Ok(Some(real)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ConfigError::Read { path: path.clone(), source }),
        }
    }
    match variant {
        Some(variant) => {
            Err(ConfigError::NoVariant { variant: variant.to_owned(), looked_for: candidates })
        }
        None => Ok(None),
    }
}

/// Reads the file and its drop-ins (`config.d/*.toml` beside it, in byte order of their names;
/// symbolic links are followed, other names are not looked at).
pub(crate) fn read_with_drop_ins(base: &Path) -> Result<Vec<Source>, ConfigError> {
    let mut sources = vec![read(base)?];
    let Some(directory) = base.parent().map(|parent| parent.join(DROP_INS)) else {
        return Ok(sources);
    };
    for path in drop_ins(&directory)? {
        sources.push(read(&path)?);
    }
    Ok(sources)
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: directory.to_path_buf(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let metadata = directory.metadata().map_err(failed)?;
    check_trust(directory, metadata.uid(), metadata.mode(), rustix::process::geteuid().is_root())?;

    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(files)
}

/// Reads one file. It is opened once and checked open, so that what was checked is what is read.
fn read(path: &Path) -> Result<Source, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_path_buf(), source };
    // Not blocking, for a fifo of that name would otherwise hold us for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let open = File::from(open);
    let metadata = open.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    check_trust(path, metadata.uid(), metadata.mode(), rustix::process::geteuid().is_root())?;

    let mut text = String::new();
    open.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    Ok(Source { file: Arc::new(path.to_path_buf()), text })
}

/// When running as root, only root may be able to write what decides which programs run.
fn check_trust(path: &Path, owner: u32, mode: u32, as_root: bool) -> Result<(), ConfigError> {
    let shown = path.display();
    let (problem, remedy) = if !as_root {
        return Ok(());
    } else if owner != 0 {
        (format!("belongs to user {owner}"), format!("run: chown root {shown}"))
    } else if mode & 0o022 != 0 {
        let bits = mode & 0o7777;
        (
            format!("is writable by group or others (mode {bits:04o})"),
            format!("run: chmod go-w {shown}"),
        )
    } else {
        return Ok(());
    };
    Err(ConfigError::Untrusted { path: path.to_path_buf(), problem, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_wins_over_option() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (env, option) = (dir.join("env.toml"), dir.join("option.toml"));
        std::fs::write(&env, "").unwrap();
        std::fs::write(&option, "").unwrap();

        assert_eq!(locate(Some(&option), Some(&env), None, &dir).unwrap(), Some(env.clone()));
        assert_eq!(locate(Some(&option), None, Some("qemu"), &dir).unwrap(), Some(option.clone()));
        assert_eq!(locate(Some(&option), Some(Path::new("")), None, &dir).unwrap(), Some(option));
    }

    #[test]
    fn named_file_must_exist_and_be_absolute() {
        let prefix = Path::new("/usr/local");
        let error = locate(None, Some(Path::new("/nowhere/x.toml")), None, prefix).unwrap_err();
        assert!(error.to_string().contains("KATA_CONF_FILE"), "{error}");
        let error = locate(Some(Path::new("x.toml")), None, None, prefix).unwrap_err();
        assert!(error.to_string().contains("not an absolute path"), "{error}");
    }

    #[test]
    fn candidates_begin_with_etc_then_the_own_prefix_each_once() {
        let files = candidates(None, Path::new("/usr"));
        assert_eq!(files.len(), 4);
        assert_eq!(files[0], Path::new("/etc/kata-containers/configuration.toml"));
        assert_eq!(files[1], Path::new("/usr").join(BELOW_PREFIX).join("configuration.toml"));
    }

    #[test]
    fn runtimes_name_chooses_a_configuration_of_its_own() {
        let variant = |name: &'static str| variant_of(Path::new(name));
        assert_eq!(variant("/usr/bin/containerd-shim-kata-qemu-v2"), Some("qemu"));
        assert_eq!(variant("containerd-shim-kata-qemu-tdx-v2"), Some("qemu-tdx"));
        for name in [
            "containerd-shim-kata-v2",
            "kata-runtime",
            "containerd-shim-kata--v2",
            "containerd-shim-kata-A-v2",
        ] {
            assert_eq!(variant(name), None, "{name}");
        }

        let prefix = tempfile::tempdir().unwrap();
        let prefix = prefix.path().canonicalize().unwrap();
        let folder = prefix.join(BELOW_PREFIX);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("configuration.toml"), "").unwrap();
        let error = locate(None, None, Some("none-such"), &prefix).unwrap_err().to_string();
        assert!(error.contains("io.containerd.kata-none-such.v2"), "{error}");
        assert!(error.contains("/etc/kata-containers/configuration-none-such.toml, "), "{error}");
        let own = folder.join("configuration-none-such.toml");
        std::fs::write(&own, "").unwrap();
        assert_eq!(locate(None, None, Some("none-such"), &prefix).unwrap(), Some(own));
    }

    #[test]
    fn prefix_is_two_above_the_program() {
        assert_eq!(prefix_of(Path::new("/opt/k/bin/shim")), Path::new("/opt/k"));
        assert_eq!(prefix_of(Path::new("shim")), Path::new("/usr/local"));
    }

    #[test]
    fn drop_ins_come_in_byte_order_and_only_toml() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("configuration.toml");
        let drop_ins = dir.path().join(DROP_INS);
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(&base, "").unwrap();
        for name in ["b.toml", "10-a.toml", "Z.toml", "9.toml", "note.txt", "b.toml~"] {
            std::fs::write(drop_ins.join(name), "").unwrap();
        }

        let sources = read_with_drop_ins(&base).unwrap();
        let names: Vec<_> =
            sources.iter().map(|source| source.file.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["configuration.toml", "10-a.toml", "9.toml", "Z.toml", "b.toml"]);
    }

    #[test]
    fn root_refuses_what_others_could_have_written() {
        let check = |owner, mode, as_root| check_trust(Path::new("/f"), owner, mode, as_root);
        assert!(check(0, 0o100_644, true).is_ok());
        assert!(check(1000, 0o100_666, false).is_ok());
        let error = check(1000, 0o100_644, true).unwrap_err().to_string();
        assert!(error.contains("user 1000") && error.contains("chown root /f"), "{error}");
        let error = check(0, 0o100_664, true).unwrap_err().to_string();
        assert!(error.contains("mode 0664") && error.contains("chmod go-w /f"), "{error}");
    }

    #[test]
    fn directory_in_place_of_the_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(ConfigError::Read { .. })));
    }
}
