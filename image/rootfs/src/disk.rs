//! The disk around the file system: a partition table, the file system in partition 1 and its hash
//! tree in partition 2, where upstream's images have them.

const SECTOR: usize = 512;
/// Partitions begin at whole MiB.
const ALIGNMENT: usize = 1 << 20;
/// Where the four entries of a boot record are, and its mark.
const TABLE: usize = 446;
const ENTRY: usize = 16;
const MARK: [u8; 2] = [0x55, 0xaa];
/// "Linux".
const LINUX: u8 = 0x83;

/// A disk with these partitions, at most four and 2 TiB.
pub(crate) fn disk(partitions: &[Vec<u8>]) -> Vec<u8> {
    assert!(partitions.len() <= 4, "a boot record has four entries");
    let mut disk = vec![0; ALIGNMENT];
    for (number, content) in partitions.iter().enumerate() {
        let entry = partition(disk.len(), content.len());
        disk[TABLE + number * ENTRY..][..ENTRY].copy_from_slice(&entry);
        disk.extend_from_slice(content);
        disk.resize(disk.len().next_multiple_of(ALIGNMENT), 0);
    }
    disk[SECTOR - MARK.len()..SECTOR].copy_from_slice(&MARK);
    disk
}

/// An entry by sectors; the older fields say "beyond what cylinders can count".
fn partition(start: usize, length: usize) -> [u8; ENTRY] {
    let sectors = |bytes: usize| {
        u32::try_from(bytes.div_ceil(SECTOR))
            .expect("images are far smaller than 2 TiB")
            .to_le_bytes()
    };
    let mut entry = [0; ENTRY];
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = LINUX;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&sectors(start));
    entry[12..16].copy_from_slice(&sectors(length));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_aligned_and_listed() {
        let disk = disk(&[vec![1; 5000], vec![2; 4096]]);
        assert_eq!(disk.len(), 3 << 20);
        assert_eq!(&disk[510..512], &MARK);
        assert_eq!(disk[TABLE + 8..TABLE + 16], [0, 8, 0, 0, 10, 0, 0, 0]);
        assert_eq!(disk[TABLE + ENTRY + 8..TABLE + ENTRY + 16], [0, 16, 0, 0, 8, 0, 0, 0]);
        assert_eq!((disk[ALIGNMENT], disk[2 * ALIGNMENT]), (1, 2));
    }
}
