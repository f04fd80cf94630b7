use super::*;

fn spec(mounts: &[(&str, &str, &str, &str)]) -> Spec {
    let mounts = mounts
        .iter()
        .map(|(destination, fstype, source, options)| {
            let mut mount = Mount::default();
            mount.set_destination(destination.into());
            mount.set_typ(Some((*fstype).to_owned()));
            mount.set_source(Some(source.into()));
            mount.set_options(Some(options.split(',').map(str::to_owned).collect()));
            mount
        })
        .collect();
    let mut spec = Spec::default();
    spec.set_mounts(Some(mounts));
    spec
}

fn plan(mounts: &[(&str, &str, &str, &str)]) -> Result<GuestMounts, StorageError> {
    plan_mounts(&spec(mounts), Path::new("/"))
}

fn options(mount: &Mount) -> Vec<&str> {
    mount.options().iter().flatten().map(String::as_str).collect()
}

#[test]
fn kernel_file_systems_stay_as_they_are() {
    let mounts = [
        ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        ("/tmp", "tmpfs", "tmpfs", "nosuid,size=1m,mode=1777"),
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid"),
    ];
    let plan = plan(&mounts).unwrap();
    assert_eq!(Some(&plan.spec_mounts), spec(&mounts).mounts().as_ref());
    assert!(plan.host_binds.is_empty());
}

#[test]
fn cgroup_has_one_name() {
    let plan = plan(&[("/sys/fs/cgroup", "cgroup2", "cgroup", "ro,rslave")]).unwrap();
    assert_eq!(plan.spec_mounts[0].typ().as_deref(), Some("cgroup"));
    assert_eq!(options(&plan.spec_mounts[0]), ["ro"]);
}

#[test]
fn binds_of_host_files_are_to_be_shared_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = std::fs::canonicalize(dir.path()).unwrap();
    let file = dir.join("hosts");
    std::fs::write(&file, "").unwrap();
    let plan = plan(&[
        ("/proc", "proc", "proc", "nosuid"),
        ("/etc/hosts", "bind", file.to_str().unwrap(), "rbind,rprivate,ro"),
        ("/data", "none", dir.to_str().unwrap(), "bind,rw,rslave"),
    ])
    .unwrap();
    assert_eq!(plan.spec_mounts.len(), 3);
    assert_eq!(options(&plan.spec_mounts[1]), ["rbind", "ro"]);
    assert_eq!(plan.spec_mounts[2].typ().as_deref(), Some("bind"));
    assert_eq!(
        plan.host_binds,
        [
            HostBind {
                index: 1,
                source: file,
                destination: "/etc/hosts".into(),
                readonly: true,
                recursive: true,
                follows_host: false
            },
            HostBind {
                index: 2,
                source: dir,
                destination: "/data".into(),
                readonly: false,
                recursive: false,
                follows_host: true
            },
        ]
    );
}

#[test]
fn relative_source_is_the_bundles() {
    let bundle = tempfile::tempdir().unwrap();
    std::fs::create_dir(bundle.path().join("data")).unwrap();
    let plan = plan_mounts(&spec(&[("/data", "bind", "data", "rbind")]), bundle.path()).unwrap();
    assert_eq!(
        plan.host_binds[0].source,
        std::fs::canonicalize(bundle.path().join("data")).unwrap()
    );
}

#[test]
fn shared_memory_of_the_host_becomes_the_guests() {
    let plan = plan(&[("/dev/shm", "bind", "/dev/shm", "rbind,ro")]).unwrap();
    assert!(plan.host_binds.is_empty());
    let shm = &plan.spec_mounts[0];
    assert_eq!(plan.shared_memory.len(), 1);
    assert_eq!(shm.source().as_deref(), Some(plan.shared_memory[0].guest_path.as_path()));
    assert_eq!(options(shm), ["rbind", "ro"]);
}

#[test]
fn devices_and_system_trees_are_the_guests_own() {
    let plan = plan(&[
        ("/x", "bind", "/dev/null", "bind"),
        ("/sys/fs/cgroup", "bind", "/sys/fs/cgroup", "rbind,ro"),
    ])
    .unwrap();
    assert!(plan.host_binds.is_empty());
    assert_eq!(plan.spec_mounts[0].source().as_deref(), Some(Path::new("/dev/null")));
}

#[test]
fn missing_source_is_told_in_runcs_words() {
    let error = plan(&[("/mnt", "bind", "/nope", "rbind")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "error mounting \"/nope\" to rootfs at \"/mnt\": stat /nope: no such file or directory"
    );
}

#[test]
fn what_a_vm_cannot_have_is_refused() {
    for mount in [
        ("/data", "ext4", "/dev/sda1", "ro"),
        ("/data", "nfs", "server:/export", "ro"),
        ("/data", "bind", "/", "rbind,ridmap"),
        ("/data", "overlay", "overlay", "lowerdir=/a:/b"),
    ] {
        let error = plan(&[mount]).unwrap_err().to_string();
        assert!(error.starts_with("mount at /data cannot be made in a VM: "), "{error}");
    }
}
