//! Templates: a guest that has booted and whose agent waits for its first request, saved, so that
//! others go on from there and need not boot. See docs/adr/0017.
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

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use kata_hypervisor::HypervisorError;
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

/// What a template says of a VM.
#[derive(Debug)]
pub(crate) enum Found {
    /// It is of that VM.
    Saved(Saved),
    /// There is none, or it is of another VM; why, in a few words.
    Not(String),
}

impl Saved {
    /// Looks whether the template in `directory` is of the VM that `key` describes.
    pub(crate) fn find(directory: &Path, key: &Key) -> io::Result<Found> {
        let text = match fs::read_to_string(directory.join(KEY)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Found::Not("there is none".to_owned()));
            }
            Err(error) => return Err(named(&directory.join(KEY), &error)),
        };
        if let Some(other) = key.difference(&text) {
            return Ok(Found::Not(format!("it was made with another {other}")));
        }
        let open = |name| {
            let path = directory.join(name);
            File::open(&path).map_err(|error| named(&path, &error))
        };
        let saved = Self { memory: open(MEMORY)?, state: open(STATE)? };
        // One that was replaced meanwhile would be half of this and half of that.
        let again = fs::read_to_string(directory.join(KEY)).unwrap_or_default();
        if again != text {
            return Ok(Found::Not("it was being replaced".to_owned()));
        }
        Ok(Found::Saved(saved))
    }

    /// A pipe that says what the devices have to say, for one VM. A thread fills it, until all is
    /// said or nobody listens.
    pub(crate) fn state(&self) -> io::Result<OwnedFd> {
        let mut state = Vec::new();
        (&self.state).take(MOST_STATE).read_to_end(&mut state)?;
        let (reader, mut writer) = io::pipe()?;
        // A QEMU that ends before it has heard all says why itself.
        std::thread::spawn(move || writer.write_all(&state));
        Ok(reader.into())
    }
}

/// What of a guest that goes on is not there yet when QEMU starts.
#[derive(Debug)]
pub(crate) struct Awakening {
    /// Copies the memory, while QEMU starts.
    copy: JoinHandle<io::Result<()>>,
    /// Says what the devices were doing.
    state: Arc<OwnedFd>,
}

impl Saved {
    /// Begins to fill the memory of one VM, which is all zero.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn awaken(self, memory: MemoryFile) -> io::Result<Awakening> {
        let state = Arc::new(self.state()?);
        let copy = tokio::task::spawn_blocking(move || memory.fill(&self.memory));
        Ok(Awakening { copy, state })
    }
}

/// Lets a guest go on, when its memory is there, with what its devices were doing, and gives it its
/// own devices. Never resolves where QEMU ends over a state that it cannot read.
pub(crate) async fn go_on(
    qmp: &Qmp,
    Awakening { copy, state }: Awakening,
    own: &OwnDevices,
) -> Result<(), HypervisorError> {
    qmp.execute(Command::MigrateSetCapabilities(CAPABILITIES)).await?;
    qmp.pass_fd(STATE_FD, &state).await?;
    let copied = copy.await.map_err(io::Error::other).and_then(|copied| copied);
    copied.map_err(|source| HypervisorError::Setup { what: "the template's memory", source })?;
    qmp.execute(Command::MigrateIncoming { fd: STATE_FD }).await?;
    qmp.migrated().await;
    own.plug(qmp).await
}

/// Puts a template into `directory`, in place of one that is there. On an error the old one stays,
/// or none.
fn store(directory: &Path, key: &Key, memory: &MemoryFile, state: &[u8]) -> io::Result<()> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    fs::create_dir_all(parent).map_err(|error| named(parent, &error))?;
    let new = parent.join(format!("{name}.new"));
    remove_template(&new)?;
    let stored = fill(&new, key, memory, state)
        .map_err(|error| named(&new, &error))
        .and_then(|()| remove_template(directory))
        .and_then(|()| fs::rename(&new, directory).map_err(|error| named(directory, &error)));
    if stored.is_err() {
        // What counts is why it failed.
        let _ = remove_template(&new);
    }
    stored
}

fn fill(new: &Path, key: &Key, memory: &MemoryFile, state: &[u8]) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(new)?;
    let create =
        |name| File::options().write(true).create_new(true).mode(FILE_MODE).open(new.join(name));
    memory.save(&create(MEMORY)?)?;
    create(STATE)?.write_all(state)?;
    create(KEY)?.write_all(key.text().as_bytes())
}

/// Takes a template away; none is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_template(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(directory, &error)),
        _ => Ok(()),
    }
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
        match Saved::find(directory, key).unwrap() {
            Found::Saved(_) => "found".to_owned(),
            Found::Not(why) => why,
        }
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

    #[test]
    fn state_comes_through_a_pipe_for_each_vm() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("template");
        let key = Key::from_lines([("kernel", "k".to_owned())]);
        // More than a pipe holds.
        let state = vec![7; 300_000];
        store(&directory, &key, &MemoryFile::new(1).unwrap(), &state).unwrap();
        for _ in 0..2 {
            let Found::Saved(saved) = Saved::find(&directory, &key).unwrap() else { panic!() };
            let mut told = Vec::new();
            File::from(saved.state().unwrap()).read_to_end(&mut told).unwrap();
            assert!(told == state);
        }
    }
}
