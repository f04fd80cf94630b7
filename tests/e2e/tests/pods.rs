//! Several containers in one sandbox, as Kubernetes makes them: the engine names the sandbox by annotation.

use anyhow::Result;
use kata_e2e::{only_a_vm, scenario};

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
/// Made anew by every kernel that boots.
const BOOT_ID: [&str; 2] = ["cat", "/proc/sys/kernel/random/boot_id"];

#[test]
fn members_of_a_pod_share_a_vm_and_nothing_else() -> Result<()> {
    if !only_a_vm("one VM for a whole pod") {
        return Ok(());
    }
    scenario(|containerd| {
        let pod = containerd
            .run(["sleep", "1000"])
            .option("--annotation", &format!("{KIND}=sandbox"))
            .start()?;
        let member = containerd
            .shell("echo mine > /tmp/file; exec sleep 1000")
            .option("--annotation", &format!("{KIND}=container"))
            .option("--annotation", &format!("{SANDBOX}={}", pod.id()))
            .start()?;
        assert_eq!(member.pid()?, pod.pid()?, "both are the one VMM to the host");
        let boot_id = pod.exec(BOOT_ID).output()?.success()?;
        assert_eq!(member.exec(BOOT_ID).output()?.success()?, boot_id);
        assert_eq!(member.exec(["cat", "/tmp/file"]).output()?.success()?, "mine\n");
        pod.exec(["cat", "/tmp/file"]).output()?.failure()?;
        let processes = member.exec(["ps", "-o", "args"]).output()?.success()?;
        assert_eq!(processes.matches("sleep 1000").count(), 1, "{processes}");

        // A member comes and goes, and the sandbox stays.
        member.kill("KILL")?;
        assert_eq!(member.wait()?, 137);
        member.remove()?;
        assert_eq!(pod.exec(["echo", "still here"]).output()?.success()?, "still here\n");
        pod.remove()
    })
}
