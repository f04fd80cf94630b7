//! The kernel's settings: three files in sysfs (the kernel's documentation,
//! admin-guide/mm/ksm.rst), and what was in them before. While the kernel's advisor decides how
//! much is searched (`advisor_mode`, since Linux 6.8), it lets nobody else do so.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;

use crate::throttle::Setting;

/// Where the host's memory is accounted for.
const MEMINFO: &str = "/proc/meminfo";

/// What stops the kernel's search, and what starts it.
const STOP: &str = "0";
const GO: &str = "1";

/// The settings, open for as long as this lives.
#[derive(Debug)]
pub(crate) struct Ksm {
    run: Knob,
    pages_to_scan: Knob,
    sleep_millisecs: Knob,
    /// What was set before is written down here while it is not set. It outlives this process when
    /// that is killed.
    record: PathBuf,
}

impl Ksm {
    /// Opens the files in `dir`. What a killed predecessor has written down at `record` is set
    /// again.
    pub(crate) fn open(dir: &Path, record: PathBuf) -> Result<Self> {
        refuse_advisor(&dir.join(ADVISOR))?;
        let knob = |name| Knob::open(&dir.join(name));
        let mut ksm = Self {
            run: knob("run")?,
            pages_to_scan: knob("pages_to_scan")?,
            sleep_millisecs: knob("sleep_millisecs")?,
            record,
        };
        if let Ok(text) = fs::read_to_string(&ksm.record) {
            if let Some(originals) = originals(&text) {
                for (knob, original) in ksm.knobs().into_iter().zip(originals) {
                    original.clone_into(&mut knob.original);
                }
                tracing::warn!(
                    "a predecessor was killed: restoring the settings that it had found"
                );
            }
            ksm.restore()?;
        }
        Ok(ksm)
    }

    /// The order in which they are written back: nothing runs with a mixture of old and new.
    fn knobs(&mut self) -> [&mut Knob; 3] {
        [&mut self.pages_to_scan, &mut self.sleep_millisecs, &mut self.run]
    }

    /// Sets what `setting` says.
    pub(crate) fn apply(&mut self, setting: Setting) -> Result<()> {
        let Some(scan) = setting.scan() else { return self.restore() };
        if !self.record.exists() {
            let lines: String =
                self.knobs().iter().map(|knob| format!("{}\n", knob.original)).collect();
            fs::write(&self.record, lines)
                .with_context(|| format!("cannot write {}", self.record.display()))?;
        }
        let pages = scan.pages(anonymous_pages()?);
        tracing::debug!(?setting, pages, sleep_millisecs = scan.sleep_millisecs, "apply");
        self.run.set(STOP)?;
        self.pages_to_scan
            .set(&pages.to_string())
            .and_then(|()| self.sleep_millisecs.set(&scan.sleep_millisecs.to_string()))
            .and_then(|()| self.run.set(GO))
            .inspect_err(|_| {
                // Better with the settings that were found than not at all.
                if let Err(error) = self.restore() {
                    tracing::warn!("and the settings that were found are not back: {error:#}");
                }
            })
    }

    /// Sets everything as it was found.
    pub(crate) fn restore(&mut self) -> Result<()> {
        let mut restored = self.run.set(STOP);
        for knob in self.knobs() {
            // Each of them, whatever became of the others: the last one starts the search again.
            restored = restored.and(knob.set(&knob.original));
        }
        restored?;
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.record.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The file that says who decides how much is searched, and what it holds while nobody but root
/// does.
const ADVISOR: &str = "advisor_mode";
const NO_ADVISOR: &str = "[none]";

/// Refuses a kernel that adjusts the settings by itself.
fn refuse_advisor(file: &Path) -> Result<()> {
    match fs::read_to_string(file) {
        Ok(modes) if !modes.contains(NO_ADVISOR) => bail!(
            "the kernel adjusts KSM by itself ({} holds {:?}), and needs no throttler; write \"none\" to it, or disable this service",
            file.display(),
            modes.trim()
        ),
        _ => Ok(()),
    }
}

/// One file.
#[derive(Debug)]
struct Knob {
    path: PathBuf,
    file: File,
    /// What was in it, without the newline.
    original: String,
}

impl Knob {
    fn open(path: &Path) -> Result<Self> {
        let failed = || {
            format!(
                "cannot use {}; it takes root, and a kernel with KSM (CONFIG_KSM)",
                path.display()
            )
        };
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .with_context(failed)?;
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).with_context(failed)?;
        let original = text.trim().to_owned();
        if original.parse::<u64>().is_err() {
            bail!("{} holds {original:?}, which is no number", path.display());
        }
        Ok(Self { path: path.to_owned(), file, original })
    }

    fn set(&self, value: &str) -> Result<()> {
        // In sysfs it changes nothing; a plain file would keep what a shorter value does not cover.
        let _ = self.file.set_len(0);
        self.file
            .write_all_at(value.as_bytes(), 0)
            .with_context(|| format!("cannot write {value} to {}", self.path.display()))
    }
}

/// The numbers of a record, in the order of [`Ksm::knobs`]; `None` if it was cut off.
fn originals(text: &str) -> Option<[&str; 3]> {
    let lines: Vec<&str> = text.lines().collect();
    let all: [&str; 3] = lines.try_into().ok()?;
    let whole = text.ends_with('\n') && all.iter().all(|line| line.parse::<u64>().is_ok());
    whole.then_some(all)
}

/// How many anonymous pages the host has: only those can be merged.
fn anonymous_pages() -> Result<u64> {
    let text = fs::read_to_string(MEMINFO).context("cannot read /proc/meminfo")?;
    let kib = anonymous_kib(&text).context("/proc/meminfo has no AnonPages")?;
    Ok(kib * 1024 / rustix::param::page_size() as u64)
}

fn anonymous_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("AnonPages:"))?;
    line.trim().strip_suffix("kB")?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kernel(run: &str, pages: &str, sleep: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [("run", run), ("pages_to_scan", pages), ("sleep_millisecs", sleep)] {
            fs::write(dir.path().join(name), format!("{value}\n")).unwrap();
        }
        dir
    }

    fn values(dir: &Path) -> [u64; 3] {
        ["run", "pages_to_scan", "sleep_millisecs"]
            .map(|name| fs::read_to_string(dir.join(name)).unwrap().trim().parse().unwrap())
    }

    #[test]
    fn settings_are_applied_and_restored() {
        let dir = kernel("0", "123456789", "20");
        let mut ksm = Ksm::open(dir.path(), dir.path().join("record")).unwrap();
        assert_eq!(values(dir.path()), [0, 123_456_789, 20], "opening changes nothing");
        ksm.apply(Setting::Slow).unwrap();
        let [run, pages, sleep] = values(dir.path());
        assert_eq!((run, sleep), (1, 100));
        assert!(pages > 0 && pages < 123_456_789);
        ksm.apply(Setting::Original).unwrap();
        assert_eq!(values(dir.path()), [0, 123_456_789, 20]);
        assert!(!dir.path().join("record").exists());
    }

    #[test]
    fn what_a_killed_predecessor_has_changed_is_restored() {
        let dir = kernel("1", "200", "30");
        let record = dir.path().join("record");
        let mut ksm = Ksm::open(dir.path(), record.clone()).unwrap();
        ksm.apply(Setting::Aggressive).unwrap();
        drop(ksm);
        assert_ne!(values(dir.path()), [1, 200, 30]);
        Ksm::open(dir.path(), record.clone()).unwrap();
        assert_eq!(values(dir.path()), [1, 200, 30]);
        assert!(!record.exists());
    }

    #[test]
    fn kernel_that_adjusts_ksm_by_itself_is_left_alone() {
        let dir = kernel("1", "200", "30");
        fs::write(dir.path().join(ADVISOR), "none [scan-time]\n").unwrap();
        let error = Ksm::open(dir.path(), dir.path().join("record")).unwrap_err().to_string();
        assert!(error.contains("needs no throttler"), "{error}");
        assert_eq!(values(dir.path()), [1, 200, 30]);
        fs::write(dir.path().join(ADVISOR), "[none] scan-time\n").unwrap();
        Ksm::open(dir.path(), dir.path().join("record")).unwrap();
    }

    #[test]
    fn a_kernel_without_ksm_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Ksm::open(dir.path(), dir.path().join("record")).unwrap_err();
        assert!(error.to_string().contains("CONFIG_KSM"), "{error}");
    }

    #[test]
    fn anonymous_memory_is_found() {
        assert_eq!(anonymous_kib("MemFree: 1 kB\nAnonPages:      4096 kB\n"), Some(4096));
        assert_eq!(anonymous_kib("AnonHugePages: 1 kB\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = anonymous_kib(&text);
            let _ = originals(&text);
        }
    }
}
