//! Text from the guest, made fit for logs, terminals and paths of the host.

/// The text on one line without characters that a terminal obeys, cut off after at most `max`
/// bytes.
///
/// Runs of them (line breaks, terminal sequences, marks that turn the text's direction) become one
/// space.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    const CUT: char = '…';
    let mut line = String::new();
    for piece in text.split(kata_log::is_hidden).filter(|piece| !piece.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        // One character too many tells that there was more.
        line.extend(piece.chars().take(max.saturating_sub(line.len()) + 1));
        if line.len() > max {
            while line.len() + CUT.len_utf8() > max && line.pop().is_some() {}
            line.push(CUT);
            break;
        }
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_bounded_line() {
        assert_eq!(one_line("plain", 64), "plain");
        assert_eq!(one_line("a\r\nb\x1b[31mc\n", 64), "a b [31mc");
        assert_eq!(one_line("\u{9b}2J", 64), "2J");
        assert_eq!(one_line("not\u{202e}\u{2066}ok\u{2028}", 64), "not ok");
        assert_eq!(one_line(" \n ", 64), "");
        assert_eq!(one_line("ääää", 8), "ääää");
        assert_eq!(one_line("äääää", 8), "ää…");
        assert!(one_line(&"x\n".repeat(10_000), 4096).len() <= 4096);
    }
}
