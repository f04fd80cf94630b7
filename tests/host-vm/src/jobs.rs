//! What the machine says over its port (see `files/jobs`).

/// One line of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The machine takes jobs from now on.
    Ready,
    /// Output, both streams in one.
    Output(String),
    /// The job has ended with this exit status.
    Status(i32),
}

impl Line {
    /// A line without its end. `None` for one that means nothing: the empty one before a status, or
    /// half of one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches(['\r', '\n']);
        if line == "ready" {
            return Some(Self::Ready);
        }
        match line.split_at_checked(1)? {
            (" ", output) => Some(Self::Output(output.to_owned())),
            ("=", status) => status.parse().ok().map(Self::Status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_never_taken_for_a_status() {
        assert_eq!(Line::parse("ready\r\n"), Some(Line::Ready));
        assert_eq!(Line::parse(" =0\n"), Some(Line::Output("=0".to_owned())));
        assert_eq!(Line::parse(" ready\n"), Some(Line::Output("ready".to_owned())));
        assert_eq!(Line::parse("=101\n"), Some(Line::Status(101)));
        assert_eq!(Line::parse("\n"), None);
        assert_eq!(Line::parse("=\n"), None);
        assert_eq!(Line::parse("é"), None);
    }
}
