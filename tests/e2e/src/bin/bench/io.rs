//! Files and output. All of it is timed from outside, as one `ctr task exec` each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kata_e2e::Container;

use crate::metric::{self, Metric, Subject, Values};
use crate::subject::{Subjects, timed};

/// Size of the files and of the output that throughput is measured with, in MiB.
const MIB: usize = 64;

/// Without a program for each file: a shell's own means only.
const SMALL_FILES: &str = "mkdir /small && cd /small && i=0 && \
    while [ $i -lt 200 ]; do echo $i >f$i; i=$((i+1)); done && ls -l >/dev/null && rm -r /small";

/// One container in which all is measured once.
pub(crate) fn files(subjects: &Subjects<'_>, subject: Subject, to: &mut Values) -> Result<()> {
    let host = subjects.containerd().directory().join("io");
    fs::create_dir_all(&host).context("cannot make the directory to share")?;
    fs::write(host.join("read"), vec![1; MIB << 20]).context("cannot write the file to read")?;
    let run = subjects.run(subject, &["sleep", "1000"]).bind(&host, "/mnt", "rbind:rw");
    let container = run.start()?;
    let write = |path| format!("dd if=/dev/zero of={path} bs=1M count={MIB} conv=fsync");
    let read = |path| format!("dd if={path} of=/dev/null bs=1M");
    for (metric, script) in [
        (metric::ROOT_WRITE, write("/file")),
        (metric::ROOT_READ, read("/file")),
        (metric::BIND_READ, read("/mnt/read")),
        (metric::BIND_WRITE, write("/mnt/written")),
    ] {
        let exec = container.shell(&script);
        let ((), took) = timed(|| exec.output()?.success().map(drop))?;
        to.add(metric, subject, MIB as f64 * 1.048_576 / took.as_secs_f64());
    }
    add_small_files(&container, subject, to)?;
    add_output(&container, (metric::STDOUT, subject), to)?;
    container.remove()?;
    remove(&host)
}

fn add_small_files(container: &Container<'_>, subject: Subject, to: &mut Values) -> Result<()> {
    let exec = container.shell(SMALL_FILES);
    let ((), took) = timed(|| exec.output()?.success().map(drop))?;
    to.add(metric::SMALL, subject, took.as_secs_f64());
    Ok(())
}

fn add_output(
    container: &Container<'_>,
    (metric, subject): (Metric, Subject),
    to: &mut Values,
) -> Result<()> {
    let exec = container.shell(&format!("dd if=/dev/zero bs=64k count={}", MIB * 16));
    let (output, took) = timed(|| exec.output())?;
    anyhow::ensure!(output.stdout.len() == MIB << 20, "output was lost");
    to.add(metric, subject, MIB as f64 * 1.048_576 / took.as_secs_f64());
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}
