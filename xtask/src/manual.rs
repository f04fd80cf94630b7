//! Manual pages and shell completions, made from the definitions of command lines.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The section for what root runs (man-pages(7)).
const SECTION: &str = "8";

/// A generated file: where it lies below `share`, and what is in it.
type Page = (String, Vec<u8>);

/// Writes everything below `share`, each where its reader looks for it.
pub(crate) fn write(share: &Path) -> Result<()> {
    for (name, content) in pages(&kata_runtime::command())? {
        let path = share.join(name);
        let folder = path.parent().context("a page lies in a folder")?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, content))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn pages(command: &Command) -> Result<Vec<Page>> {
    let name = command.get_name().to_owned();
    // A heading has no room for more than the version itself.
    let mut whole = command.clone().version(env!("CARGO_PKG_VERSION"));
    whole.build();
    let mut pages = Vec::new();
    add_manuals(&whole, &mut pages)?;
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
fn add_manuals(command: &Command, pages: &mut Vec<Page>) -> Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        add_manuals(below, pages)?;
    }
    let manual = Man::new(command.clone())
        .section(SECTION)
        .manual("Kata Containers in Rust")
        .source(concat!("kata-containers ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    manual.render(&mut page).context("cannot render a manual page")?;
    pages.push((format!("man/man{SECTION}/{}", manual.get_filename()), page));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> String {
        let pages = pages(&kata_runtime::command()).unwrap();
        let found = pages.into_iter().find(|(place, _)| place == name);
        String::from_utf8(found.expect(name).1).unwrap()
    }

    #[test]
    fn every_command_has_a_page_that_tells_its_options() {
        let all = pages(&kata_runtime::command()).unwrap();
        for command in kata_runtime::command().get_subcommands() {
            let name = format!("man/man8/kata-runtime-{}.8", command.get_name());
            assert!(all.iter().any(|(place, _)| *place == name), "{name}");
        }
        let exec = page("man/man8/kata-runtime-exec.8");
        assert!(exec.contains(".TH kata-runtime-exec 8"), "{exec}");
        assert!(exec.contains("debug console") && exec.contains("process"), "{exec}");
        let whole = page("man/man8/kata-runtime.8");
        assert!(whole.contains("kata\\-runtime\\-logs(8)"), "{whole}");
        assert!(!whole.contains("spec:"), "{whole}");
    }

    #[test]
    fn the_same_commands_make_the_same_pages() {
        let command = kata_runtime::command();
        assert_eq!(pages(&command).unwrap(), pages(&command).unwrap());
    }

    #[test]
    fn every_shell_completes_the_commands() {
        for script in [
            "bash-completion/completions/kata-runtime",
            "zsh/site-functions/_kata-runtime",
            "fish/vendor_completions.d/kata-runtime.fish",
        ] {
            let text = page(script);
            assert!(text.contains("timeline") && text.contains("follow"), "{script}");
        }
    }
}
