//! Chores of this repository: what is generated from the code, and the laws that no compiler
//! checks.
//!
//! Run as `cargo run -p xtask -- COMMAND`.

mod comments;
mod decisions;
mod docs;
mod hypervisors;
mod layers;
mod manual;
mod style;
mod unsafety;
mod workspace;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::workspace::Workspace;

const USAGE: &str = "\
usage: xtask COMMAND

  default-config [--prefix DIR]   print the default configuration file (DIR: /usr/local)
  manual DIR                      write manual pages and shell completions below DIR, which becomes PREFIX/share
  docs                            write the pages under docs/reference, and the table in ARCHITECTURE.md
  layers                          check who depends on whom
  check                           check layers, style, width of comments, where `unsafe` is, docs/adr, and that what `docs` writes is current";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["default-config"] => print!("{}", kata_config::default_file(Path::new("/usr/local"))),
        ["default-config", "--prefix", prefix] => {
            if !Path::new(prefix).is_absolute() {
                bail!("the prefix {prefix} is not an absolute path; write it from the root");
            }
            print!("{}", kata_config::default_file(Path::new(prefix)));
        }
        ["manual", share] => manual::write(Path::new(share))?,
        ["docs"] => docs::write(&Workspace::read()?.root)?,
        ["layers"] => report(layers::violations(&Workspace::read()?))?,
        ["check"] => {
            let workspace = Workspace::read()?;
            let mut violations = layers::violations(&workspace);
            let sources = style::sources(&workspace.root)?;
            violations.extend(style::violations(&workspace, &sources)?);
            violations.extend(unsafety::violations(&sources));
            violations.extend(comments::violations(&sources));
            violations.extend(decisions::violations(&workspace.root)?);
            violations.extend(docs::violations(&workspace.root));
            report(violations)?;
        }
        ["help" | "--help" | "-h"] => println!("{USAGE}"),
        [] => bail!("no command\n{USAGE}"),
        other => bail!("no such command: {}\n{USAGE}", other.join(" ")),
    }
    Ok(())
}

/// Prints every violation, and fails if there is one.
fn report(mut violations: Vec<String>) -> Result<()> {
    violations.sort();
    for violation in &violations {
        eprintln!("{violation}");
    }
    match violations.len() {
        0 => Ok(()),
        1 => bail!("1 violation"),
        count => bail!("{count} violations"),
    }
}
