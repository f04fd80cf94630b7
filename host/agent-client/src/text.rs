//! Text from the guest, made fit for logs, terminals and paths of the host.

/// The text on one line without control characters, cut off after at most `max` bytes.
///
/// Runs of control characters (line breaks, terminal sequences) become one space.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    const CUT: char = '…';
    let mut line = String::new();
    for piece in text.split(char::is_control).filter(|piece| !piece.is_empty()) {
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

/// Whether the text can be the id of a container: a plain file name of at most 128 bytes.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-+".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_bounded_line() {
        assert_eq!(one_line("plain", 64), "plain");
        assert_eq!(one_line("a\r\nb\x1b[31mc\n", 64), "a b [31mc");
        assert_eq!(one_line("\u{9b}2J", 64), "2J");
        assert_eq!(one_line(" \n ", 64), "");
        assert_eq!(one_line("ääää", 8), "ääää");
        assert_eq!(one_line("äääää", 8), "ää…");
        assert!(one_line(&"x\n".repeat(10_000), 4096).len() <= 4096);
    }

    #[test]
    fn an_id_is_a_plain_name() {
        assert!(is_id("0a1b_c-d.e"));
        for text in ["", ".", "..", "../x", "a/b", "a b", "-a", "ä", &"x".repeat(129)] {
            assert!(!is_id(text), "{text:?}");
        }
    }
}
