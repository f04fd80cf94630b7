//! `logs`: what the guest of a sandbox says: its console, which its kernel writes to, and its
//! agent's log.
//!
//! The guest is not trusted: on a terminal its control characters are shown, not obeyed, and no
//! line is longer than [`LONGEST_LINE`].

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use kata_channel::LOG_PORT;
use kata_channel::guest_socket::GuestRequest;
use rustix::event::{PollFd, PollFlags, poll};

use super::Host;
use crate::cli::{LogSource, LogsArgs};
use crate::guest::Guest;

/// The longest line that is shown, in bytes; the rest of a longer one is another line.
const LONGEST_LINE: usize = 8192;

/// How long an agent may take to end a log of which only the past was asked for. One that does not
/// know how to goes on for ever.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run(host: &Host, args: &LogsArgs) -> Result<()> {
    let guest = Guest::of(host, &args.id)?;
    let both = args.source.is_none();
    let visible = io::stdout().is_terminal();
    let printer = |name| Printer::new(if both { name } else { "" }, visible);
    let mut sources = Vec::new();
    if args.source != Some(LogSource::Agent) {
        let stream = guest.ask(GuestRequest::Console { follow: args.follow })?;
        sources.push(Source { stream, printer: printer("console: ") });
    }
    if args.source != Some(LogSource::Console) {
        match agent_log(&guest, args.follow) {
            Ok(stream) => sources.push(Source { stream, printer: printer("agent: ") }),
            // The console may tell why.
            Err(error) if both => host.report.warning(&format!("only the console: {error:#}")),
            Err(error) => return Err(error),
        }
    }
    let mut out = io::stdout().lock();
    let shown = if args.follow {
        follow(&mut sources, &mut out)
    } else {
        one_by_one(&mut sources, &mut out)
    };
    match shown {
        // Who reads has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        shown => shown.context("the log is cut"),
    }
}

/// The agent's log. One that is not followed ends with what was said so far.
fn agent_log(guest: &Guest, follow: bool) -> Result<UnixStream> {
    let stream = guest.ask(GuestRequest::Connect(LOG_PORT))?;
    if !follow {
        stream.shutdown(Shutdown::Write).context("cannot ask for the past only")?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    Ok(stream)
}

/// A stream of lines.
struct Source {
    stream: UnixStream,
    printer: Printer,
}

impl Source {
    /// Shows the next piece. False at the end.
    fn show(&mut self, out: &mut impl Write) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.printer.end(out).map(|()| false),
            Ok(length) => self.printer.print(&chunk[..length], out).map(|()| true),
            Err(error) if is_end(&error) => self.printer.end(out).map(|()| false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// A sandbox that ends resets its streams; an agent that does not end its log is not waited for.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionReset, TimedOut, WouldBlock};
    matches!(error.kind(), ConnectionReset | TimedOut | WouldBlock)
}

fn one_by_one(sources: &mut [Source], out: &mut impl Write) -> io::Result<()> {
    for source in sources {
        while source.show(out)? {}
    }
    Ok(())
}

/// Until all have ended, which is the sandbox's end.
fn follow(sources: &mut Vec<Source>, out: &mut impl Write) -> io::Result<()> {
    while !sources.is_empty() {
        let mut fds: Vec<_> =
            sources.iter().map(|source| PollFd::new(&source.stream, PollFlags::IN)).collect();
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for index in (0..sources.len()).rev().filter(|index| ready[*index]) {
            if !sources[index].show(out)? {
                sources.remove(index);
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Makes whole lines of pieces, each with its source before it.
struct Printer {
    name: &'static str,
    /// Whether control characters are made visible.
    visible: bool,
    line: Vec<u8>,
}

impl Printer {
    fn new(name: &'static str, visible: bool) -> Self {
        Self { name, visible, line: Vec::new() }
    }

    fn print(&mut self, piece: &[u8], out: &mut impl Write) -> io::Result<()> {
        for &byte in piece {
            if byte == b'\n' || self.line.len() == LONGEST_LINE {
                self.end(out)?;
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    /// Shows the line as far as it has come.
    fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        // A console's lines end in both characters.
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            return Ok(());
        }
        out.write_all(self.name.as_bytes())?;
        if self.visible {
            out.write_all(harmless(line).as_bytes())?;
        } else {
            out.write_all(line)?;
        }
        out.write_all(b"\n")
    }
}

/// Text that no terminal obeys: what it would not show, and what is no text, by their numbers. A
/// tab stays.
fn harmless(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for character in String::from_utf8_lossy(line).chars() {
        match character {
            '\t' => text.push('\t'),
            hidden if kata_log::is_hidden(hidden) => text.extend(hidden.escape_default()),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(pieces: &[&[u8]], visible: bool) -> String {
        let (mut printer, mut out) = (Printer::new("guest: ", visible), Vec::new());
        for piece in pieces {
            printer.print(piece, &mut out).unwrap();
        }
        printer.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_and_carry_their_source() {
        let text = printed(&[b"one\r\ntw", b"o\n\nthree"], true);
        assert_eq!(text, "guest: one\nguest: two\nguest: three\n");
    }

    #[test]
    fn terminal_obeys_nothing_of_the_guests() {
        let text = printed(&[b"\x1b[2J\x1b]0;title\x07 \xff tab\there \xc2\x9b31m"], true);
        assert_eq!(text, "guest: \\u{1b}[2J\\u{1b}]0;title\\u{7} \u{fffd} tab\there \\u{9b}31m\n");
        assert_eq!(harmless("a\u{202e}b\u{2028}".as_bytes()), "a\\u{202e}b\\u{2028}");
        assert_eq!(harmless(b"carriage\rreturn"), "carriage\\rreturn");
    }

    #[test]
    fn program_that_reads_gets_the_bytes() {
        assert_eq!(printed(&[b"\x1b[1mbold\n"], false), "guest: \x1b[1mbold\n");
    }

    #[test]
    fn endless_line_is_cut() {
        let text = printed(&[&vec![b'x'; 3 * LONGEST_LINE]], true);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| line.len() <= LONGEST_LINE + "guest: ".len()));
    }
}
