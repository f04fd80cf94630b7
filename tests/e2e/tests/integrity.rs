//! Output is never lost or cut, and input arrives whole.

use std::thread;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Client, Deadline, Input, Output, noise, number_from, scenario};
use std::time::Duration;

/// Echoes this many bytes in a terminal that changes none of them.
fn echo_in_terminal(length: usize) -> String {
    format!("stty raw -echo; echo rea''dy; head -c {length}; exit 6")
}

fn stream() -> Vec<u8> {
    noise(number_from("KATA_E2E_STREAM_MIB", 64) << 20)
}

fn a_long_time() -> Deadline {
    Deadline::after(Duration::from_secs(240))
}

/// Panics would print 64 MiB.
fn ensure_same(got: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(got.len() == expected.len(), "{} bytes of {} came back", got.len(), expected.len());
    let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
    ensure!(differs.is_none(), "byte {differs:?} has changed");
    Ok(())
}

#[test]
fn stream_through_init_comes_back_whole() -> Result<()> {
    scenario(|containerd| {
        let data = stream();
        let client = containerd.shell("cat; exit 5").stdin(Input::Bytes(data.clone())).attach()?;
        let output = client.wait_until(a_long_time())?;
        assert_eq!(output.code, 5);
        ensure_same(&output.stdout, &data)
    })
}

#[test]
fn stream_through_exec_comes_back_whole() -> Result<()> {
    scenario(|containerd| {
        let data = stream();
        let container = containerd.run(["sleep", "1000"]).start()?;
        let client = container.shell("cat; exit 5").stdin(Input::Bytes(data.clone())).attach()?;
        let output = client.wait_until(a_long_time())?;
        assert_eq!(output.code, 5);
        ensure_same(&output.stdout, &data)?;
        container.remove()
    })
}

#[test]
fn stream_through_terminal_of_init_comes_back_whole() -> Result<()> {
    scenario(|containerd| {
        let data = stream();
        let client = containerd.shell(&echo_in_terminal(data.len())).tty().attach()?;
        comes_back_through_terminal(client, &data)
    })
}

#[test]
fn stream_through_terminal_of_exec_comes_back_whole() -> Result<()> {
    scenario(|containerd| {
        let data = stream();
        let container = containerd.run(["sleep", "1000"]).start()?;
        let client = container.shell(&echo_in_terminal(data.len())).tty().attach()?;
        comes_back_through_terminal(client, &data)?;
        container.remove()
    })
}

fn comes_back_through_terminal(mut client: Client, data: &[u8]) -> Result<()> {
    client.expect("ready")?;
    client.write_and_close(data.to_owned());
    let output = client.wait_until(a_long_time())?;
    assert_eq!(output.code, 6);
    let greeting = output.stdout.iter().position(|byte| *byte == b'\n');
    let greeting = greeting.context("there is no greeting")?;
    let rest = &output.stdout[greeting + 1..];
    ensure_same(rest, data)
}

#[test]
fn half_closed_input_reaches_the_process() -> Result<()> {
    scenario(|containerd| {
        let mut init = containerd.shell("cat; echo end of input").stdin(Input::Pipe).attach()?;
        init.write("first\n")?;
        init.expect("first")?;
        init.write("second\n")?;
        init.close_stdin();
        assert_eq!(init.wait()?.success()?, "first\nsecond\nend of input\n");

        let container = containerd.run(["sleep", "1000"]).start()?;
        let mut exec = container.shell("cat; echo end of input").stdin(Input::Pipe).attach()?;
        exec.write("first\n")?;
        exec.expect("first")?;
        exec.close_stdin();
        assert_eq!(exec.wait()?.success()?, "first\nend of input\n");
        container.remove()
    })
}

#[test]
fn input_that_ends_before_the_start_is_read_to_its_end() -> Result<()> {
    // The client has everything, and the end, while the process is still being made. It tells the
    // end only if nobody takes its input before it has made the exec: so the shim must open the
    // input at the start, and not before. (Of init's input, ctr itself forgets to tell so early an
    // end, whatever the runtime.)
    scenario(|containerd| {
        let short = || Input::Bytes(b"short".to_vec());
        let container = containerd.run(["sleep", "1000"]).start()?;
        for _ in 0..5 {
            let exec = container.exec(["cat"]).stdin(short());
            assert_eq!(exec.output()?.success()?, "short");
        }
        container.remove()
    })
}

#[test]
fn last_words_before_exit_are_heard() -> Result<()> {
    const SCRIPT: &str = "head -c 8388608 /dev/zero >&2 & head -c 8388608 /dev/zero; wait; exit 3";
    scenario(|containerd| {
        let output = containerd.shell(SCRIPT).output()?;
        assert_eq!((output.stdout.len(), output.stderr.len()), (8 << 20, 8 << 20));
        assert_eq!(output.code, 3);

        let container = containerd.run(["sleep", "1000"]).start()?;
        let output = container.shell(SCRIPT).output()?;
        assert_eq!((output.stdout.len(), output.stderr.len()), (8 << 20, 8 << 20));
        assert_eq!(output.code, 3);
        container.remove()
    })
}

/// How many clients run short-lived processes at a time: they shall also meet.
const WORKERS: usize = 4;

/// Has `count` processes print something on both streams and exit at once, each with another code.
/// `run` runs a script to its end; `terminal` says whether it does so in one.
fn short_lived_are_heard(
    count: usize,
    terminal: bool,
    run: impl Fn(&str) -> Result<Output> + Sync,
) -> Result<()> {
    let speak = |worker: usize| -> Result<()> {
        for number in (worker..count).step_by(WORKERS) {
            let code = i32::try_from(number % 200)?;
            let output = run(&format!("echo out {number}; echo err {number} >&2; exit {code}"))?;
            let (out, err) = (format!("out {number}"), format!("err {number}"));
            let (stdout, stderr) = match terminal {
                true => (format!("{out}\r\n{err}\r\n"), String::new()),
                false => (format!("{out}\n"), format!("{err}\n")),
            };
            let got = (output.text(), output.error_text(), output.code);
            ensure!(got == (stdout, stderr, code), "process {number}: {output}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let speak = &speak;
        let workers: Vec<_> =
            (0..WORKERS).map(|worker| scope.spawn(move || speak(worker))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no assertion in it"))
    })
}

/// As many as the variable says, else `default`.
fn short_lived(default: usize) -> usize {
    number_from("KATA_E2E_SHORT_LIVED", default)
}

#[test]
fn short_lived_execs_are_heard() -> Result<()> {
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        short_lived_are_heard(short_lived(100), false, |script| container.shell(script).output())?;
        container.remove()
    })
}

#[test]
fn short_lived_execs_in_terminals_are_heard() -> Result<()> {
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let run = |script: &str| container.shell(script).tty().output();
        short_lived_are_heard(short_lived(50), true, run)?;
        container.remove()
    })
}

#[test]
fn short_lived_inits_are_heard() -> Result<()> {
    short_lived_members_are_heard(short_lived(20), false)
}

#[test]
fn short_lived_inits_in_terminals_are_heard() -> Result<()> {
    short_lived_members_are_heard(short_lived(20), true)
}

/// The first processes of containers that share a VM: one for each would be a test of boots, which
/// there is elsewhere.
fn short_lived_members_are_heard(count: usize, terminal: bool) -> Result<()> {
    scenario(|containerd| {
        let kind = |kind: &str| format!("io.kubernetes.cri.container-type={kind}");
        let pod =
            containerd.run(["sleep", "1000"]).option("--annotation", &kind("sandbox")).start()?;
        let sandbox = format!("io.kubernetes.cri.sandbox-id={}", pod.id());
        let run = |script: &str| {
            let member = containerd
                .shell(script)
                .option("--annotation", &kind("container"))
                .option("--annotation", &sandbox);
            if terminal { member.tty().output() } else { member.output() }
        };
        short_lived_are_heard(count, terminal, run)?;
        pod.remove()
    })
}

#[test]
fn slow_reader_loses_nothing() -> Result<()> {
    // The client stops reading while far more is written than all buffers on the way hold, and the
    // writer exits meanwhile.
    scenario(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let client = container.shell("head -c 4194304 /dev/zero; echo end").attach()?;
        client.signal(rustix::process::Signal::STOP)?;
        container.exec(["true"]).output()?.success()?;
        client.signal(rustix::process::Signal::CONT)?;
        let output = client.wait()?;
        assert_eq!(output.stdout.len(), (4 << 20) + 4);
        assert!(output.stdout.ends_with(b"end\n"));
        container.remove()
    })
}
