//! Characters of a stranger's text that would not show as what they are.

/// Whether a terminal or a viewer obeys the character in place of showing it: a control character,
/// a separator of lines or paragraphs, or a mark that turns the direction of the text around it, so
/// that another text is read than the one that is there.
#[must_use]
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_obeyed_and_not_shown_is_hidden() {
        for character in "\0\t\n\r\x1b\x7f\u{85}\u{9b}\u{61c}\u{200e}\u{200f}".chars() {
            assert!(is_hidden(character), "{character:?}");
        }
        for character in ('\u{2028}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert!(is_hidden(character), "{character:?}");
        }
        for character in "a ä…漢\u{202f}\u{2065}\u{200d}".chars() {
            assert!(!is_hidden(character), "{character:?}");
        }
    }
}
