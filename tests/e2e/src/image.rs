//! Container images, made on the spot from the host's busybox.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Where a statically linked busybox may be.
const BUSYBOX: &[&str] = &["/usr/bin/busybox", "/bin/busybox", "/usr/sbin/busybox"];

/// Users of the image: root, and one with further groups.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:root,user\nuser:x:1000:\naudio:x:29:user\n";

/// Directories with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// Files with mode, owner and content.
const FILES: &[(&str, u32, u64, &str)] = &[
    ("etc/passwd", 0o644, 0, PASSWD),
    ("etc/group", 0o644, 0, GROUP),
    ("etc/hostname", 0o644, 0, "image\n"),
    ("etc/hosts", 0o644, 0, "127.0.0.1 localhost\n"),
    ("etc/resolv.conf", 0o644, 0, "nameserver 192.0.2.1\n"),
    ("bin/not-executable", 0o644, 0, "#!/bin/sh\n"),
    ("bin/no-interpreter", 0o755, 0, "#!/no/such/interpreter\n"),
    ("srv/secret", 0o600, 0, "only root reads this\n"),
    ("srv/of-user", 0o640, 1000, "user's\n"),
    ("srv/setuid", 0o4755, 0, ""),
];

/// An image: the layer is the same in all, the configuration is not.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    config: Value,
    /// A file in a layer of its own: its name, and its size in bytes.
    file: Option<(String, usize)>,
}

impl Image {
    /// The plain one: busybox, run as root in `/`.
    #[must_use]
    pub fn busybox() -> Self {
        Self {
            name: "busybox".to_owned(),
            config: json!({
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
            }),
            file: None,
        }
    }

    /// One with another name and some of its configuration changed, like `("User", "1000:1000")`.
    #[must_use]
    pub fn busybox_with(name: &str, settings: &[(&str, Value)]) -> Self {
        let mut image = Self { name: name.to_owned(), ..Self::busybox() };
        for (key, value) in settings {
            image.config[*key] = value.clone();
        }
        image
    }

    /// One with another name and a further file of `size` bytes, in a layer of its own. `path` is
    /// relative to `/`.
    #[must_use]
    pub fn busybox_with_file(name: &str, path: &str, size: usize) -> Self {
        let file = Some((path.to_owned(), size));
        Self { name: name.to_owned(), file, ..Self::busybox() }
    }

    /// Its full reference.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("localhost/kata-e2e/{}:latest", self.name)
    }

    /// The image as a tar archive in the OCI layout; the same bytes at every call.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut layers = vec![Cow::Borrowed(layer()?)];
        if let Some((path, size)) = &self.file {
            let mut archive = Archive::new();
            // No zeros, which a file system might leave out.
            archive.file(path, 0o644, 0, &vec![1; *size])?;
            layers.push(Cow::Owned(archive.finish()?));
        }
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = to_bytes(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": ids },
        }));
        let tar = "application/vnd.oci.image.layer.v1.tar";
        let descriptors = layers.iter().map(|layer| descriptor(tar, layer));
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": descriptors.collect::<Vec<_>>(),
        }));
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({ "io.containerd.image.name": self.reference() });
        let index = to_bytes(&json!({ "schemaVersion": 2, "manifests": [entry] }));

        let mut archive = Archive::new();
        archive.file("oci-layout", 0o644, 0, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", 0o644, 0, &index)?;
        for blob in layers.iter().map(AsRef::as_ref).chain([config.as_slice(), &manifest]) {
            let name = format!("blobs/{}", digest(blob).replace(':', "/"));
            archive.file(&name, 0o644, 0, blob)?;
        }
        archive.finish()
    }

    /// The files of all images, as a tar archive.
    pub(crate) fn layer() -> Result<&'static [u8]> {
        layer()
    }

    /// Unpacks the layer into a directory, which is made.
    pub fn unpack(directory: &Path) -> Result<()> {
        let mut archive = tar::Archive::new(Cursor::new(layer()?));
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.unpack(directory).with_context(|| format!("cannot fill {}", directory.display()))
    }
}

/// The one layer, made once per process.
fn layer() -> Result<&'static [u8]> {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(layer) = LAYER.get() {
        return Ok(layer);
    }
    let made = make_layer()?;
    Ok(LAYER.get_or_init(|| made))
}

fn make_layer() -> Result<Vec<u8>> {
    let busybox = BUSYBOX.iter().map(Path::new).find(|path| path.exists());
    let busybox = busybox.context("there is no busybox; install the package busybox-static")?;
    let program = std::fs::read(busybox).context("cannot read busybox")?;
    let applets = Command::new(busybox).arg("--list").output().context("cannot run busybox")?;
    let applets = String::from_utf8(applets.stdout).context("busybox lists what is not UTF-8")?;

    let mut archive = Archive::new();
    for (name, mode) in DIRECTORIES {
        archive.directory(name, *mode, 0)?;
    }
    archive.directory("home/user", 0o750, 1000)?;
    archive.file("bin/busybox", 0o755, 0, &program)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        archive.link(EntryType::Symlink, &format!("bin/{applet}"), "busybox")?;
    }
    for (name, mode, owner, content) in FILES {
        archive.file(name, *mode, *owner, content.as_bytes())?;
    }
    archive.link(EntryType::Symlink, "srv/link-to-secret", "secret")?;
    archive.link(EntryType::Link, "srv/second-name", "srv/of-user")?;
    archive.finish()
}

/// An archive in the making.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn directory(&mut self, name: &str, mode: u32, owner: u64) -> Result<()> {
        let mut header = header(EntryType::Directory, mode, owner, 0);
        let added = self.0.append_data(&mut header, format!("{name}/"), [].as_slice());
        added.with_context(|| format!("cannot add {name}"))
    }

    fn file(&mut self, name: &str, mode: u32, owner: u64, content: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, mode, owner, content.len());
        let added = self.0.append_data(&mut header, name, content);
        added.with_context(|| format!("cannot add {name}"))
    }

    fn link(&mut self, kind: EntryType, name: &str, target: &str) -> Result<()> {
        // Of a hard link, these are the file's own.
        let (mode, owner) = if kind == EntryType::Link { (0o640, 1000) } else { (0o777, 0) };
        let mut header = header(kind, mode, owner, 0);
        let added = self.0.append_link(&mut header, name, target);
        added.with_context(|| format!("cannot add {name}"))
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("cannot finish the archive")
    }
}

fn header(kind: EntryType, mode: u32, owner: u64, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The machine's architecture as OCI calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_the_same_every_time() {
        assert_eq!(Image::busybox().archive().unwrap(), Image::busybox().archive().unwrap());
        assert_eq!(make_layer().unwrap(), layer().unwrap());
    }

    #[test]
    fn further_file_is_a_layer_of_its_own() {
        let archive = Image::busybox_with_file("x", "srv/large", 100_000).archive().unwrap();
        let mut archive = tar::Archive::new(Cursor::new(archive));
        let sizes = archive.entries().unwrap().map(|entry| entry.unwrap().size());
        // The two layers, the configuration and the manifest are the blobs.
        assert_eq!(sizes.filter(|size| *size >= 100_000).count(), 2);
    }

    #[test]
    fn layer_unpacks_with_modes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        Image::unpack(directory.path()).unwrap();
        let mode = |name: &str| {
            directory.path().join(name).metadata().unwrap().permissions().mode() & 0o7777
        };
        assert_eq!((mode("tmp"), mode("srv/secret"), mode("srv/setuid")), (0o1777, 0o600, 0o4755));
        assert!(directory.path().join("bin/sh").exists());
    }
}
