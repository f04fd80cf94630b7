//! A container's life, from `ctr run` to `ctr container delete`.

use anyhow::Result;
use kata_e2e::{Input, scenario};

#[test]
fn output_and_exit_code_reach_the_client() -> Result<()> {
    scenario(|containerd| {
        let output = containerd.shell("echo out; echo err >&2; exit 42").output()?;
        assert_eq!(output.text(), "out\n");
        assert_eq!(output.error_text(), "err\n");
        assert_eq!(output.code, 42);
        Ok(())
    })
}

#[test]
fn detached_container_is_waited_for() -> Result<()> {
    scenario(|containerd| {
        let c = containerd.shell("echo hi; read x; echo $x; exec sleep 1000").start()?;
        println!("{:?} {:?} {:?}", c.status()?, c.pid()?, c.processes()?);
        println!("{}", c.metrics()?);
        let e = c.exec(["cat"]).stdin(Input::Bytes(b"hello".to_vec())).output()?;
        println!("{e}");
        let a = c.attach()?;
        a.expect("hi")?;
        c.kill("KILL")?;
        println!("{}", a.wait()?);
        println!("{}", c.wait()?);
        c.delete()
    })
}
