//! Tests of the ledger: what each change allows, and what it makes known.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn running(ledger: &mut Ledger, key: &ProcessKey) {
    ledger.add(key).unwrap();
    ledger.created(key);
    ledger.begin_start(key).unwrap();
    assert!(ledger.started(key));
}

#[test]
fn init_exit_waits_for_its_execs() {
    let mut ledger = Ledger::default();
    let (init, exec) = (ProcessKey::init("c"), ProcessKey::exec("c", "e"));
    running(&mut ledger, &init);
    running(&mut ledger, &exec);
    let exit = Exit::killed();
    assert!(ledger.exited(&init, exit).is_empty());
    assert_eq!(ledger.status(&init).unwrap(), Status::Running);
    let released: Vec<_> = ledger.exited(&exec, exit).into_iter().map(|(key, _)| key).collect();
    assert_eq!(released, [exec, init]);
}

#[test]
fn process_is_on_its_way_only_while_the_guest_makes_or_starts_it() {
    let mut ledger = Ledger::default();
    let init = ProcessKey::init("c");
    assert!(!ledger.is_on_its_way(&init));
    ledger.add(&init).unwrap();
    assert!(ledger.is_on_its_way(&init));
    ledger.created(&init);
    assert!(!ledger.is_on_its_way(&init));
    ledger.begin_start(&init).unwrap();
    assert!(ledger.is_on_its_way(&init));
    assert!(ledger.started(&init));
    assert!(!ledger.is_on_its_way(&init));
}

#[test]
fn stopped_process_is_killed_with_runcs_words() {
    let mut ledger = Ledger::default();
    let init = ProcessKey::init("c");
    running(&mut ledger, &init);
    ledger.exited(&init, Exit::killed());
    let refusal = ledger.may_signal(&init).unwrap_err();
    assert!(refusal.to_string().starts_with("process already finished"));
}

#[test]
fn paused_container_takes_no_exec() {
    let mut ledger = Ledger::default();
    running(&mut ledger, &ProcessKey::init("c"));
    ledger.set_paused("c", true);
    let refusal = ledger.add(&ProcessKey::exec("c", "e")).unwrap_err();
    assert_eq!(refusal.to_string(), "cannot exec in container c: it is paused");
}

#[test]
fn exec_whose_start_failed_is_deleted_and_not_started_again() {
    let mut ledger = Ledger::default();
    let exec = ProcessKey::exec("c", "e");
    running(&mut ledger, &ProcessKey::init("c"));
    ledger.add(&exec).unwrap();
    ledger.begin_start(&exec).unwrap();
    ledger.start_failed(&exec);
    let refusal = ledger.begin_start(&exec).unwrap_err();
    assert!(refusal.to_string().ends_with("it is a process that could not be started"));
    let deletion = ledger.begin_delete(&exec).unwrap();
    assert_eq!(deletion, Deletion { exit: None, empties_sandbox: false });
}

#[test]
fn exec_does_not_start_when_its_container_has_ended() {
    let mut ledger = Ledger::default();
    let (init, exec) = (ProcessKey::init("c"), ProcessKey::exec("c", "e"));
    running(&mut ledger, &init);
    ledger.add(&exec).unwrap();
    ledger.begin_start(&exec).unwrap();
    assert!(ledger.exited(&init, Exit::killed()).is_empty());
    assert_eq!(ledger.kill_remaining("c", Exit::killed()).len(), 2);
    assert!(!ledger.started(&exec));
}

#[test]
fn last_of_two_that_are_deleted_at_once_empties_the_sandbox() {
    let mut ledger = Ledger::default();
    let (one, other) = (ProcessKey::init("a"), ProcessKey::init("b"));
    for key in [&one, &other] {
        running(&mut ledger, key);
        ledger.exited(key, Exit::killed());
    }
    assert!(!ledger.begin_delete(&one).unwrap().empties_sandbox);
    assert!(ledger.begin_delete(&other).unwrap().empties_sandbox);
    // The first was interrupted, and comes again.
    assert!(ledger.begin_delete(&one).unwrap().empties_sandbox);
}

#[test]
fn created_container_is_frozen_and_entered_but_not_started_while_frozen() {
    let mut ledger = Ledger::default();
    let (init, exec) = (ProcessKey::init("c"), ProcessKey::exec("c", "e"));
    ledger.add(&init).unwrap();
    assert!(ledger.may_pause("c").is_err(), "it is being created");
    ledger.created(&init);
    running(&mut ledger, &exec);
    ledger.may_pause("c").unwrap();
    ledger.set_paused("c", true);
    assert_eq!(ledger.status(&init).unwrap(), Status::Paused);
    let refusal = ledger.begin_start(&init).unwrap_err();
    assert_eq!(refusal.to_string(), "cannot start container c: it is paused");
    ledger.may_resume("c").unwrap();
    ledger.set_paused("c", false);
    assert_eq!(ledger.status(&init).unwrap(), Status::Created);
    ledger.begin_start(&init).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8, u8),
    Created(u8, u8),
    Start(u8, u8),
    Started(u8, u8),
    StartFailed(u8, u8),
    Exited(u8, u8),
    KillRemaining(u8),
    KillAll,
    Delete(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let process = || (0..2u8, 0..3u8);
    let step = prop_oneof![
        process().prop_map(|(c, e)| Step::Add(c, e)),
        process().prop_map(|(c, e)| Step::Created(c, e)),
        process().prop_map(|(c, e)| Step::Start(c, e)),
        process().prop_map(|(c, e)| Step::Started(c, e)),
        process().prop_map(|(c, e)| Step::StartFailed(c, e)),
        process().prop_map(|(c, e)| Step::Exited(c, e)),
        (0..2u8).prop_map(Step::KillRemaining),
        Just(Step::KillAll),
        process().prop_map(|(c, e)| Step::Delete(c, e)),
    ];
    prop::collection::vec(step, 0..80)
}

fn key(container: u8, exec: u8) -> ProcessKey {
    let container = format!("c{container}");
    if exec == 0 {
        ProcessKey::init(&container)
    } else {
        ProcessKey::exec(&container, &format!("e{exec}"))
    }
}

proptest! {
    #[test]
    fn exits_are_released_once_and_init_last(steps in steps()) {
        let mut ledger = Ledger::default();
        let mut released_since_add: HashMap<ProcessKey, u32> = HashMap::new();
        for step in steps {
            let released = match step {
                Step::Add(c, e) => {
                    if ledger.add(&key(c, e)).is_ok() {
                        released_since_add.insert(key(c, e), 0);
                    }
                    Vec::new()
                }
                Step::Created(c, e) => { ledger.created(&key(c, e)); Vec::new() }
                Step::Start(c, e) => { let _ = ledger.begin_start(&key(c, e)); Vec::new() }
                Step::Started(c, e) => { let _ = ledger.started(&key(c, e)); Vec::new() }
                Step::StartFailed(c, e) => { ledger.start_failed(&key(c, e)); Vec::new() }
                Step::Exited(c, e) => ledger.exited(&key(c, e), Exit::killed()),
                Step::KillRemaining(c) => ledger.kill_remaining(&format!("c{c}"), Exit::killed()),
                Step::KillAll => ledger.kill_all(Exit::killed()),
                Step::Delete(c, e) => {
                    if ledger.begin_delete(&key(c, e)).is_ok() {
                        ledger.remove(&key(c, e));
                    }
                    Vec::new()
                }
            };
            for (process, _) in released {
                let count = released_since_add.entry(process.clone()).or_default();
                *count += 1;
                prop_assert_eq!(*count, 1, "{} exited twice", process);
                if process.exec.is_none() {
                    prop_assert!(!ledger.has_live_execs(&process.container));
                }
                prop_assert!(matches!(ledger.status(&process), Ok(Status::Stopped(_))));
            }
        }
    }
}
