//! The program is run by an interpreter of what it is made of, and compared with the rules read one
//! by one.

use oci_spec::runtime::LinuxResources;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What the kernel asks about.
#[derive(Debug, Clone, Copy)]
struct Access {
    kind: i32,
    major: i32,
    minor: i32,
    ways: i32,
}

fn rules(list: &Value) -> Result<DeviceRules, DeviceRuleError> {
    let resources: LinuxResources = serde_json::from_value(json!({ "devices": list })).unwrap();
    DeviceRules::new(resources.devices().as_deref().unwrap_or_default())
}

/// Executes the program. Whatever the kernel would refuse is an index out of bounds or a panic.
fn run(program: &[Instruction], access: Access) -> bool {
    let context = [(access.ways << 16) | access.kind, access.major, access.minor];
    let mut registers = [None::<i32>; 6];
    let mut at = 0;
    loop {
        let Instruction { code, registers: named, offset, immediate } = program[at];
        let (to, from) = (usize::from(named & 15), usize::from(named >> 4));
        let value = || registers[to].expect("a register is read before it is set");
        at += 1;
        match code {
            LOAD => registers[to] = Some(context[usize::try_from(offset).unwrap() / 4]),
            COPY => registers[to] = registers[from],
            SET => registers[to] = Some(immediate),
            AND => registers[to] = Some(value() & immediate),
            SHIFT_RIGHT => registers[to] = Some(value() >> immediate),
            IF_EQUAL | UNLESS_EQUAL => {
                if (value() == immediate) == (code == IF_EQUAL) {
                    at += usize::try_from(offset).unwrap();
                }
            }
            EXIT => return registers[0].expect("nothing is returned") == 1,
            other => panic!("an unknown instruction {other:#x}"),
        }
    }
}

/// Every way by itself: the last rule that covers it.
fn permits(rules: &[Rule], access: Access) -> bool {
    let covers = |rule: &&Rule, way: i32| {
        rule.kind.is_none_or(|kind| kind == access.kind)
            && rule.major.is_none_or(|major| major == access.major)
            && rule.minor.is_none_or(|minor| minor == access.minor)
            && rule.access & way != 0
    };
    [MKNOD, READ, WRITE]
        .into_iter()
        .filter(|way| access.ways & way != 0)
        .all(|way| rules.iter().rev().find(|rule| covers(rule, way)).is_some_and(|rule| rule.allow))
}

/// Few numbers, so that rules and accesses meet.
fn any_rule() -> impl Strategy<Value = Rule> {
    let kind = prop::option::of(BLOCK..=CHARACTER);
    let number = || prop::option::of(0..3);
    (any::<bool>(), kind, number(), number(), 1..=ALL)
        .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
}

fn any_access() -> impl Strategy<Value = Access> {
    (BLOCK..=CHARACTER, 0..4, 0..4, 1..=ALL).prop_map(|(kind, major, minor, ways)| Access {
        kind,
        major,
        minor,
        ways,
    })
}

proptest! {
    #[test]
    fn program_decides_as_the_rules_do(
        list in prop::collection::vec(any_rule(), 0..8),
        accesses in prop::collection::vec(any_access(), 1..32),
    ) {
        let mut rules = DeviceRules { allow: false, rules: Vec::new() };
        list.iter().for_each(|rule| rules.add(*rule));
        let program = rules.program();
        for access in accesses {
            prop_assert_eq!(run(&program, access), permits(&list, access), "{:?}", access);
            prop_assert!(!rules.allow_everything() || permits(&list, access));
        }
    }
}

fn decides(rules: &DeviceRules, kind: i32, major: i32, minor: i32, ways: i32) -> bool {
    run(&rules.program(), Access { kind, major, minor, ways })
}

#[test]
fn without_rules_there_are_the_devices_of_every_container() {
    for rules in [rules(&json!([])), rules(&json!([{ "allow": false, "access": "rwm" }]))] {
        let rules = rules.unwrap();
        assert!(!rules.allow_everything());
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 17)] {
            assert!(decides(&rules, CHARACTER, major, minor, ALL), "{major}:{minor}");
        }
        assert!(decides(&rules, BLOCK, 8, 0, MKNOD));
        assert!(!decides(&rules, BLOCK, 8, 0, READ));
        assert!(!decides(&rules, BLOCK, 1, 3, READ), "a block device with the numbers of null");
        assert!(!decides(&rules, CHARACTER, 1, 1, WRITE));
    }
}

#[test]
fn later_rule_wins_for_the_ways_that_it_names() {
    let rules = rules(&json!([
        { "allow": true, "type": "b", "major": 8, "access": "rw" },
        { "allow": false, "type": "b", "major": 8, "minor": 1, "access": "w" },
    ]))
    .unwrap();
    assert!(decides(&rules, BLOCK, 8, 0, READ | WRITE));
    assert!(decides(&rules, BLOCK, 8, 1, READ));
    assert!(!decides(&rules, BLOCK, 8, 1, READ | WRITE));
}

#[test]
fn privileged_container_needs_no_program() {
    let all = json!({ "allow": true, "access": "rwm" });
    assert!(rules(&json!([{ "allow": false, "access": "rwm" }, all])).unwrap().allow_everything());
    let all_but = json!([all, { "allow": false, "type": "c", "major": 1, "access": "w" }]);
    let rules = rules(&all_but).unwrap();
    assert!(!rules.allow_everything());
    assert!(!decides(&rules, CHARACTER, 1, 1, WRITE));
    assert!(decides(&rules, CHARACTER, 1, 3, WRITE), "null is every container's");
}

#[test]
fn rule_that_covers_nothing_is_refused() {
    let of = |rule: Value| rules(&json!([rule])).unwrap_err();
    assert_eq!(of(json!({ "allow": true })), DeviceRuleError::Access(0, String::new()));
    assert_eq!(
        of(json!({ "allow": true, "access": "rx" })),
        DeviceRuleError::Access(0, "rx".to_owned())
    );
    assert_eq!(of(json!({ "allow": true, "type": "p", "access": "r" })), DeviceRuleError::Fifo(0));
    let huge = json!({ "allow": true, "major": 1_i64 << 40, "access": "r" });
    assert_eq!(of(huge), DeviceRuleError::Number(0, 1 << 40));
}
