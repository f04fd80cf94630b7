//! Users that nobody is: the id that a process gives to what it starts and does not trust.
//!
//! The id is made of the process's own, so it needs no list that could be lost or leak: as long as
//! the process is there its id is nobody else's, and what it has started does not outlive it
//! ([`crate::process`]).

use std::fs;

/// The first of the ids. From here to the last one neither distributions' ranges reach, nor those
/// that containers and directory services are given by default (systemd's UIDS-GIDS, login.defs(5),
/// sssd-ldap(5)).
const FIRST: u32 = 0x7f00_0000;

/// More process ids than any kernel has (PID_MAX_LIMIT in linux/threads.h).
const MOST_PROCESSES: u32 = 1 << 22;

/// The id, of a user and of a group, for what this process starts. In this PID namespace no other
/// process gives the same.
#[must_use]
pub fn of_this_process() -> u32 {
    FIRST + std::process::id() % MOST_PROCESSES
}

/// Whether this process can make another one of this user and group: in a user namespace many ids
/// are nobody's (user_namespaces(7)).
#[must_use]
pub fn exists(id: u32) -> bool {
    // Without user namespaces in the kernel there are no such files, and no missing ids.
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|map| fs::read_to_string(map).map_or(true, |map| holds(&map, id)))
}

/// Whether a map of ids, lines of "first inside, first outside, how many", has this one.
fn holds(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_has_one_user_to_give_which_is_no_users() {
        let user = of_this_process();
        assert_eq!(user, of_this_process());
        // Containers of systemd end below it, and what is an error in a signed number begins above.
        assert!((1_879_048_192..2_147_352_576).contains(&user), "{user}");
    }

    #[test]
    fn every_user_exists_outside_of_user_namespaces_and_few_in_them() {
        assert!(holds("         0          0 4294967295\n", FIRST));
        assert!(!holds("         0     100000      65536\n", FIRST));
        let several = format!("0 100000 65536\n{FIRST} 7 1\n");
        assert!(holds(&several, FIRST) && !holds(&several, FIRST + 1));
        assert!(!holds("", 0));
    }
}
