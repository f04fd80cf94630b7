//! The same under runc and under kata: a table of cases, each run under both and compared.

mod compare;
mod devices;
mod mounts;
mod tasks;

use anyhow::{Context, Result};
use compare::{Case, Probe, compare, compare_clients};
use kata_e2e::{Image, Run, Spec, scenario};
use serde_json::json;

/// What any container shows of itself.
const ITSELF: &[Probe] = &[
    Probe::new("environment", "env | sort"),
    Probe::new("user and groups", "id; cat /proc/self/status | grep -E '^(Uid|Gid|Groups):'"),
    Probe::new("working directory", "pwd; readlink /proc/self/cwd"),
    Probe::new("host name", "hostname; cat /proc/sys/kernel/hostname"),
    Probe::new("domain name", "cat /proc/sys/kernel/domainname"),
    Probe::new("capabilities", "grep ^Cap /proc/self/status"),
    Probe::new("privileges", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status"),
    Probe::new("signals", "grep -E '^Sig(Blk|Cgt):' /proc/self/status"),
    Probe::new("umask", "umask; touch /tmp/file; stat -c %a /tmp/file"),
    Probe::new("first process", "readlink /proc/1/exe; ps | awk '$1 == 1 { print $1, $2 }'"),
    Probe::new("session", "awk '{ print $5 == $6, $7 }' /proc/1/stat; tty"),
    Probe::new(
        "open files",
        "ls /proc/self/fd | wc -l; for fd in 0 1 2; do test -e /proc/1/fd/$fd && echo $fd; done",
    ),
    Probe::new("file limit", "ulimit -n; ulimit -Hn"),
    Probe::new("mounts", "cat /proc/self/mounts").normalized(mounts::normalized),
    Probe::new("root file system", "ls -lan / | awk '{ print $1, $3, $4, $NF }'"),
    Probe::new("devices", "cd /dev; stat -c '%n %F %a %u %g %t,%T' * | grep -v core | sort"),
    Probe::new(
        "links in /dev",
        "cd /dev; for name in *; do test -L $name && echo $name $(readlink $name); done | grep -v core",
    ),
    Probe::new("terminals", "stat -c '%a %u %g' /dev/pts/ptmx; ls /dev/pts"),
    Probe::new(
        "devices work",
        "head -c 4 /dev/zero | od -An -tx1; head -c 4 /dev/urandom | wc -c; echo x > /dev/full; cat /dev/null",
    ),
    Probe::new("own device", "mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null works"),
    Probe::new(
        "forbidden device",
        "mknod /tmp/disk b 8 0 && { cat /tmp/disk 2>/dev/null || echo refused; }",
    ),
    Probe::new("masked paths", MASKED),
    Probe::new(
        "read-only paths",
        "for path in /proc/sys/kernel/domainname /proc/sys/kernel/core_pattern /proc/irq/default_smp_affinity; do test -e $path && echo x > $path; done",
    ),
    Probe::new(
        "sys is read-only",
        "mkdir /sys/fs/new; echo x > /sys/kernel/profiling 2>&1 | grep -o 'Read-only.*'",
    ),
    Probe::new(
        "no mounting",
        "mount -t tmpfs none /mnt; umount /proc; chroot / true && echo chroot works",
    ),
    Probe::new("network", "ls /sys/class/net; cat /proc/net/route"),
    Probe::new("hosts files", "cat /etc/hosts /etc/hostname /etc/resolv.conf"),
    Probe::new(
        "files of the image",
        "ls -lin /srv | awk '{ print $2, $3, $4, $5, $6, $10, $11, $12 }'; cat /srv/link-to-secret",
    ),
    Probe::new("file operations", FILES),
    Probe::new("free space", "df / | awk 'NR == 1 || $2 > 0 { print NF, $1 == \"Filesystem\" }'"),
    Probe::new(
        "missing command in a shell",
        "no-such-command; /bin/not-executable; /bin/no-interpreter; echo $?",
    ),
    Probe::new(
        "exit codes in a shell",
        "(exit 42); echo $?; sh -c 'kill -9 $$'; echo $?; sh -c 'kill -TERM $$'; echo $?; sh -c 'kill -SEGV $$'; echo $?",
    ),
    Probe::new("broken pipe", "yes | head -n 1; echo $?"),
];

/// Paths that show nothing of the host, whether masked or absent.
const MASKED: &str = "
    for path in /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug; do
        echo $path $(head -c 100 $path 2>/dev/null | wc -c)
    done
    for path in /proc/acpi /proc/scsi /sys/firmware; do echo $path $(ls -A $path 2>/dev/null | wc -l); done";

/// What the root file system can do.
const FILES: &str = "
    cd /home; umask 022; mkdir d; echo 1 > d/a; ln d/a d/b; ln -s a d/c; mkfifo d/p; chmod 4751 d/a; chown 5:6 d/b
    stat -c '%n %F %a %u %g %h %s' d d/*; mv d/a d/e; cat d/b d/c; rm d/e; ls d; rmdir d; touch -d '2001-02-03 04:05:06' f; stat -c %y f
    truncate -s 1M f; stat -c %s f; rm -r d f /bin/busybox; ls /home /bin/busybox; sync; find /etc | sort";

#[test]
fn plain_container_is_the_same() -> Result<()> {
    let probes = [ITSELF, devices::LOG].concat();
    scenario(|containerd| compare(&probes, |script| containerd.shell(script)))
}

#[test]
fn container_of_a_user_is_the_same() -> Result<()> {
    scenario(|containerd| {
        let settings = [
            ("User", json!("user")),
            ("WorkingDir", json!("/home/user")),
            ("Env", json!(["PATH=/bin", "COLOR=blue", "EMPTY=", "SPACED=a  b"])),
        ];
        let image = Image::busybox_with("of-user", &settings);
        containerd.import(&image)?;
        let run = |script: &str| containerd.shell(script).image(&image).env("COLOR", "red\tgreen");
        let mut probes = ITSELF.to_vec();
        probes.push(Probe::new("access", "cat /srv/secret; cat /srv/of-user; echo x > /etc/passwd; touch /home/user/x && echo mine"));
        compare(&probes, run)
    })
}

#[test]
fn options_of_ctr_mean_the_same() -> Result<()> {
    scenario(|containerd| {
        let run = |script: &str| {
            containerd
                .shell(script)
                .flag("--read-only")
                .option("--cap-add", "CAP_SYS_TIME")
                .option("--cap-drop", "CAP_CHOWN")
                .flag("--allow-new-privs")
                .flag("--seccomp")
                .cwd("/srv")
        };
        let mut probes = ITSELF.to_vec();
        probes
            .push(Probe::new("dropped capability", "chown 1 /dev/shm; chmod 700 /run && echo ok"));
        probes.push(Probe::new("seccomp", "unshare -m true; unshare -U true; nsenter -t 1 -m true; keyctl 2>/dev/null; sh -c 'mount -t proc none /mnt'; date >/dev/null && echo date"));
        compare(&probes, run)
    })
}

#[test]
fn terminal_shows_the_same() -> Result<()> {
    const TERMINAL: &[Probe] = &[
        Probe::new("terminal", "tty; test -t 0 && test -t 1 && test -t 2 && echo all"),
        // The size comes at a time of its own, and has a test of its own.
        Probe::new("modes", "stty -a 2>/dev/null | grep -v 'line ='"),
        Probe::new(
            "console",
            "stat -c '%F %a %u %g' /dev/console; echo to the console > /dev/console",
        ),
        Probe::new("TERM", "env | sort"),
        Probe::new("session", "awk '{ print $5 == $6, $7 != 0, $8 > 0 }' /proc/1/stat"),
    ];
    scenario(|containerd| compare(TERMINAL, |script| containerd.shell(script).tty()))
}

#[test]
fn own_specification_means_the_same() -> Result<()> {
    scenario(|containerd| {
        // One for each run: what a run leaves in it changes the next.
        let rootfs = ["a", "b"].map(|name| containerd.directory().join("rootfs").join(name));
        rootfs.iter().try_for_each(|rootfs| Image::unpack(rootfs))?;
        let mut unused = rootfs.iter();
        let mut probes = ITSELF.to_vec();
        probes.extend([
            Probe::new("score", "cat /proc/self/oom_score_adj"),
            Probe::new("limits", "ulimit -n; ulimit -Hn; ulimit -c; ulimit -Hc; ulimit -s; ulimit -f"),
            Probe::new("sysctls", "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start"),
            Probe::new("own tmpfs", "grep /own /proc/self/mounts | sed s/,inode64//; echo x > /own/x; cp /bin/busybox /own/sh && /own/sh echo runs; stat -c '%a %u %g' /own"),
            Probe::new("own masks", "cat /srv/secret; ls /etc; echo x > /home/x"),
            Probe::new("processes", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done 2>/dev/null"),
        ]);
        compare(&probes, |script| {
            let rootfs = unused.next().expect("a case is run twice");
            containerd.shell(script).spec(own_specification(rootfs, script))
        })
    })
}

fn own_specification(rootfs: &std::path::Path, script: &str) -> Spec {
    Spec::new(rootfs, &["sh", "-c", script])
        .set("/hostname", json!("own-name"))
        .set("/process/user", json!({ "uid": 1000, "gid": 29, "additionalGids": [10, 4711] }))
        .set("/process/cwd", json!("/made/on/the/way"))
        .set("/process/oomScoreAdj", json!(321))
        .set("/process/noNewPrivileges", json!(false))
        .set("/process/rlimits", json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            { "type": "RLIMIT_STACK", "soft": 4_194_304, "hard": 8_388_608 },
            { "type": "RLIMIT_FSIZE", "soft": 10_485_760, "hard": 10_485_760 },
        ]))
        .set("/process/capabilities", json!({
            "bounding": ["CAP_NET_RAW", "CAP_KILL"], "permitted": ["CAP_NET_RAW", "CAP_KILL"],
            "effective": ["CAP_NET_RAW"], "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"],
        }))
        .set("/linux/sysctl", json!({ "kernel.msgmax": "9000", "net.ipv4.ip_unprivileged_port_start": "80" }))
        .set("/linux/resources/pids", json!({ "limit": 10 }))
        .push("/linux/maskedPaths", json!("/srv/secret"))
        .push("/linux/maskedPaths", json!("/etc"))
        .set("/linux/readonlyPaths", json!(["/home", "/proc/sys"]))
        .push("/linux/resources/devices", json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }))
        .push("/mounts", json!({ "destination": "/own", "type": "tmpfs", "source": "tmpfs",
            "options": ["noexec", "nodev", "size=2m", "mode=1777", "uid=1000", "gid=10"] }))
}

#[test]
fn device_rules_mean_the_same() -> Result<()> {
    scenario(|containerd| {
        let rootfs = containerd.directory().join("rootfs");
        Image::unpack(&rootfs)?;
        devices::tables().iter().try_for_each(|(name, rules)| {
            let run = |script: &str| {
                let spec = Spec::new(&rootfs, &["sh", "-c", script]);
                containerd.shell(script).spec(devices::with_rules(spec, rules))
            };
            compare(devices::LOG, run).context(*name)
        })
    })
}

#[test]
fn exec_is_the_same() -> Result<()> {
    const CASES: &[Case] = &[
        Case::exec("exit 0", &["true"]),
        Case::exec("exit 1", &["false"]),
        Case::exec("exit 42", &["sh", "-c", "exit 42"]),
        Case::exec("exit 255", &["sh", "-c", "exit 255"]),
        Case::exec("killed by SIGKILL", &["sh", "-c", "kill -9 $$"]),
        Case::exec("ended by SIGTERM", &["sh", "-c", "kill -TERM $$"]),
        Case::exec("crashed", &["sh", "-c", "kill -SEGV $$"]),
        Case::exec("missing command", &["no-such-command"]),
        Case::exec("missing path", &["/no/such/command"]),
        Case::exec("not executable", &["/bin/not-executable"]),
        Case::exec("not executable in PATH", &["not-executable"]),
        Case::exec("missing interpreter", &["/bin/no-interpreter"]),
        Case::exec("a directory", &["/etc"]),
        Case::exec("127 of a shell", &["sh", "-c", "no-such-command"]),
        Case::exec("126 of a shell", &["sh", "-c", "/bin/not-executable"]),
        Case::exec("arguments", &["printf", "[%s]", "", "a b", "'", "\"", "\\", "\n", "é", "*"]),
        Case::exec("both streams", &["sh", "-c", "echo out; echo err >&2"]),
        Case::exec("environment", &["env"]),
        Case::exec(
            "privileges",
            &["grep", "-E", "^(Cap|NoNewPrivs|Seccomp:|Uid|Groups|SigBlk)", "/proc/self/status"],
        ),
        Case::exec(
            "files",
            &["sh", "-c", "ls -l /proc/self/fd | wc -l; ulimit -n; umask; pwd; tty"],
        ),
        Case::exec(
            "same world",
            &["sh", "-c", "hostname; ls /; readlink /proc/1/exe; ls /proc | grep -c '^1$'"],
        ),
        Case::exec(
            "device that is not allowed",
            &["sh", "-c", "mknod /dev/log c 1 11; echo x > /dev/log"],
        ),
        Case::exec("user", &["id"]).with(&["--user", "1000"]),
        Case::exec("user and group", &["id"]).with(&["--user", "1000:29"]),
        Case::exec("unknown user", &["id"]).with(&["--user", "4711:4712"]),
        Case::exec("working directory", &["pwd"]).with(&["--cwd", "/srv"]),
        Case::exec("missing working directory", &["pwd"]).with(&["--cwd", "/no/such/directory"]),
    ];
    scenario(|containerd| compare_clients(containerd, CASES))
}

#[test]
fn init_starts_and_ends_the_same() -> Result<()> {
    const CASES: &[Case] = &[
        Case::run("exit 0", &["true"]),
        Case::run("exit 1", &["false"]),
        Case::run("exit 42", &["sh", "-c", "exit 42"]),
        Case::run(
            "143 of a process that SIGTERM ended",
            &["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"],
        ),
        Case::run("SIGTERM to itself", &["sh", "-c", "kill -TERM $$; echo lives; exit 3"]),
        Case::run("missing command", &["no-such-command"]),
        Case::run("not executable", &["/bin/not-executable"]),
        Case::run("missing interpreter", &["/bin/no-interpreter"]),
        Case::run("missing working directory is made", &["pwd"])
            .with(&["--cwd", "/made/on/the/way"]),
        Case::run("too much memory", &["sh", "-c", "tail /dev/zero; echo $?"])
            .with(&["--memory-limit", "67108864"]),
    ];
    scenario(|containerd| compare_clients(containerd, CASES))
}

#[test]
fn signals_end_init_the_same() -> Result<()> {
    const SCRIPT: &str =
        "for signal in HUP USR1 USR2 TERM WINCH; do trap \"echo got $signal\" $signal; done
        trap 'echo bye; exit 9' QUIT; echo ready; while :; do sleep 0.1; done";
    let told = |run: Run<'_>| -> Result<(String, i32)> {
        let (client, container) = run.attach_and_keep()?;
        client.expect("ready")?;
        // Each by itself: pending signals have no order.
        for signal in ["HUP", "USR1", "SIGUSR2", "15", "WINCH"] {
            let before = client.stdout.times("got");
            container.kill(signal)?;
            client.stdout.expect_times("got", before + 1, kata_e2e::Deadline::for_command())?;
        }
        container.kill("QUIT")?;
        let output = client.wait()?;
        container.remove()?;
        Ok((output.text(), output.code))
    };
    let killed = |run: Run<'_>| -> Result<i32> {
        let (client, container) = run.attach_and_keep()?;
        client.expect("ready")?;
        container.kill_all("KILL")?;
        let code = client.wait()?.code;
        container.remove()?;
        Ok(code)
    };
    // The kernel spares the first process of a namespace the signals that it has no handler for.
    let spared = |run: Run<'_>| -> Result<(i32, i32)> {
        let container = run.start()?;
        container.kill("TERM")?;
        let exec = container.exec(["true"]).output()?.code;
        container.kill("KILL")?;
        let code = container.wait()?;
        container.remove()?;
        Ok((exec, code))
    };
    let terminated = |run: Run<'_>| -> Result<i32> {
        let (client, container) = run.attach_and_keep()?;
        client.expect("ready")?;
        container.kill("TERM")?;
        let code = client.wait()?.code;
        container.remove()?;
        Ok(code)
    };
    const HANDLES: &str = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done";
    scenario(|containerd| {
        let run = || containerd.shell(SCRIPT);
        assert_eq!(told(run())?, told(under_runc(run()))?);
        assert_eq!((killed(run())?, killed(under_runc(run()))?), (137, 137));
        let run = || containerd.run(["sleep", "1000"]);
        assert_eq!((spared(run())?, spared(under_runc(run()))?), ((0, 137), (0, 137)));
        let run = || containerd.shell(HANDLES);
        assert_eq!((terminated(run())?, terminated(under_runc(run()))?), (143, 143));
        Ok(())
    })
}

fn under_runc(run: Run<'_>) -> Run<'_> {
    run.under(kata_e2e::Runtime::Runc)
}

#[test]
fn client_is_told_the_same_of_a_task() -> Result<()> {
    scenario(tasks::compare_tasks)
}
