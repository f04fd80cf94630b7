use std::fs;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::user;

fn shell(script: &str) -> Spawn {
    Spawn::new("sh").args(["-c", script])
}

#[tokio::test]
async fn exit_is_told_to_everyone_who_asks() {
    let child = shell("echo first >&2; echo last >&2; exit 42").spawn().unwrap();
    let (one, two) = tokio::join!(child.exited(), child.exited());
    assert_eq!((one, two), (Exit::Code(42), Exit::Code(42)));
    assert_eq!(child.exited().await, Exit::Code(42));
    assert_eq!(child.stderr(), ["first", "last"]);
    child.kill(Signal::TERM).unwrap();
}

#[tokio::test]
async fn killed_child_is_reaped() {
    let child = shell("exec sleep 1000").spawn().unwrap();
    assert_eq!(child.exit(), None);
    assert_eq!(child.end().await, Exit::Signal(9));
    assert_eq!(child.end().await, Exit::Signal(9));
    assert!(!fs::exists(format!("/proc/{}", child.pid())).unwrap());
}

#[tokio::test]
async fn dropped_child_dies() {
    let child = shell("exec sleep 1000").spawn().unwrap();
    let watcher = child.exit.clone();
    drop(child);
    let mut watcher = watcher;
    assert!(watcher.wait_for(Option::is_some).await.is_ok());
}

#[test]
fn child_dies_with_its_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let child = runtime.block_on(async { shell("exec sleep 1000").spawn().unwrap() });
    drop(runtime);
    assert!(!fs::exists(format!("/proc/{}", child.pid())).unwrap());
}

#[tokio::test]
async fn child_dies_with_the_thread_that_spawned_it() {
    let handle = tokio::runtime::Handle::current();
    let thread = std::thread::spawn(move || {
        let _runtime = handle.enter();
        shell("exec sleep 1000").spawn().unwrap()
    });
    assert_eq!(thread.join().unwrap().exited().await, Exit::Signal(9));
}

#[tokio::test]
async fn child_that_becomes_somebody_else_dies_with_its_parent_all_the_same() {
    let jail = Jail { changes_user: true, ..Jail::default() };
    let spawn = Spawn::new("setpriv").jail(jail);
    let script = "id -u >&2; exec sleep 1000";
    let args = ["--reuid=12345", "--regid=12345", "--clear-groups", "sh", "-c", script];
    let mut child = spawn.args(args).spawn().unwrap();
    while child.stderr().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(child.stderr(), ["12345"]);
    // As the kernel does for a parent that ends.
    drop(child._tie.take());
    assert_eq!(child.exited().await, Exit::Signal(9));
}

#[tokio::test]
async fn only_passed_descriptors_arrive() {
    let leaked = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut spawn = shell("read word <&3; echo $word >&2; exec ls /proc/self/fd >&2");
    assert_eq!(spawn.pass_fd(theirs), 3);
    let child = spawn.spawn().unwrap();
    (&ours).write_all(b"word\n").unwrap();
    assert_eq!(child.exited().await, Exit::Code(0));
    // The last one is the directory that `ls` reads.
    assert_eq!(child.stderr(), ["word", "0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn environment_is_not_passed_on() {
    let child = shell("env >&2").spawn().unwrap();
    child.exited().await;
    let names: Vec<String> =
        child.stderr().iter().map(|line| line.split('=').next().unwrap().to_owned()).collect();
    assert!(names.iter().all(|name| ["PATH", "PWD", "_", "SHLVL"].contains(&name.as_str())));
}

#[tokio::test]
async fn missing_program_is_named() {
    let error = Spawn::new("/no/such/program").spawn().unwrap_err();
    assert_eq!(error.to_string(), "cannot run /no/such/program");
    assert!(
        matches!(error, SpawnError::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
}

#[tokio::test]
async fn flood_on_stderr_ends_bounded() {
    let child = shell("yes flood | head -c 3000000 >&2").spawn().unwrap();
    assert_eq!(child.exited().await, Exit::Code(0));
    assert!(child.stderr().iter().map(String::len).sum::<usize>() <= 4096);
}

/// Needs root, as the whole product does.
#[tokio::test]
async fn strict_jail_has_all_its_walls() {
    let script = "grep -E '^(CapPrm|CapBnd|NoNewPrivs)' /proc/self/status >&2
        echo $$ >&2
        touch /tmp/kata-jail-test 2>/dev/null || echo read-only >&2
        cat /proc/1/comm >&2
        tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' >&2
        readlink /proc/self/ns/ipc >&2; ulimit -c >&2";
    let child = shell(script).jail(Jail::strict()).spawn().unwrap();
    assert_eq!(child.exited().await, Exit::Code(0));
    let lines = child.stderr();
    assert_eq!(lines[0], "CapPrm:?0000000000000000");
    assert_eq!(lines[1], "CapBnd:?0000000000000000");
    assert_eq!(lines[2], "NoNewPrivs:?1");
    assert_eq!(lines[3..5], ["1", "read-only"]);
    assert_eq!(lines[5], "sh", "process 1 is not the child itself");
    assert_eq!(lines[6], "lo");
    assert_ne!(lines[7], fs::read_link("/proc/self/ns/ipc").unwrap().to_str().unwrap());
    assert_eq!(lines[8], "0");
    // The spawning thread is back in its own PID namespace.
    let plain = shell("echo $$ >&2").spawn().unwrap();
    plain.exited().await;
    assert_eq!(plain.stderr(), [plain.pid().to_string()]);
}

#[tokio::test]
async fn child_may_become_a_user_that_owns_nothing_but_its_devices() {
    let script = "grep -E '^(Uid|Gid|Groups|CapEff|CapBnd)' /proc/self/status >&2
        ls -n /dev | tail -n +2 | cut -d' ' -f1,3,4 >&2
        head -c 1 /dev/zero | wc -c >&2
        cat /etc/shadow >&- 2>&- || echo no secrets >&2";
    let id = user::of_this_process();
    let zero = jail::DeviceNode::of(Path::new("/dev/zero")).unwrap();
    let nobody = jail::Nobody { id, devices: vec![zero] };
    let child = shell(script).jail(Jail { user: Some(nobody), ..Jail::strict() }).spawn().unwrap();
    assert_eq!(child.exited().await, Exit::Code(0));
    let lines = child.stderr();
    assert_eq!(lines[0], format!("Uid:?{id}?{id}?{id}?{id}"));
    assert_eq!(lines[1], format!("Gid:?{id}?{id}?{id}?{id}"));
    assert_eq!(lines[2].trim(), "Groups:?");
    assert_eq!(lines[3..5], ["CapEff:?0000000000000000", "CapBnd:?0000000000000000"]);
    assert_eq!(
        lines[5..],
        [format!("crw------- {id} {id}"), "1".to_owned(), "no secrets".to_owned()]
    );
}

#[test]
fn only_character_devices_of_dev_are_let_into_a_jail() {
    for other in ["/dev", "/etc/passwd", "/dev/pts/ptmx", "/no/such"] {
        assert!(jail::DeviceNode::of(Path::new(other)).is_err(), "{other}");
    }
}

#[tokio::test]
async fn failed_step_of_the_jail_is_named() {
    let jail = Jail { limits: vec![(jail::Resource::Core, u64::MAX - 1)], ..Jail::default() };
    // Raising is refused to whoever has no CAP_SYS_RESOURCE; a limit above the hard one, lowered
    // here first, is the portable way there.
    let lowered = Jail { limits: vec![(jail::Resource::Core, 0)], ..Jail::strict() };
    let both = Jail { limits: [lowered.limits, jail.limits].concat(), ..Jail::default() };
    match shell("true").jail(both).spawn() {
        // Root with the capability may.
        Ok(child) => assert_eq!(child.exited().await, Exit::Code(0)),
        Err(error) => assert_eq!(error.to_string(), "cannot run sh: it failed to lower its limits"),
    }
}
