//! What is generated from the code for people to read, and whether it is current: pages, and parts
//! of pages that are written by hand.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Something generated: the file that has it, and what it is.
struct Generated {
    file: &'static str,
    place: Place,
    generate: fn() -> String,
}

/// Where in its file it is.
#[derive(Clone, Copy)]
enum Place {
    /// It is all of the file.
    Whole,
    /// It stands between these two lines.
    Between(&'static str, &'static str),
}

/// Ends a part of a page.
const END: &str = "\n<!-- End of what is generated. -->\n";

const GENERATED: &[Generated] = &[
    Generated {
        file: "docs/reference/configuration.md",
        place: Place::Whole,
        generate: kata_config::reference_page,
    },
    Generated {
        file: "docs/reference/hypervisors.md",
        place: Place::Whole,
        generate: crate::hypervisors::page,
    },
    Generated {
        file: "ARCHITECTURE.md",
        place: Place::Between(
            "<!-- Generated from xtask/src/layers.rs by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: crate::layers::table,
    },
    Generated {
        file: "README.md",
        place: Place::Between(
            "<!-- Generated from docs/examples/containerd-2.toml by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: || example("toml", include_str!("../../docs/examples/containerd-2.toml")),
    },
    Generated {
        file: "README.md",
        place: Place::Between(
            "<!-- Generated from docs/examples/containerd-1.toml by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: || example("toml", include_str!("../../docs/examples/containerd-1.toml")),
    },
    Generated {
        file: "README.md",
        place: Place::Between(
            "<!-- Generated from docs/examples/podman-containers.conf by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: || example("toml", include_str!("../../docs/examples/podman-containers.conf")),
    },
    Generated {
        file: "README.md",
        place: Place::Between(
            "<!-- Generated from docs/examples/docker-daemon.json by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: || example("json", include_str!("../../docs/examples/docker-daemon.json")),
    },
    Generated {
        file: "README.md",
        place: Place::Between(
            "<!-- Generated from docs/examples/docker-daemon-shim.json by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: || example("json", include_str!("../../docs/examples/docker-daemon-shim.json")),
    },
    Generated {
        file: "README.md",
        place: Place::Between(
            "<!-- Generated from docs/examples/crio-kata.conf by `cargo run -p xtask -- docs`. -->\n\n",
            END,
        ),
        generate: || example("toml", include_str!("../../docs/examples/crio-kata.conf")),
    },
];

/// An example of a configuration, as it is installed by default.
fn example(language: &str, text: &str) -> String {
    format!("```{language}\n{}```\n", text.replace("@prefix@", "/usr/local"))
}

/// Writes all of it.
pub(crate) fn write(root: &Path) -> Result<()> {
    for generated in GENERATED {
        let path = root.join(generated.file);
        let text = generated.current(root)?;
        let folder = path.parent().context("a page lies in a folder")?;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", generated.file))?;
    }
    Ok(())
}

/// Every file that is not what would be written.
pub(crate) fn violations(root: &Path) -> Vec<String> {
    GENERATED
        .iter()
        .filter_map(|generated| match generated.current(root) {
            Ok(text) if fs::read_to_string(root.join(generated.file)).is_ok_and(|t| t == text) => {
                None
            }
            Ok(_) => {
                let file = generated.file;
                Some(format!("{file}: is not current; run `cargo run -p xtask -- docs`"))
            }
            Err(error) => Some(format!("{error:#}")),
        })
        .collect()
}

impl Generated {
    /// All of its file, as it should be.
    fn current(&self, root: &Path) -> Result<String> {
        let Place::Between(start, end) = self.place else { return Ok((self.generate)()) };
        let text = fs::read_to_string(root.join(self.file))
            .with_context(|| format!("cannot read {}", self.file))?;
        replaced(&text, start, end, &(self.generate)())
            .with_context(|| format!("{}: lacks the lines around what is generated", self.file))
    }
}

/// The text with `part` in place of what is between `start` and `end`; `None` if it has not both.
fn replaced(text: &str, start: &str, end: &str, part: &str) -> Option<String> {
    let (before, rest) = text.split_once(start)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{start}{part}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_is_replaced_and_the_rest_stays() {
        assert_eq!(replaced("a<old>b", "<", ">", "new").unwrap(), "a<new>b");
        assert_eq!(replaced("a<old", "<", ">", "new"), None);
    }
}
