//! An error for a line of a log, or for a message to whoever asked.

use std::error::Error;
use std::fmt::Write;

/// An error with all its causes, on one line. A cause that the text before it ends with already is
/// not said again.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, io::Error);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn causes_follow_once_each_on_one_line() {
        let cause = || io::Error::other("no\nspace");
        assert_eq!(chain(&Failed("cannot write", cause())), "cannot write: no space");
        assert_eq!(chain(&Failed("cannot write: no\nspace", cause())), "cannot write: no space");
    }
}
