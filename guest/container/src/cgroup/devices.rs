//! Which devices a container may use: the specification's rules, as a program that the kernel asks
//! at every access (version 2 has no files for them).
//!
//! A rule covers devices and ways to access them, and the last one that covers a way decides about
//! it; without any it is forbidden. As with runc, the devices that every container has come last,
//! so that no rule can forbid them:
//!
//! ```text
//!  deny a *:* rwm │ allow c 10:229 rw │ ...  │ allow c *:* m │ allow c 1:3 rwm │ ...
//!  the specification's, in its order         │ those of every container
//! ```
//!
//! The program looks at them from the last to the first. It keeps the ways that are still undecided
//! in a register, and ends at the first that is forbidden, or when none is left.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use kata_linux::bpf::{self, Instruction};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::{Cgroup, CgroupError};

/// Ways to access a device, as bits that are the kernel's (`BPF_DEVCG_ACC_*` of linux/bpf.h).
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// Kinds of device (`BPF_DEVCG_DEV_*` of linux/bpf.h).
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Of a character device, with `None` for "any minor number".
const fn allowed(major: i32, minor: Option<i32>) -> Rule {
    Rule { allow: true, kind: Some(CHARACTER), major: Some(major), minor, access: ALL }
}

/// What every container may do, as runc has it: make any node, and use the devices without
/// hardware, terminals, and the makers of network tunnels.
const OF_EVERY_CONTAINER: [Rule; 11] = [
    Rule { allow: true, kind: Some(CHARACTER), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    // null, random, full, zero, urandom
    allowed(1, Some(3)),
    allowed(1, Some(8)),
    allowed(1, Some(7)),
    allowed(1, Some(5)),
    allowed(1, Some(9)),
    // tty, ptmx, pts/*
    allowed(5, Some(0)),
    allowed(5, Some(2)),
    allowed(136, None),
    // net/tun
    allowed(10, Some(200)),
];

/// What is wrong with a rule. Rules are counted from 0.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceRuleError {
    /// Without a way to access it says nothing; as with runc, it is not taken for all of them.
    #[error(
        "device rule {0} of the specification has the access {1:?}; give it some of r, w and m"
    )]
    Access(usize, String),
    /// Nothing asks about them.
    #[error("device rule {0} of the specification is for fifos (p), which are no devices")]
    Fifo(usize),
    /// Numbers have 12 and 20 bits.
    #[error("device rule {0} of the specification has the number {1}, which no device has")]
    Number(usize, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None` in these three covers everything.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn new(index: usize, rule: &LinuxDeviceCgroup) -> Result<Self, DeviceRuleError> {
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
            Some(LinuxDeviceType::P) => return Err(DeviceRuleError::Fifo(index)),
        };
        let number = |number: Option<i64>| match number {
            Some(number @ 0..) => {
                i32::try_from(number).map(Some).map_err(|_| DeviceRuleError::Number(index, number))
            }
            // -1 is another way to write "any".
            _ => Ok(None),
        };
        let words = rule.access().as_deref().unwrap_or_default();
        let access = words.chars().try_fold(0, |access, letter| match letter {
            'r' => Some(access | READ),
            'w' => Some(access | WRITE),
            'm' => Some(access | MKNOD),
            _ => None,
        });
        let access = access.filter(|access| *access != 0);
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access: access.ok_or_else(|| DeviceRuleError::Access(index, words.to_owned()))?,
        })
    }

    /// Whether it decides about everything, so that no rule before it matters.
    fn is_total(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }
}

/// Rules about devices, the last of which that covers an access decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRules {
    /// What holds where no rule does.
    allow: bool,
    rules: Vec<Rule>,
}

impl DeviceRules {
    /// The specification's rules, and after them what every container may do.
    ///
    /// # Errors
    ///
    /// Fails for a rule that covers nothing.
    pub fn new(specified: &[LinuxDeviceCgroup]) -> Result<Self, DeviceRuleError> {
        let mut all = Self { allow: false, rules: Vec::new() };
        for (index, rule) in specified.iter().enumerate() {
            all.add(Rule::new(index, rule)?);
        }
        OF_EVERY_CONTAINER.into_iter().for_each(|rule| all.add(rule));
        Ok(all)
    }

    fn add(&mut self, rule: Rule) {
        if rule.is_total() {
            self.allow = rule.allow;
            self.rules.clear();
        } else {
            self.rules.push(rule);
        }
    }

    /// Whether there is nothing that they forbid.
    fn allow_everything(&self) -> bool {
        self.allow && self.rules.iter().all(|rule| rule.allow)
    }

    /// The program that decides as the rules do. What it is given is `struct bpf_cgroup_dev_ctx`.
    fn program(&self) -> Vec<Instruction> {
        let mut program = vec![
            load(ACCESS, 0),
            copy(KIND, ACCESS),
            constant(AND, KIND, 0xffff),
            constant(SHIFT_RIGHT, ACCESS, 16),
            load(MAJOR, 4),
            load(MINOR, 8),
        ];
        for rule in self.rules.iter().rev() {
            append(rule, &mut program);
        }
        program.extend(answer(self.allow));
        program
    }
}

/// One rule: the conditions under which it covers the access, each of which else skips the rest;
/// then what it decides.
fn append(rule: &Rule, program: &mut Vec<Instruction>) {
    let mut decision = Vec::new();
    if rule.allow {
        decision.push(constant(AND, ACCESS, ALL & !rule.access));
        decision.push(jump(UNLESS_EQUAL, ACCESS, 0, ANSWER_LENGTH));
    } else {
        decision.push(copy(SCRATCH, ACCESS));
        decision.push(constant(AND, SCRATCH, rule.access));
        decision.push(jump(IF_EQUAL, SCRATCH, 0, ANSWER_LENGTH));
    }
    decision.extend(answer(rule.allow));
    let conditions = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    // Last things first, for each condition skips what comes after it.
    let mut rest = decision;
    for (register, wanted) in conditions.into_iter().rev() {
        let Some(wanted) = wanted else { continue };
        let skip = i16::try_from(rest.len()).expect("a rule has a dozen instructions at most");
        rest.insert(0, jump(UNLESS_EQUAL, register, wanted, skip));
    }
    program.extend(rest);
}

/// Registers: what is returned, the pointer to what is judged (needed only at first), and its
/// parts.
const RESULT: u8 = 0;
const SUBJECT: u8 = 1;
const SCRATCH: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Operations on 32 bits with a constant, conditional jumps, and the end (linux/bpf.h).
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SET: u8 = 0xb4;
const COPY: u8 = 0xbc;
const LOAD: u8 = 0x61;
const IF_EQUAL: u8 = 0x15;
const UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Instructions of [`answer`].
const ANSWER_LENGTH: i16 = 2;

fn answer(allow: bool) -> [Instruction; 2] {
    [
        constant(SET, RESULT, i32::from(allow)),
        Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 },
    ]
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD, registers: register | (SUBJECT << 4), offset, immediate: 0 }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: COPY, registers: to | (from << 4), offset: 0, immediate: 0 }
}

fn constant(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}

/// The filter of one group. The group's directory keeps it alive; this value, what it can be
/// replaced by.
#[derive(Debug, Default)]
pub struct DeviceFilter {
    /// The program that is attached; `None` before the first rules that forbid anything.
    program: Mutex<Option<OwnedFd>>,
}

impl DeviceFilter {
    /// Lets `rules` hold for all processes in `cgroup`, in place of those before.
    ///
    /// # Errors
    ///
    /// Fails when the kernel takes no such programs, unless there is nothing to forbid.
    pub fn enforce(&self, cgroup: &Cgroup, rules: &DeviceRules) -> Result<(), CgroupError> {
        let mut current = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() && rules.allow_everything() {
            return Ok(());
        }
        let attach = || -> io::Result<OwnedFd> {
            let program = bpf::load(bpf::Kind::CgroupDevice, &rules.program())?;
            let group = File::open(cgroup.directory())?;
            let replaced = current.as_ref().map(AsFd::as_fd);
            bpf::attach_to_cgroup(group.as_fd(), program.as_fd(), replaced)?;
            Ok(program)
        };
        *current = Some(attach().map_err(CgroupError::Devices)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
