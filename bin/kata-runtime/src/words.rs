//! Command lines as Go's flag package reads them, for which `-no-subreaper` is the same as
//! `--no-subreaper`: some callers of runc write it that way.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Command, CommandFactory};

use crate::cli::{Cli, LogFormat};

/// What runc takes beside.
const ROOTLESS: [&str; 3] = ["true", "false", "auto"];

/// Doubles the dash of every long flag that has only one, and says by `=` what follows
/// `--rootless`. Stops at what is not a flag of ours: a container's id, after which come words that
/// are somebody else's.
pub(crate) fn as_go_reads_them(mut words: Vec<OsString>) -> Vec<OsString> {
    let cli = Cli::command();
    let mut command = &cli;
    let mut index = 1;
    while index < words.len() {
        let Some(word) = words[index].to_str() else { return words };
        if word == "--" {
            return words;
        }
        if !word.starts_with('-') {
            if word == "h" && command.get_name() == cli.get_name() {
                words[index] = "help".into();
                return words;
            }
            match command.find_subcommand(word) {
                Some(subcommand) => command = subcommand,
                None => return words,
            }
            index += 1;
            continue;
        }
        let name = word.trim_start_matches('-');
        let (name, has_value) =
            name.split_once('=').map_or((name, false), |(name, _)| (name, true));
        if let Some(takes_value) = long_flag(command, name) {
            let next = words.get(index + 1).and_then(|next| next.to_str());
            let is_value = next.is_some_and(|next| ROOTLESS.contains(&next));
            let is_apart = name == "rootless" && !has_value && is_value;
            if !word.starts_with("--") {
                words[index] = format!("-{word}").into();
            }
            if is_apart {
                let value = words.remove(index + 1);
                words[index].push("=");
                words[index].push(value);
            }
            index += usize::from(takes_value && !has_value);
        } else if short_takes_value(command, word) {
            index += 1;
        }
        index += 1;
    }
    words
}

/// Where errors go according to a command line, as [`as_go_reads_them`] gives it, that need make no
/// sense otherwise.
pub(crate) fn log_of(words: &[OsString]) -> (Option<PathBuf>, LogFormat) {
    let cli = Cli::command();
    let (mut log, mut format) = (None, LogFormat::Text);
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next().and_then(|word| word.to_str()) {
        let Some(flag) = word.strip_prefix("--") else { break };
        let (name, value) =
            flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.into())));
        let takes_value = long_flag(&cli, name).unwrap_or_default();
        let value = match value {
            None if takes_value => words.next().cloned(),
            value => value,
        };
        match name {
            "log" => log = value.map(PathBuf::from),
            "log-format" if value.is_some_and(|value| value == "json") => format = LogFormat::Json,
            _ => {}
        }
    }
    (log, format)
}

/// Whether the command has the long flag `name`, and whether that has a value in the next word.
fn long_flag(command: &Command, name: &str) -> Option<bool> {
    let is_it = |arg: &&clap::Arg| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
    };
    // A single letter is a short flag in either reading.
    let arg = command.get_arguments().find(is_it).filter(|_| name.len() > 1)?;
    Some(
        matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
            && !arg.is_require_equals_set(),
    )
}

fn short_takes_value(command: &Command, word: &str) -> bool {
    let mut letters = word.chars().skip(1);
    let (Some(letter), None) = (letters.next(), letters.next()) else { return false };
    let arg = command.get_arguments().find(|arg| arg.get_short() == Some(letter));
    arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
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
