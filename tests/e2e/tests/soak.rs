//! The same again and again, on a machine that is busy.

use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};
use kata_e2e::{Client, Input, number_from, scenario};

/// Processes that do nothing but keep the processors busy, until they are dropped.
fn load() -> Result<Vec<Client>> {
    let processors = thread::available_parallelism()?.get();
    let spin = || {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        Client::spawn(command, Input::Nothing)
    };
    (0..processors).map(|_| spin()).collect()
}

#[test]
fn boots_in_a_row_under_load() -> Result<()> {
    scenario(|containerd| {
        let boots = number_from("KATA_E2E_BOOTS", 5);
        let busy = load()?;
        for boot in 1..=boots {
            let output = containerd.shell("echo booted; exit 17").output()?;
            ensure!(
                (output.text().as_str(), output.code) == ("booted\n", 17),
                "boot {boot}: {output}"
            );
        }
        drop(busy);
        Ok(())
    })
}

#[test]
fn sandboxes_live_side_by_side() -> Result<()> {
    scenario(|containerd| {
        let run = |number: usize| -> Result<()> {
            let word = format!("sandbox {number}");
            let output = containerd.run(["echo", word.as_str()]).output()?;
            ensure!(output.clone().success()? == format!("{word}\n"), "{output}");
            Ok(())
        };
        thread::scope(|scope| {
            let sandboxes: Vec<_> = (0..3).map(|number| scope.spawn(move || run(number))).collect();
            sandboxes.into_iter().try_for_each(|one| one.join().expect("no assertion in it"))
        })
    })
}
