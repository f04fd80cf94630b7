//! The least that a virtual machine can take: the same QEMU, machine and kernel, and an init that
//! ends it at once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kata_e2e::{Client, Deadline, Input, Process, floor_ramdisk, floor_ticks};

/// Options with a value that make the machine and what boots in it.
const KEPT: &[&str] = &[
    "-machine", "-global", "-accel", "-cpu", "-smp", "-m", "-bios", "-kernel", "-append",
    "-display",
];

/// Options without a value.
const FLAGS: &[&str] = &["-nodefaults", "-no-user-config", "-no-reboot"];

/// How long a machine took.
#[derive(Debug)]
pub(crate) struct Boot {
    /// From the VMM's start to its end.
    pub(crate) whole: Duration,
    /// From the machine's start, which comes after the VMM's, to its init. `None` where nobody has
    /// told the guest how fast its counter counts.
    pub(crate) kernel: Option<Duration>,
}

/// Boots the machine of `vmm` with an initial ramdisk that ends it at once.
pub(crate) fn measure(vmm: &Recipe, directory: &Path) -> Result<Boot> {
    let initrd = directory.join("floor.img");
    fs::write(&initrd, floor_ramdisk()).context("cannot write the initial ramdisk")?;
    let mut command = Command::new(&vmm.program);
    command.args(&vmm.arguments).arg("-initrd").arg(&initrd).args(["-serial", "stdio"]);
    let start = Instant::now();
    let output = Client::spawn(command, Input::Nothing)?
        .wait_until(Deadline::after(Duration::from_secs(30)))
        .context("the floor's machine does not end")?;
    let whole = start.elapsed();
    ensure!(output.code == 0, "the floor's machine failed: {output}");
    let ticks =
        floor_ticks(&output.stdout).context("the floor's init has not come to say the time")?;
    let kernel = vmm.khz().map(|khz| Duration::from_secs_f64(ticks as f64 / khz / 1000.0));
    Ok(Boot { whole, kernel })
}

/// Boots `count` of them at once. Returns the time until the last one's end.
pub(crate) fn measure_many(vmm: &Recipe, directory: &Path, count: usize) -> Result<Duration> {
    let boot = |number: usize| {
        let own = directory.join(format!("floor-{number}"));
        fs::create_dir_all(&own)?;
        measure(vmm, &own).map(drop)
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let boots: Vec<_> = (0..count).map(|number| scope.spawn(move || boot(number))).collect();
        boots.into_iter().try_for_each(|boot| {
            boot.join().unwrap_or_else(|_| Err(anyhow!("the thread of a floor panicked")))
        })
    })?;
    Ok(start.elapsed())
}

/// A QEMU command line without devices and initial ramdisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    program: String,
    arguments: Vec<String>,
}

impl Recipe {
    /// The machine of a sandbox's QEMU.
    pub(crate) fn of(vmm: &Process) -> Result<Self> {
        let program = vmm.program.to_str().context("QEMU's path is not UTF-8")?;
        let recipe = Self::from(program, &vmm.command_line);
        // It has its kernel as a descriptor.
        let Some(fd) = recipe.kernel().and_then(|kernel| kernel.strip_prefix("/proc/self/fd/"))
        else {
            return Ok(recipe);
        };
        let kernel = fs::read_link(format!("/proc/{}/fd/{fd}", vmm.pid));
        Ok(recipe.with_kernel(&kernel.context("QEMU's kernel cannot be told")?))
    }

    /// The same machine with another kernel.
    pub(crate) fn with_kernel(&self, kernel: &Path) -> Self {
        let mut recipe = self.clone();
        let named = recipe.kernel_at().and_then(|at| recipe.arguments.get_mut(at));
        if let Some(named) = named {
            *named = kernel.display().to_string();
        }
        recipe
    }

    /// How often the time stamp counter counts in a millisecond, as the kernel is told.
    fn khz(&self) -> Option<f64> {
        let words = self.arguments.iter().flat_map(|argument| argument.split(' '));
        words
            .filter_map(|word| word.strip_prefix("tsc_early_khz="))
            .find_map(|khz| khz.parse().ok())
    }

    fn kernel(&self) -> Option<&str> {
        self.kernel_at().and_then(|at| self.arguments.get(at)).map(String::as_str)
    }

    fn kernel_at(&self) -> Option<usize> {
        self.arguments.iter().position(|word| word == "-kernel").map(|option| option + 1)
    }

    fn from(program: &str, command_line: &[String]) -> Self {
        let mut arguments = Vec::new();
        let mut words = command_line.iter().skip(1).peekable();
        while let Some(word) = words.next() {
            if FLAGS.contains(&word.as_str()) {
                arguments.push(word.clone());
                continue;
            }
            let value = words.next_if(|value| !value.starts_with('-'));
            let memory = word == "-object"
                && value.is_some_and(|value| value.starts_with("memory-backend-"));
            if KEPT.contains(&word.as_str()) || memory {
                arguments.push(word.clone());
                arguments.extend(value.cloned());
            }
        }
        Self { program: program.to_owned(), arguments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipe_keeps_the_machine_and_drops_devices() {
        let line = "qemu -nodefaults -no-reboot -name sandbox-x -machine microvm,memory-backend=ram -accel tcg \
            -object memory-backend-memfd,id=ram,size=256M -m 256M -bios qboot.rom -kernel /k -initrd /i -append console=ttyS0 \
            -chardev socket,id=c,fd=3 -mon chardev=c -object rng-random,id=r -device virtio-rng-device,rng=r -sandbox on";
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let expected = "-nodefaults -no-reboot -machine microvm,memory-backend=ram -accel tcg \
            -object memory-backend-memfd,id=ram,size=256M -m 256M -bios qboot.rom -kernel /k -append console=ttyS0";
        let recipe = Recipe::from("/usr/bin/qemu", &words);
        assert_eq!(recipe.arguments.join(" "), expected);
        let other = recipe.with_kernel(Path::new("/other"));
        assert_eq!(other.arguments.join(" "), expected.replace("/k", "/other"));
    }

    #[test]
    fn frequency_is_what_the_kernel_is_told() {
        let recipe = |append: &str| Recipe {
            program: String::new(),
            arguments: vec!["-append".to_owned(), append.to_owned()],
        };
        assert_eq!(recipe("quiet tsc_early_khz=2600000 panic=-1").khz(), Some(2_600_000.0));
        assert_eq!(recipe("quiet").khz(), None);
    }
}
