//! Files and output, timed by the container's own clock: the start of a `ctr task exec` would hide
//! what takes as short as it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Container, Image, Output};

use crate::metric::{self, Subject, Values};
use crate::subject::Subjects;

/// Size of the files and of the output that throughput is measured with, in MiB: half of what a
/// guest of 256 MiB has, so that what is read again is still in its memory.
const MIB: usize = 128;

/// Where the image has its file.
const IN_IMAGE: &str = "srv/large";

/// Without a program for each file: a shell's own means only.
const SMALL_FILES: &str = "mkdir /small && cd /small && i=0 && \
    while [ $i -lt 200 ]; do echo $i >f$i; i=$((i+1)); done && ls -l >/dev/null && rm -r /small";

/// An image with a file that is large enough.
pub(crate) fn image() -> Image {
    Image::busybox_with_file("bench", IN_IMAGE, MIB << 20)
}

/// One container in which all is measured once. Its image is [`image`]. Each first read is of a
/// file that the host has in its memory, and a guest not yet.
pub(crate) fn files(subjects: &Subjects<'_>, subject: Subject, to: &mut Values) -> Result<()> {
    let host = subjects.containerd().directory().join("io");
    fs::create_dir_all(&host).context("cannot make the directory to share")?;
    fs::write(host.join("read"), vec![1; MIB << 20]).context("cannot write the file to read")?;
    let run = subjects.run(subject, &["sleep", "1000"]).image(&image());
    let container = run.bind(&host, "/mnt", "rbind:rw").start()?;
    let write = |path| format!("dd if=/dev/zero of={path} bs=1M count={MIB} conv=fsync");
    let read = |path: &str| format!("dd if={path} of=/dev/null bs=1M");
    for (metric, script) in [
        (metric::ROOT_FIRST, read(&format!("/{IN_IMAGE}"))),
        (metric::ROOT_READ, read(&format!("/{IN_IMAGE}"))),
        (metric::ROOT_WRITE, write("/file")),
        (metric::BIND_READ, read("/mnt/read")),
        (metric::BIND_WRITE, write("/mnt/written")),
    ] {
        let (_, seconds) = inside(&container, &script)?;
        to.add(metric, subject, throughput(seconds));
    }
    let (_, seconds) = inside(&container, SMALL_FILES)?;
    to.add(metric::SMALL, subject, seconds * 1000.0);
    let (output, seconds) =
        inside(&container, &format!("dd if=/dev/zero bs=64k count={}", MIB * 16))?;
    ensure!(output.stdout.len() == MIB << 20, "output was lost");
    to.add(metric::STDOUT, subject, throughput(seconds));
    container.remove()?;
    remove(&host)
}

/// In MB/s.
fn throughput(seconds: f64) -> f64 {
    MIB as f64 * 1.048_576 / seconds
}

/// Runs a script, and tells how many seconds it took in the container: with the start of its
/// programs there, without the one of its shell.
fn inside(container: &Container<'_>, script: &str) -> Result<(Output, f64)> {
    let timed = format!("s=$EPOCHREALTIME; {{ {script}; }} || exit; echo $s $EPOCHREALTIME >&2");
    let output = container.shell(&timed).output()?;
    ensure!(output.code == 0, "failed: {output}");
    let seconds = seconds_between(&output.error_text());
    Ok((output, seconds.with_context(|| format!("'{script}' was not timed"))?))
}

/// Between the two times in the last line, after what the programs have said.
fn seconds_between(errors: &str) -> Option<f64> {
    let (start, end) = errors.lines().last()?.split_once(' ')?;
    let (start, end): (f64, f64) = (start.parse().ok()?, end.parse().ok()?);
    (end > start).then_some(end - start)
}

fn remove(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_after_the_programs_words() {
        let errors = "128+0 records in\n128+0 records out\n1795920400.250000 1795920401.000000\n";
        assert_eq!(seconds_between(errors), Some(0.75));
        // What cannot be has no figure: no shell that knows the time, a clock that was set back.
        for errors in ["", "128+0 records out\n", " \n", "2.0 1.0\n", "1.0 1.0\n"] {
            assert_eq!(seconds_between(errors), None, "{errors:?}");
        }
    }
}
