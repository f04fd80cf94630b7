//! A cgroup for real; needs root. The one test of its program: the whole process enters the cgroup, and whatever another test started
//! meanwhile would be born there.

use kata_linux::cgroup::{HostCgroup, Membership};

#[test]
fn cgroup_is_made_entered_and_removed() {
    let path = format!("/kata-test-{}", std::process::id());
    let before = Membership::of_this_process().unwrap();
    let cgroup = HostCgroup::create(&path).unwrap();
    cgroup.enter().unwrap();
    assert!(cgroup.processes().contains(&std::process::id()));
    before.restore().unwrap();
    assert!(cgroup.processes().is_empty());
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    assert!(cgroup.dirs().iter().all(|dir| !dir.exists()));
}
