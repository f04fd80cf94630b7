//! What a kernel module says about itself: the `.modinfo` section of its ELF file, a row of
//! `key=value` strings that each end in a zero byte (Linux, scripts/mod/modpost.c).
//!
//! Packages don't ship `modules.dep`; depmod writes it on the machine where they are installed.

use object::{Object, ObjectSection};

/// The modules that this one needs loaded before it.
///
/// # Errors
/// When `module` is not an ELF file with a `.modinfo` section.
pub(crate) fn depends(module: &[u8]) -> Result<Vec<String>, object::Error> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name_bytes(b".modinfo");
    let modinfo = section.map(|section| section.data()).transpose()?.unwrap_or_default();
    Ok(modinfo
        .split(|&byte| byte == 0)
        .filter_map(|field| field.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|&byte| byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF file with a `.modinfo` section that names these dependencies.
    pub(crate) fn module(depends: &str) -> Vec<u8> {
        const HEADER: usize = 64;
        const SECTION_HEADER: usize = 64;
        let modinfo = format!("license=GPL\0depends={depends}\0name=test\0").into_bytes();
        let names = b"\0.modinfo\0.shstrtab\0";
        let contents = [(1u32, 1u32, &modinfo[..]), (10, 3, names)];

        let mut elf = vec![0; HEADER];
        elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        elf[16] = 1; // relocatable
        elf[18] = 62; // x86-64
        elf[20] = 1;
        elf[52] = HEADER as u8;
        elf[58] = SECTION_HEADER as u8;
        elf[60] = 3; // sections
        elf[62] = 2; // the one with names
        let mut headers = vec![0; SECTION_HEADER];
        for (name, kind, content) in contents {
            let mut header = [0; SECTION_HEADER];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(elf.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            header[48] = 1;
            headers.extend_from_slice(&header);
            elf.extend_from_slice(content);
        }
        let table = (elf.len() as u64).to_le_bytes();
        elf[40..48].copy_from_slice(&table);
        elf.extend_from_slice(&headers);
        elf
    }

    #[test]
    fn depends_of_some_and_none() {
        let two = ["virtio".to_owned(), "virtio_ring".to_owned()];
        assert_eq!(depends(&module("virtio,virtio-ring")).unwrap(), two);
        assert_eq!(depends(&module("")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn depends_of_no_elf_is_an_error() {
        assert!(depends(b"no module at all").is_err());
    }
}
