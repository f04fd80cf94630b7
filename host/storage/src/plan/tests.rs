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
    ] {
        let error = plan(&[mount]).unwrap_err().to_string();
        assert!(error.starts_with("mount at /data cannot be made in a VM: "), "{error}");
    }
}

#[test]
fn overlays_are_the_hosts_to_mount() {
    let told = "lowerdir=/a,upperdir=/b,workdir=/c,private,ro,nosuid";
    let plan = plan(&[("/data", "overlay", "/merge", told)]).unwrap();
    let [in_guest] = &plan.spec_mounts[..] else { panic!("{plan:?}") };
    assert_eq!((in_guest.typ().as_deref(), in_guest.source()), (Some("bind"), &None));
    assert_eq!(options(in_guest), ["bind", "ro", "nosuid"]);
    let options = ["lowerdir=/a", "upperdir=/b", "workdir=/c", "ro", "nosuid"].map(str::to_owned);
    assert_eq!(plan.host_overlays, [HostOverlay { index: 0, options: options.to_vec() }]);
    for odd in [r"lowerdir=/a\:b", "lowerdir+=/a", "datadir+=/a"] {
        let error = plan_mounts(&spec(&[("/data", "overlay", "/merge", odd)]), Path::new("/"));
        assert!(error.unwrap_err().to_string().contains("not understood"), "{odd}");
    }
    let of_kernel = ("/data", "overlay", "/merge", "lowerdir=/srv:/proc/sys");
    let error = plan_mounts(&spec(&[of_kernel]), Path::new("/")).unwrap_err();
    assert!(error.to_string().contains("/proc/sys"), "{error}");
}

#[test]
fn empty_dir_of_the_own_pod_alone_is_one_for_who_reads_and_who_writes() {
    let kubelet = tempfile::tempdir().unwrap();
    let kubelet = kubelet.path().canonicalize().unwrap();
    let volume = |pod: &str| {
        let volume = kubelet.join("pods").join(pod).join("volumes/kubernetes.io~empty-dir/data");
        std::fs::create_dir_all(&volume).unwrap();
        volume.display().to_string()
    };
    let (own, other) = (volume("1"), volume("11"));
    let mut spec = spec(&[
        ("/own", "bind", &own, "rbind,rprivate,ro"),
        ("/rw", "bind", &own, "rbind,rprivate,rw"),
        ("/other", "bind", &other, "rbind,rprivate,ro"),
    ]);
    let readonly = |spec: &Spec| {
        let plan = plan_mounts(spec, Path::new("/")).unwrap();
        assert_eq!(options(&plan.spec_mounts[0]), ["rbind", "ro"], "the guest's container reads");
        plan.host_binds.iter().map(|bind| bind.readonly).collect::<Vec<_>>()
    };
    assert_eq!(readonly(&spec), [true, false, true], "nobody tells the pod");
    let pod = ("io.kubernetes.cri.sandbox-uid".to_owned(), "1".to_owned());
    spec.set_annotations(Some([pod.clone()].into()));
    assert_eq!(readonly(&spec), [false, false, true]);
    let label = ("io.kubernetes.pod.uid".to_owned(), "11".to_owned());
    spec.set_annotations(Some([pod, label].into()));
    assert_eq!(readonly(&spec), [true, false, true], "one of them is not the engine's");
}
