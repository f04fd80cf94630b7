//! Manual pages and shell completions, made from the definitions of command lines.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// A program with its section: 8 is for what root runs, 1 for what anybody does (man-pages(7)).
type Program = (Command, &'static str);

/// A generated file: where it lies below `share`, and what is in it.
type Page = (String, Vec<u8>);

/// Writes everything below `share`, each where its reader looks for it.
pub(crate) fn write(share: &Path) -> Result<()> {
    for (name, content) in all_pages()? {
        let path = share.join(name);
        let folder = path.parent().context("a page lies in a folder")?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, content))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn all_pages() -> Result<Vec<Page>> {
    let mut all = Vec::new();
    for program in [(kata_runtime::command(), "8"), (kata_image::command(), "1")] {
        all.extend(pages(&program)?);
    }
    Ok(all)
}

fn pages((command, section): &Program) -> Result<Vec<Page>> {
    let name = command.get_name().to_owned();
    // A heading has no room for more than the version itself.
    let mut whole = command.clone().version(env!("CARGO_PKG_VERSION"));
    whole.build();
    let mut pages = Vec::new();
    add_manuals(&whole, section, &mut pages)?;
    for (shell, place) in [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/site-functions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut script);
        pages.push((place, script));
    }
    Ok(pages)
}

/// A page for the command, and one for each of those below it: `kata-runtime-exec(8)`.
fn add_manuals(command: &Command, section: &str, pages: &mut Vec<Page>) -> Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        add_manuals(below, section, pages)?;
    }
    let manual = Man::new(command.clone())
        .section(section)
        .manual("Kata Containers in Rust")
        .source(concat!("kata-containers ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    manual.render(&mut page).context("cannot render a manual page")?;
    pages.push((format!("man/man{section}/{}", manual.get_filename()), page));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> String {
        let found = all_pages().unwrap().into_iter().find(|(place, _)| place == name);
        String::from_utf8(found.expect(name).1).unwrap()
    }

    #[test]
    fn every_command_has_a_page_that_tells_its_options() {
        let all = all_pages().unwrap();
        for (program, section) in [(kata_runtime::command(), 8), (kata_image::command(), 1)] {
            for command in program.get_subcommands() {
                let (program, command) = (program.get_name(), command.get_name());
                let name = format!("man/man{section}/{program}-{command}.{section}");
                assert!(all.iter().any(|(place, _)| *place == name), "{name}");
            }
        }
        let exec = page("man/man8/kata-runtime-exec.8");
        assert!(exec.contains(".TH kata-runtime-exec 8"), "{exec}");
        assert!(exec.contains("debug console") && exec.contains("process"), "{exec}");
        let whole = page("man/man8/kata-runtime.8");
        assert!(whole.contains("kata\\-runtime\\-logs(8)"), "{whole}");
        assert!(!whole.contains("spec:"), "{whole}");
        let rootfs = page("man/man1/kata-image-rootfs.1");
        assert!(rootfs.contains(".TH kata-image-rootfs 1"), "{rootfs}");
        assert!(rootfs.contains("hypervisor") && rootfs.contains("verity"), "{rootfs}");
    }

    #[test]
    fn the_same_commands_make_the_same_pages() {
        assert_eq!(all_pages().unwrap(), all_pages().unwrap());
    }

    #[test]
    fn every_shell_completes_the_commands() {
        for (program, words) in
            [("kata-runtime", ["timeline", "follow"]), ("kata-image", ["rootfs", "hypervisor"])]
        {
            for script in [
                format!("bash-completion/completions/{program}"),
                format!("zsh/site-functions/_{program}"),
                format!("fish/vendor_completions.d/{program}.fish"),
            ] {
                let text = page(&script);
                assert!(words.iter().all(|word| text.contains(word)), "{script}");
            }
        }
    }
}
