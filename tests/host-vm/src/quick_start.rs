//! What README.md tells a newcomer to do, to be done.

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write this file.
    Write {
        /// Where.
        path: String,
        /// All of it.
        text: String,
    },
    /// Type this at root's prompt.
    Type(String),
}

/// What the section `heading` of `readme` tells to do, in its order: each file of `/etc` that it
/// says to write to, with the block that follows, and each line of a console. Blocks that no file
/// is named for are none of it.
#[must_use]
pub fn steps(readme: &str, heading: &str) -> Vec<Step> {
    let heading = format!("## {heading}");
    let section = readme.lines().skip_while(|line| *line != heading).skip(1);
    let mut lines = section.take_while(|line| !line.starts_with("## "));
    let (mut steps, mut file) = (Vec::new(), None);
    while let Some(line) = lines.next() {
        if let Some((_, rest)) = line.split_once("rite to `/etc/") {
            file = rest.split('`').next().map(|path| format!("/etc/{path}"));
        }
        let Some(language) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if language == "console" {
            let typed = block.iter().filter_map(|line| line.strip_prefix("# "));
            steps.extend(typed.map(|line| Step::Type(line.to_owned())));
        } else if let Some(path) = file.take() {
            steps.push(Step::Write { path, text: block.join("\n") + "\n" });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "
## Before

```console
# not this
```

## Use it

Write to `/etc/one.conf`, and restart:

<!-- Generated. -->

```toml
a = 1

b = 2
```

```console
# run -it one
what it prints
# run two
```

### Another way

```json
{}
```

## After

```console
# nor this
```
";

    #[test]
    fn section_tells_what_to_write_and_what_to_type() {
        let one =
            Step::Write { path: "/etc/one.conf".to_owned(), text: "a = 1\n\nb = 2\n".to_owned() };
        let typed = |line: &str| Step::Type(line.to_owned());
        assert_eq!(steps(README, "Use it"), [one, typed("run -it one"), typed("run two")]);
        assert_eq!(steps(README, "No such section"), []);
    }
}
