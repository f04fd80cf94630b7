//! The hash tree of dm-verity (Linux, Documentation/admin-guide/device-mapper/verity.rst), format 1
//! without a superblock.
//!
//! Hashes of data blocks fill blocks, whose hashes fill blocks again, until one is left: its hash
//! is the root hash. On disk the last level comes first.

use sha2::{Digest, Sha256};

/// Size of data and hash blocks in bytes.
pub(crate) const BLOCK: usize = 4096;
const HASH: usize = 32;

/// What the guest's kernel must be told to check an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verity {
    /// The root hash in hexadecimal.
    pub root_hash: String,
    /// The salt in hexadecimal.
    pub salt: String,
    /// Number of data blocks of 4096 bytes.
    pub data_blocks: usize,
}

impl Verity {
    /// The value of `kernel_verity_params` in the configuration.
    #[must_use]
    pub fn kernel_verity_params(&self) -> String {
        let Self { root_hash, salt, data_blocks } = self;
        format!(
            "root_hash={root_hash},salt={salt},data_blocks={data_blocks},data_block_size={BLOCK},hash_block_size={BLOCK}"
        )
    }
}

/// The hash tree of `data`, whose length is a multiple of [`BLOCK`]. The salt is the data's own
/// hash: no two images share one, and the same image always has the same.
pub(crate) fn hash_tree(data: &[u8]) -> (Vec<u8>, Verity) {
    assert!(data.len().is_multiple_of(BLOCK), "file systems are whole blocks");
    let salt = Sha256::digest(data);
    let hash = |block: &[u8]| Sha256::new_with_prefix(salt).chain_update(block).finalize();
    let mut levels: Vec<Vec<u8>> = Vec::new();
    let mut hashes: Vec<_> = data.chunks(BLOCK).map(hash).collect();
    while hashes.len() > 1 {
        let mut level = hashes.concat();
        level.resize(level.len().next_multiple_of(BLOCK), 0);
        hashes = level.chunks(BLOCK).map(hash).collect();
        levels.push(level);
    }
    let root = hashes.first().map(|hash| hash.to_vec()).unwrap_or_default();
    let verity = Verity {
        root_hash: hexadecimal(&root),
        salt: hexadecimal(&salt),
        data_blocks: data.len() / BLOCK,
    };
    levels.reverse();
    debug_assert_eq!(BLOCK % HASH, 0, "hashes fill a block without a rest");
    (levels.concat(), verity)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
