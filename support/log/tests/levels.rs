//! How much is logged, as it changes while a process runs. In a process of its own, for it is the
//! whole process's.

use tracing::level_filters::LevelFilter;

#[test]
fn levels_hold_from_the_moment_they_are_set() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    kata_log::set_levels(LevelFilter::TRACE, &[]);
    kata_log::to_file(&file, "s1", false);
    tracing::debug!("one");
    tracing::info!("two");
    kata_log::set_levels(LevelFilter::WARN, &[("driver", LevelFilter::DEBUG)]);
    tracing::info!("three");
    tracing::warn!("four");
    tracing::debug!(target: "driver::launch", "five");
    tracing::trace!(target: "driver::launch", "six");

    let log = std::fs::read_to_string(&file).unwrap();
    let messages: Vec<&str> = log.lines().filter_map(|line| line.split('"').nth(3)).collect();
    assert_eq!(messages, ["two", "four", "five"], "{log}");
}
