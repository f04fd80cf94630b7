//! `list`: all containers below the root.

use std::fmt::Write;

use anyhow::Result;

use super::state::State;
use super::{Host, print};
use crate::cli::{ListArgs, ListFormat};

/// Only root runs virtual machines.
const OWNER: &str = "root";

pub(super) fn run(host: &Host, args: &ListArgs) -> Result<()> {
    let known = host.registry.list()?;
    for error in known.unreadable {
        host.report.warning(&format!("{error:#}"));
    }
    let mut states: Vec<State> = known.containers.into_iter().map(State::of).collect();
    for state in &mut states {
        OWNER.clone_into(&mut state.owner);
    }
    if args.quiet {
        let ids: String = states.iter().map(|state| format!("{}\n", state.id)).collect();
        return print(&ids);
    }
    match args.format {
        ListFormat::Json if states.is_empty() => print("null\n"),
        ListFormat::Json => print(&format!("{}\n", serde_json::to_string(&states)?)),
        ListFormat::Table => print(&table(&states)),
    }
}

fn table(states: &[State]) -> String {
    let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |state: &State| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    };
    aligned(&std::iter::once(heading).chain(states.iter().map(row)).collect::<Vec<_>>())
}

/// Columns as Go's tabwriter aligns them for runc: at least twelve wide, a space between.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].len() + 1).max().unwrap_or(0).max(12);
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = if column + 1 == N {
                writeln!(text, "{cell}")
            } else {
                write!(text, "{cell:<width$}", width = width(column))
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_never_narrow() {
        let rows = [["ID", "PID", "X"], ["a-long-identifier", "7", "y"]];
        let rows = rows.map(|row| row.map(str::to_owned));
        assert_eq!(
            aligned(&rows),
            "ID                PID         X\na-long-identifier 7           y\n"
        );
    }
}
