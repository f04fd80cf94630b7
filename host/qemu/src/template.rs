//! Templates: a guest that has booted and whose agent waits for its first request, saved, so that
//! others go on from there and need not boot. See docs/adr/0018.
//!
//! ```text
//!   make:  boot ─▶ the agent opens its port ─▶ migrate ─▶ DIRECTORY/key     what it was made of
//!                                                         DIRECTORY/memory  its memory, with holes
//!                                                         DIRECTORY/state   its devices
//!   boot:  the same key? ─▶ a copy of the memory, QEMU with the same devices, which it is told
//!          the state of ─▶ the VM's own devices in free ports of the PCI bus, where the agent
//!          looks for them
//! ```
//!
//! A guest that goes on has the entropy, the clock and the devices of the one that was saved;
//! whoever boots one gives it its own before anything else ([kata_hypervisor::Vm::is_a_copy]).

mod key;
mod make;
mod memory;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kata_hypervisor::HypervisorError;
use kata_linux::process::Child;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use tokio::task::JoinHandle;

use crate::own_devices::OwnDevices;
use crate::qmp::{Command, Qmp};

pub(crate) use key::{Key, Made};
pub(crate) use make::make;
pub(crate) use memory::MemoryFile;

/// The files of a template.
const KEY: &str = "key";
const MEMORY: &str = "memory";
const STATE: &str = "state";

/// Nobody but root: the memory of a guest is in there, and what a guest is made from.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// More than the devices of any guest have to say (they say some 100 KiB).
const MOST_STATE: u64 = 16 << 20;

/// The name under which QEMU keeps what it writes the state of its devices to, or reads it from.
const STATE_FD: &str = "state";

/// What of a migration is switched on: memory that lies in a file stays there, and only the rest is
/// saved or read; and QEMU says when it is.
const CAPABILITIES: &[&str] = &["x-ignore-shared", "events"];

/// A template that is there, for the VM that is wanted.
#[derive(Debug)]
pub(crate) struct Saved {
    memory: File,
    state: File,
}

impl Saved {
    /// The template in `directory`, if it is of the VM that `key` describes; else why it cannot be
    /// used, in a few words.
    pub(crate) fn find(directory: &Path, key: &Key) -> Result<Self, String> {
        // All of one template, also where another takes its place meanwhile.
        let place = match File::open(directory) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("there is none".to_owned());
            }
            Err(error) => return Err(format!("it cannot be opened: {error}")),
        };
        let open = |name| {
            let opened = openat(&place, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            opened.map(File::from).map_err(|errno| format!("its file {name} is not there: {errno}"))
        };
        let written = io::read_to_string(open(KEY)?).map_err(|error| error.to_string())?;
        match key.difference(&written) {
            Some(other) => Err(format!("it was made with another {other}")),
            None => Ok(Self { memory: open(MEMORY)?, state: open(STATE)? }),
        }
    }

    /// Begins to fill the memory of one VM, which is all zero.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn awaken(self, memory: MemoryFile) -> io::Result<Awakening> {
        let Self { memory: saved, state } = self;
        let state = Arc::new(pipe_of(state)?);
        let copy = tokio::task::spawn_blocking(move || memory.fill(&saved));
        Ok(Awakening { copy, state })
    }
}

/// A pipe that says what the file says. It is filled until all is said, or until nobody listens: a
/// QEMU that ends before says why itself.
fn pipe_of(file: File) -> io::Result<OwnedFd> {
    let (reader, mut writer) = io::pipe()?;
    tokio::task::spawn_blocking(move || io::copy(&mut file.take(MOST_STATE), &mut writer));
    Ok(reader.into())
}

/// What of a guest that goes on is not there yet when QEMU starts.
#[derive(Debug)]
pub(crate) struct Awakening {
    /// Copies the memory, while QEMU starts.
    copy: JoinHandle<io::Result<()>>,
    /// Says what the devices were doing.
    state: Arc<OwnedFd>,
}

/// Lets a guest go on, when its memory is there, with what its devices were doing, and gives it its
/// own devices. `vmm` is QEMU, which ends over a state that it cannot read.
pub(crate) async fn go_on(
    vmm: &Child,
    qmp: &Qmp,
    Awakening { copy, state }: Awakening,
    own: &OwnDevices,
) -> Result<(), HypervisorError> {
    let goes_on = async {
        qmp.execute(Command::MigrateSetCapabilities(CAPABILITIES)).await?;
        qmp.pass_fd(STATE_FD, &state).await?;
        drop(state);
        let copied = copy.await.map_err(io::Error::other).and_then(|copied| copied);
        copied
            .map_err(|source| HypervisorError::Setup { what: "the template's memory", source })?;
        qmp.execute(Command::MigrateIncoming { fd: STATE_FD }).await?;
        qmp.migrated().await;
        own.plug(qmp).await
    };
    let died = HypervisorError::of_death("QEMU".to_owned(), vmm);
    let outcome = tokio::select! {
        biased;
        error = died => Err(error),
        outcome = goes_on => outcome,
    };
    outcome.map_err(|error| HypervisorError::Template { source: Box::new(error) })
}

/// Puts a template into `directory`, in place of one that is there. On an error the old one stays,
/// or none.
fn store(directory: &Path, key: &Key, memory: &MemoryFile, state: &[u8]) -> io::Result<()> {
    let new = being_made(directory)?;
    let parent = directory.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|error| named(parent, &error))?;
    let _alone = lock(parent)?;
    remove_files(&new)?;
    let stored = fill(&new, key, memory, state)
        .map_err(|error| named(&new, &error))
        .and_then(|()| remove_files(directory))
        .and_then(|()| fs::rename(&new, directory).map_err(|error| named(directory, &error)));
    if stored.is_err() {
        // What counts is why it failed.
        let _ = remove_files(&new);
    }
    stored
}

/// Where a template is until all of it is there.
fn being_made(directory: &Path) -> io::Result<PathBuf> {
    let name = directory.file_name().ok_or_else(|| {
        let problem = "no directory of its own; set `template_path` to one";
        io::Error::other(format!("{}: {problem}", directory.display()))
    })?;
    Ok(directory.with_file_name(format!("{}.new", name.to_string_lossy())))
}

/// One at a time makes or removes templates in a directory.
fn lock(parent: &Path) -> io::Result<File> {
    let parent_directory = File::open(parent).map_err(|error| named(parent, &error))?;
    flock(&parent_directory, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        io::Error::other("another `kata-runtime factory` is at work; wait for its end")
    })?;
    Ok(parent_directory)
}

fn fill(new: &Path, key: &Key, memory: &MemoryFile, state: &[u8]) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(new)?;
    let create =
        |name| File::options().write(true).create_new(true).mode(FILE_MODE).open(new.join(name));
    memory.save(&create(MEMORY)?)?;
    create(STATE)?.write_all(state)?;
    create(KEY)?.write_all(key.text().as_bytes())
}

/// Takes a template away, and what is left of one that was not finished; none is fine.
///
/// # Errors
/// When it cannot be removed, and when the directory holds anything else: then all of it stays.
pub fn remove_template(directory: &Path) -> io::Result<()> {
    let new = being_made(directory)?;
    let parent = directory.parent().unwrap_or(Path::new("/"));
    if !parent.exists() {
        return Ok(());
    }
    let _alone = lock(parent)?;
    remove_files(&new)?;
    remove_files(directory)
}

fn remove_files(directory: &Path) -> io::Result<()> {
    let there = match fs::read_dir(directory) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(named(directory, &error)),
    };
    let names = there.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    let is_ours = |name: &OsString| [KEY, MEMORY, STATE].iter().any(|ours| name == ours);
    if let Some(other) = names.iter().find(|name| !is_ours(name)) {
        return Err(io::Error::other(format!(
            "{} holds {other:?}, which is no part of a template; set `template_path` to a directory of its own",
            directory.display()
        )));
    }
    for name in names {
        fs::remove_file(directory.join(name)).map_err(|error| named(directory, &error))?;
    }
    fs::remove_dir(directory).map_err(|error| named(directory, &error))
}

/// Whether there is a template, of whatever VM.
#[must_use]
pub fn has_template(directory: &Path) -> bool {
    directory.join(KEY).exists()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn found(directory: &Path, key: &Key) -> String {
        Saved::find(directory, key).map_or_else(|why| why, |_| "found".to_owned())
    }

    #[test]
    fn template_is_of_the_vm_that_it_was_made_of() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("vm/template");
        let key = |memory| Key::from_lines([("kernel", "k".to_owned()), ("memory", memory)]);
        let (this, other) = (key("256".to_owned()), key("512".to_owned()));
        assert_eq!(found(&directory, &this), "there is none");
        assert!(!has_template(&directory));
        let memory = MemoryFile::new(1).unwrap();
        for _ in 0..2 {
            store(&directory, &this, &memory, b"devices").unwrap();
        }
        assert!(has_template(&directory));
        assert_eq!(found(&directory, &this), "found");
        assert_eq!(found(&directory, &other), "it was made with another memory");
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(fs::read_dir(directory.parent().unwrap()).unwrap().count(), 1);
        remove_template(&directory).unwrap();
        remove_template(&directory).unwrap();
        assert_eq!(found(&directory, &this), "there is none");
    }

    #[tokio::test]
    async fn state_comes_through_a_pipe_for_each_vm() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("template");
        let key = Key::from_lines([("kernel", "k".to_owned())]);
        // More than a pipe holds.
        let state = vec![7; 300_000];
        store(&directory, &key, &MemoryFile::new(1).unwrap(), &state).unwrap();
        for _ in 0..2 {
            let saved = Saved::find(&directory, &key).unwrap();
            let awakening = saved.awaken(MemoryFile::new(1).unwrap()).unwrap();
            let mut pipe = File::from(Arc::into_inner(awakening.state).unwrap());
            let mut told = Vec::new();
            pipe.read_to_end(&mut told).unwrap();
            assert!(told == state);
            awakening.copy.await.unwrap().unwrap();
        }
    }

    #[test]
    fn directory_with_anything_else_in_it_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("precious");
        fs::create_dir(&directory).unwrap();
        for name in [KEY, "letter"] {
            fs::write(directory.join(name), "x").unwrap();
        }
        let key = Key::from_lines([("kernel", "k".to_owned())]);
        let memory = MemoryFile::new(1).unwrap();
        for refused in [remove_template(&directory), store(&directory, &key, &memory, b"devices")] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("\"letter\", which is no part of a template"), "{error}");
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(remove_template(Path::new("/")).unwrap_err().to_string().contains("of its own"));
    }

    #[test]
    fn one_at_a_time_makes_templates_and_what_one_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("template");
        let alone = lock(place.path()).unwrap();
        assert!(remove_template(&directory).unwrap_err().to_string().contains("at work"));
        drop(alone);
        fs::create_dir(place.path().join("template.new")).unwrap();
        fs::write(place.path().join("template.new/memory"), "half").unwrap();
        remove_template(&directory).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
