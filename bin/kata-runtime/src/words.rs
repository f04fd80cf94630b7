//! Command lines as Go's flag package reads them, for which `-no-subreaper` is the same as
//! `--no-subreaper`: some callers of runc write it that way.

use std::ffi::OsString;

use clap::{ArgAction, Command, CommandFactory};

use crate::cli::Cli;

/// Doubles the dash of every long flag that has only one. Stops at what is not a flag of ours: a
/// container's id, after which come words that are somebody else's.
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
            if !word.starts_with("--") {
                words[index] = format!("-{word}").into();
            }
            index += usize::from(takes_value && !has_value);
        } else if short_takes_value(command, word) {
            index += 1;
        }
        index += 1;
    }
    words
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
    fn the_containers_words_are_left_alone() {
        assert_eq!(read("k exec -d c1 prog -root -tty"), "k exec -d c1 prog -root -tty");
        assert_eq!(read("k exec -u 7 -tty c1 prog -env"), "k exec -u 7 --tty c1 prog -env");
        assert_eq!(read("k ps -format json c1 -ef"), "k ps --format json c1 -ef");
    }
}
