//! Images against erofs-utils, where those are installed: they find no fault in one, and take out
//! of it what was put in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use kata_erofs::{Attribute, Image, Kind, Node, NodeId};
use proptest::prelude::*;

/// The image's bytes, when every file holds its own number again and again.
fn written(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let content = |id: NodeId| Ok(std::io::repeat(number(id)));
    let length = image.write(&mut bytes, content).unwrap();
    assert_eq!(length, bytes.len() as u64);
    bytes
}

fn number(id: NodeId) -> u8 {
    format!("{id:?}").bytes().fold(0, u8::wrapping_add)
}

/// Has the image checked, and unpacked into `to`.
fn unpacked(bytes: &[u8], to: &Path) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let output = Command::new("fsck.erofs")
        .arg(format!("--extract={}", to.display()))
        .arg(file.path())
        .output()
        .expect("fsck.erofs runs: install erofs-utils");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && !said.contains("rror"), "{said}");
}

#[test]
fn every_kind_of_file_comes_out_as_it_went_in() {
    let mut image = Image::new(Node::plain(0o755, Kind::Directory));
    let plain = |kind| Node::plain(0o640, kind);
    let dir = image.add(Image::ROOT, b"dir", Node { mode: 0o1777, ..plain(Kind::Directory) });
    let dir = dir.unwrap();
    let capability = Attribute::new(b"security.capability", vec![1; 20]).unwrap();
    let user = Attribute::new(b"user.odd", b"val".to_vec()).unwrap();
    let file = Node {
        uid: 100_000,
        gid: 70_000,
        mtime: 1_700_000_000,
        attributes: vec![capability, user],
        ..plain(Kind::File(10_000))
    };
    let file = image.add(dir, b"file", file).unwrap();
    image.link(Image::ROOT, b"hard", file).unwrap();
    image.add(dir, b"soft", plain(Kind::Symlink(b"../hard".to_vec()))).unwrap();
    image.add(dir, b"empty", plain(Kind::File(0))).unwrap();
    image.add(dir, b"null", plain(Kind::CharDevice(1, 3))).unwrap();
    image.add(dir, b"disk", plain(Kind::BlockDevice(259, 70_000))).unwrap();
    image.add(dir, b"fifo", plain(Kind::Fifo)).unwrap();
    for number in 0..600 {
        image.add(dir, format!("many-{number:0100}").as_bytes(), plain(Kind::File(1))).unwrap();
    }
    let bytes = written(&image);
    assert_eq!(bytes, written(&image));

    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    unpacked(&bytes, &out);
    let content = fs::read(out.join("dir/file")).unwrap();
    assert_eq!(content, vec![number(file); 10_000]);
    let (soft, hard) =
        (fs::metadata(out.join("dir/soft")).unwrap(), fs::metadata(out.join("hard")).unwrap());
    assert_eq!((soft.len(), hard.nlink() >= 1), (10_000, true));
    assert_eq!((hard.mode() & 0o7777, hard.mtime()), (0o640, 1_700_000_000));
    assert_eq!(fs::metadata(out.join("dir")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::read_dir(out.join("dir")).unwrap().count(), 606);
    if rustix::process::geteuid().is_root() {
        assert_eq!((hard.uid(), hard.gid()), (100_000, 70_000));
        let disk = fs::symlink_metadata(out.join("dir/disk")).unwrap();
        assert!(disk.file_type().is_block_device());
        assert_eq!(disk.rdev(), rustix::fs::makedev(259, 70_000));
    }
}

#[test]
fn what_cannot_be_in_an_image_is_refused() {
    let mut image = Image::new(Node::plain(0o755, Kind::Directory));
    let file = image.add(Image::ROOT, b"file", Node::plain(0o644, Kind::File(1))).unwrap();
    for name in [&b""[..], b"a/b", b"file", b".", b"..", &[b'x'; 256]] {
        assert!(image.add(Image::ROOT, name, Node::plain(0, Kind::Fifo)).is_err(), "{name:?}");
    }
    assert!(image.add(file, b"below", Node::plain(0, Kind::Fifo)).is_err());
    assert!(image.add(Image::ROOT, b"l", Node::plain(0, Kind::Symlink(Vec::new()))).is_err());
    assert!(image.link(Image::ROOT, b"again", Image::ROOT).is_err());
    let short = image.write(&mut Vec::new(), |_| Ok(std::io::empty())).unwrap_err();
    assert!(short.to_string().contains("shorter"), "{short}");
    assert_eq!(Attribute::new(b"system.nfs4_acl", Vec::new()), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Names of any length fill the blocks of a directory in any way.
    #[test]
    fn directories_of_any_names_are_whole(names in prop::collection::btree_set("[a-z]{1,255}", 0..200)) {
        let mut image = Image::new(Node::plain(0o755, Kind::Directory));
        for name in &names {
            image.add(Image::ROOT, name.as_bytes(), Node::plain(0o600, Kind::File(0))).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        unpacked(&written(&image), &out);
        let found: std::collections::BTreeSet<String> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        prop_assert_eq!(found, names);
    }
}
