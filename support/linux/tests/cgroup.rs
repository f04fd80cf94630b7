//! A cgroup for real; needs root. The one test of its program: the whole process enters the cgroup,
//! and whatever another test started meanwhile would be born there.

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

    // Where there is one, another's own is within it, and the outer one is left to it.
    let plan = HostCgroup::plan(&path, "own").unwrap();
    assert!(plan.dirs().iter().all(|dir| dir.ends_with("own") && !dir.exists()));
    assert_eq!(plan.around(), cgroup.dirs());
    let own = plan.make().unwrap().unwrap();
    assert_eq!(own.dirs(), plan.dirs());
    cgroup.remove().unwrap();
    own.enter().unwrap();
    let inside = Membership::of_this_process().unwrap();
    before.restore().unwrap();
    own.remove().unwrap();
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    assert!(cgroup.dirs().iter().all(|dir| !dir.exists()));

    // Where there is none, it is the cgroup itself, unless somebody is quicker.
    let plan = HostCgroup::plan(&path, "own").unwrap();
    assert_eq!(plan.dirs(), cgroup.dirs());
    assert!(plan.around().is_empty());
    let quicker = HostCgroup::create(&path).unwrap();
    assert!(plan.make().unwrap().is_none());
    quicker.remove().unwrap();

    // A process whose cgroup has been removed meanwhile goes to the root.
    inside.restore().unwrap();
    before.restore().unwrap();
}
