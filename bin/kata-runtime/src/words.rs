//! Command lines as Go's flag package reads them, for which `-no-subreaper` is the same as
//! `--no-subreaper` and as `--no-subreaper=true`: some callers of runc write it that way.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command, CommandFactory, Id};

use crate::cli::{Cli, LogFormat};

/// What runc takes beside.
const ROOTLESS: [&str; 3] = ["true", "false", "auto"];

/// Gives every flag the dashes that clap wants, says by `=` what follows `--rootless`, and leaves
/// of switches that are given a value those that are on in the end. Stops at what is not a flag of
/// ours: a container's id, after which come words that are somebody else's.
pub(crate) fn as_go_reads_them(mut words: Vec<OsString>) -> Vec<OsString> {
    let cli = Cli::command();
    let mut command = &cli;
    let mut switches = Switches::default();
    let mut index = 1;
    while let Some(word) = words.get(index).and_then(|word| word.to_str()) {
        if word == "--" {
            break;
        }
        let Some(flag) = Flag::of(word) else {
            if word == "h" && command.get_name() == cli.get_name() {
                words[index] = "help".into();
                break;
            }
            let Some(subcommand) = command.find_subcommand(word) else { break };
            command = subcommand;
            switches.on.clear();
            index += 1;
            continue;
        };
        if let Some(arg) = flag.definition(command) {
            let follows = words.get(index + 1).and_then(|next| next.to_str());
            let is_apart = arg.get_id() == "rootless"
                && arg.is_require_equals_set()
                && flag.value.is_none()
                && follows.is_some_and(|next| ROOTLESS.contains(&next));
            let takes_next = flag.value.is_none() && takes_a_value(arg);
            let read = if is_a_switch(arg) { switches.read(arg, &flag, index) } else { None };
            words[index] = read.unwrap_or_else(|| flag.spelt()).into();
            if is_apart {
                let value = words.remove(index + 1);
                words[index].push("=");
                words[index].push(value);
            }
            index += usize::from(takes_next);
        }
        index += 1;
    }
    switches.without_those_that_are_off(words)
}

/// A word that begins with a dash.
struct Flag<'a> {
    name: &'a str,
    /// What is after the `=`.
    value: Option<&'a str>,
}

impl<'a> Flag<'a> {
    fn of(word: &'a str) -> Option<Self> {
        let word = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
        let (name, value) =
            word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        Some(Self { name, value })
    }

    /// Where the command defines it.
    fn definition<'c>(&self, command: &'c Command) -> Option<&'c Arg> {
        let mut letters = self.name.chars();
        let letter = letters.next().filter(|_| letters.next().is_none());
        command.get_arguments().find(|arg| match letter {
            Some(_) => arg.get_short() == letter,
            None => {
                arg.get_long() == Some(self.name)
                    || arg.get_all_aliases().is_some_and(|all| all.contains(&self.name))
            }
        })
    }

    /// As clap has it.
    fn spelt(&self) -> String {
        let name = self.name_with_dashes();
        self.value.map_or_else(|| name.clone(), |value| format!("{name}={value}"))
    }

    fn name_with_dashes(&self) -> String {
        let dashes = if self.name.chars().nth(1).is_some() { "--" } else { "-" };
        format!("{dashes}{}", self.name)
    }
}

/// The switches that a command line turns on.
#[derive(Default)]
struct Switches {
    /// Those of the command at hand, by the places of their words.
    on: Vec<(Id, usize)>,
    /// Places of words that count no more.
    void: BTreeSet<usize>,
}

impl Switches {
    /// How the word at `place` is to be spelt: without its value, if that is one of Go's.
    fn read(&mut self, arg: &Arg, flag: &Flag<'_>, place: usize) -> Option<String> {
        if flag.value.map_or(Some(true), truth)? {
            self.on.push((arg.get_id().clone(), place));
        } else {
            let before = self.on.iter().filter(|(id, _)| id == arg.get_id());
            self.void.extend(before.map(|(_, place)| *place).chain([place]));
        }
        Some(flag.name_with_dashes())
    }

    fn without_those_that_are_off(&self, words: Vec<OsString>) -> Vec<OsString> {
        let kept = words.into_iter().enumerate().filter(|(place, _)| !self.void.contains(place));
        kept.map(|(_, word)| word).collect()
    }
}

/// What Go reads as true or false (strconv.ParseBool).
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn is_a_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// Whether its value is in the next word.
fn takes_a_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !arg.is_require_equals_set()
}

/// Where errors go according to a command line, as [`as_go_reads_them`] gives it, that need make no
/// sense otherwise.
pub(crate) fn log_of(words: &[OsString]) -> (Option<PathBuf>, LogFormat) {
    let cli = Cli::command();
    let (mut log, mut format) = (None, LogFormat::Text);
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next().and_then(|word| word.to_str()) {
        let Some(flag) = Flag::of(word) else { break };
        let takes_next = flag.definition(&cli).is_some_and(takes_a_value);
        let value = match flag.value {
            None if takes_next => words.next().cloned(),
            value => value.map(OsString::from),
        };
        match flag.name {
            "log" => log = value.map(PathBuf::from),
            "log-format" => {
                let is_json = value.is_some_and(|value| value == "json");
                format = if is_json { LogFormat::Json } else { LogFormat::Text };
            }
            _ => {}
        }
    }
    (log, format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let read = as_go_reads_them(words);
        read.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        assert_eq!(
            read("k -root /r --log-format json run -no-subreaper -b /b -pid-file p c1"),
            "k --root /r --log-format json run --no-subreaper -b /b --pid-file p c1"
        );
        assert_eq!(read("k -root=/r state c1"), "k --root=/r state c1");
    }

    #[test]
    fn switch_may_have_a_value_of_which_the_last_counts() {
        for (line, is_read) in [
            ("k --systemd-cgroup=true --debug=1 state c1", "k --systemd-cgroup --debug state c1"),
            ("k -systemd-cgroup=false state c1", "k state c1"),
            ("k --debug --systemd-cgroup --debug=F state c1", "k --systemd-cgroup state c1"),
            ("k --debug=false --debug state c1", "k --debug state c1"),
            ("k --debug=maybe state c1", "k --debug=maybe state c1"),
            ("k --root --debug --debug=false state c1", "k --root --debug state c1"),
            ("k run -d --detach=false --keep=t -b=/b c1", "k run --keep -b=/b c1"),
            ("k delete -f=true c1 --force=false", "k delete -f c1 --force=false"),
            ("k --rootless true --debug=false list -q=0", "k --rootless=true list"),
            ("k run --b /b --d c1", "k run -b /b -d c1"),
        ] {
            assert_eq!(read(line), is_read, "{line}");
        }
    }

    #[test]
    fn rootless_takes_its_value_from_the_next_word_where_it_is_one() {
        assert_eq!(read("k --rootless true state c1"), "k --rootless=true state c1");
        assert_eq!(
            read("k -rootless auto --root /r state c1"),
            "k --rootless=auto --root /r state c1"
        );
        assert_eq!(read("k --rootless state true"), "k --rootless state true");
        assert_eq!(read("k --rootless=false state c1"), "k --rootless=false state c1");
    }

    #[test]
    fn log_is_found_whatever_is_wrong_with_the_rest() {
        let log = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            log_of(&words)
        };
        let file = |file: &str| Some(PathBuf::from(file));
        assert_eq!(log("k --log /l --nonsense state"), (file("/l"), LogFormat::Text));
        assert_eq!(log("k --log-format json --log=/l nonsense"), (file("/l"), LogFormat::Json));
        assert_eq!(log("k --root --log --log /l state"), (file("/l"), LogFormat::Text));
        assert_eq!(log("k --log-format=json state --log /l"), (None, LogFormat::Json));
        assert_eq!(log("k --log"), (None, LogFormat::Text));
        let twice = "k --log /m --log-format json --log /l --log-format text state";
        assert_eq!(log(twice), (file("/l"), LogFormat::Text));
    }

    #[test]
    fn h_is_help_and_only_in_place_of_a_command() {
        assert_eq!(read("k --debug h"), "k --debug help");
        assert_eq!(read("k state h"), "k state h");
    }

    #[test]
    fn the_containers_words_are_left_alone() {
        assert_eq!(read("k exec -d c1 prog -root -tty"), "k exec -d c1 prog -root -tty");
        assert_eq!(read("k exec -u 7 -tty c1 prog -env"), "k exec -u 7 --tty c1 prog -env");
        assert_eq!(read("k ps -format json c1 -ef"), "k ps --format json c1 -ef");
    }
}
