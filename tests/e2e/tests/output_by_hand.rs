//! Output of a process of the command line: all of it arrives, whenever the process ends and
//! however slowly it is read.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use kata_e2e::{CommandLine, Input, Runtime, number_from};
use rustix::pipe::fcntl_setpipe_size;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The least that a pipe may hold (pipe(7)).
const SMALLEST_PIPE: usize = 4096;

/// Writes so many MiB at once and ends; the checksum of it goes to the other stream before.
fn writes(mib: usize) -> String {
    format!(
        "head -c {} /dev/urandom > /stream; sha256sum < /stream | cut -c 1-64 >&2; exec cat /stream",
        mib << 20
    )
}

fn mebibytes() -> usize {
    number_from("KATA_E2E_STREAM_MIB", 64)
}

fn digest(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text + "\n"
}

#[test]
fn all_of_a_large_output_arrives() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let bundle = host.bundle("c", &writes(mebibytes()), |spec| spec)?.display().to_string();
        let args = ["run", "--bundle", &bundle, &host.id("c")];
        let output = host.attach(&args, Input::Nothing)?.wait()?;
        assert_eq!((output.code, output.stdout.len()), (0, mebibytes() << 20));
        assert_eq!(digest(&output.stdout), output.error_text());
        Ok(())
    })
}

#[test]
fn all_of_an_added_processs_output_arrives() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        let script = writes(mebibytes() / 4);
        let args = ["exec", &host.id("c"), "sh", "-c", &script];
        let output = host.attach(&args, Input::Nothing)?.wait()?;
        assert_eq!((output.code, output.stdout.len()), (0, (mebibytes() / 4) << 20));
        assert_eq!(digest(&output.stdout), output.error_text());
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// As `kata-runtime exec c yes | head -1` does.
#[test]
fn process_whose_output_nobody_takes_any_more_ends() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        let (mut ours, theirs) = io::pipe().context("cannot make a pipe")?;
        let mut exec = host.command(&["exec", &host.id("c"), "yes"]);
        let mut child = exec.stdin(Stdio::null()).stdout(theirs).spawn()?;
        drop(exec);
        let mut line = [0; 2];
        ours.read_exact(&mut line)?;
        assert_eq!(&line, b"y\n");
        drop(ours);
        CommandLine::until(|| Ok(child.try_wait()?.is_some()))?;
        assert_eq!(child.wait()?.code(), Some(128 + 13));
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// What a shell leaves behind may write for ever.
#[test]
fn added_process_ends_though_its_child_goes_on_writing() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        host.run_idle("c")?;
        for pause in ["", "sleep 0.05;"] {
            let script = format!("echo first; while :; do echo more; {pause} done & exit 7");
            let args = ["exec", &host.id("c"), "sh", "-c", &script];
            let output = host.attach(&args, Input::Nothing)?.wait()?;
            assert_eq!(output.code, 7);
            assert!(output.stdout.starts_with(b"first\n"), "{:?}", output.text());
        }
        host.succeed(&["delete", "--force", &host.id("c")]).map(drop)
    })
}

/// Its pipe holds next to nothing, so that most of the output is still on its way when the process
/// has ended.
#[test]
fn slow_reader_gets_everything() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let bundle = host.bundle("c", &writes(2), |spec| spec)?.display().to_string();
        let (mut ours, theirs) = io::pipe().context("cannot make a pipe")?;
        fcntl_setpipe_size(&theirs, SMALLEST_PIPE).context("cannot make the pipe small")?;
        let mut run = host.command(&["run", "--bundle", &bundle, &host.id("c")]);
        let mut child = run.stdin(Stdio::null()).stdout(theirs).stderr(Stdio::piped()).spawn()?;
        // It holds our copy of the pipe's other end.
        drop(run);
        let mut all = Vec::new();
        let mut bite = [0; 512];
        loop {
            match ours.read(&mut bite)? {
                0 => break,
                length => all.extend_from_slice(&bite[..length]),
            }
        }
        let mut sum = String::new();
        child.stderr.take().context("there is no stream")?.read_to_string(&mut sum)?;
        assert!(child.wait()?.success());
        assert_eq!((all.len(), digest(&all)), (2 << 20, sum));
        Ok(())
    })
}

/// Lines that are written in one go by a process that has ended before anybody reads them.
#[test]
fn output_of_a_process_that_ends_at_once_is_there() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let bundle = host.bundle("c", "seq 1 5000; exit 3", |spec| spec)?;
        host.create("c", &bundle)?;
        host.succeed(&["start", &host.id("c")])?;
        host.ends("c")?;
        assert_eq!(host.output_of("c"), seq(5000)?);
        host.succeed(&["delete", &host.id("c")]).map(drop)
    })
}

#[test]
fn terminal_shows_everything_to_who_reads_late() -> Result<()> {
    CommandLine::scenario(Runtime::under_test(), |host| {
        let terminal = |spec: kata_e2e::Spec| spec.set("/process/terminal", json!(true));
        let bundle = host.bundle("c", "seq 1 20000", terminal)?;
        let mut shown = host.create_in_terminal("c", &bundle)?;
        host.succeed(&["start", &host.id("c")])?;
        let mut all = Vec::new();
        let mut bite = [0; 512];
        // The end of a terminal is an error (EIO).
        while let Ok(length @ 1..) = shown.read(&mut bite) {
            all.extend_from_slice(&bite[..length]);
        }
        host.ends("c")?;
        let text = String::from_utf8(all)?.replace('\r', "");
        assert_eq!(text, seq(20000)?);
        host.succeed(&["delete", &host.id("c")]).map(drop)
    })
}

fn seq(last: u32) -> Result<String> {
    let output = Command::new("seq").arg(last.to_string()).output()?;
    Ok(String::from_utf8(output.stdout)?)
}
