//! `kernel_verity_params`: how the guest's kernel checks its root file system.

use crate::setting::Setting;
use crate::tree::Value;

/// The parameters of a hash tree (dm-verity), as upstream writes them: `name=value`, separated by
/// commas, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityParams {
    /// The root hash: 64 hexadecimal digits.
    pub root_hash: String,
    /// The salt: hexadecimal digits, two per byte, 1 to 256 bytes.
    pub salt: String,
    /// Number of data blocks, at least 1.
    pub data_blocks: u64,
    /// Size of a data block in bytes: a power of two from 512 to 65536.
    pub data_block_size: u32,
    /// Size of a block of the hash tree in bytes, likewise.
    pub hash_block_size: u32,
}

/// Digits of a SHA-256.
const HASH_DIGITS: usize = 64;

impl VerityParams {
    /// Reads the parameters; `None` when one is missing, unknown, said twice, or out of bounds.
    fn parse(text: &str) -> Option<Self> {
        let (mut root_hash, mut salt) = (None, None);
        let (mut data_blocks, mut data_block_size, mut hash_block_size) = (None, None, None);
        for pair in text.split(',') {
            let (name, value) = pair.trim().split_once('=')?;
            let said_before = match name {
                "root_hash" => root_hash.replace(digits(value)?).is_some(),
                "salt" => salt.replace(digits(value)?).is_some(),
                "data_blocks" => data_blocks.replace(value.parse().ok()?).is_some(),
                "data_block_size" => data_block_size.replace(block_size(value)?).is_some(),
                "hash_block_size" => hash_block_size.replace(block_size(value)?).is_some(),
                _ => true,
            };
            if said_before {
                return None;
            }
        }
        Some(Self {
            root_hash: root_hash.filter(|hash| hash.len() == HASH_DIGITS)?,
            salt: salt?,
            data_blocks: data_blocks.filter(|&blocks| blocks > 0)?,
            data_block_size: data_block_size?,
            hash_block_size: hash_block_size?,
        })
    }
}

/// Whole bytes in hexadecimal: these end on the kernel's command line, where nothing else may slip
/// in.
fn digits(text: &str) -> Option<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (plain && text.len().is_multiple_of(2) && (2..=512).contains(&text.len()))
        .then(|| text.to_owned())
}

fn block_size(text: &str) -> Option<u32> {
    text.parse().ok().filter(|size: &u32| size.is_power_of_two() && (512..=65536).contains(size))
}

/// `""` stands for `None`.
impl Setting for Option<VerityParams> {
    fn expected() -> String {
        "\"root_hash=HEX,salt=HEX,data_blocks=NUMBER,data_block_size=BYTES,hash_block_size=BYTES\" or \"\"".to_owned()
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) if text.is_empty() => Some(None),
            Value::Text(text) => VerityParams::parse(text).map(Some),
            _ => None,
        }
    }
    fn from_text(_: &str) -> Option<Self> {
        // Law: no annotation chooses what the guest's kernel trusts.
        None
    }
    fn to_toml(&self) -> String {
        let text = self.as_ref().map(|verity| {
            let VerityParams { root_hash, salt, data_blocks, data_block_size, hash_block_size } = verity;
            format!(
                "root_hash={root_hash},salt={salt},data_blocks={data_blocks},data_block_size={data_block_size},hash_block_size={hash_block_size}"
            )
        });
        text.unwrap_or_default().to_toml()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(hash: &str) -> String {
        format!(
            "root_hash={hash},salt=00ff,data_blocks=7,data_block_size=4096,hash_block_size=4096"
        )
    }

    #[test]
    fn parameters_are_read_and_written_alike() {
        let text = text(&"ab".repeat(32));
        let read =
            <Option<VerityParams> as Setting>::from_value(&Value::Text(text.clone())).unwrap();
        assert_eq!(read.as_ref().unwrap().data_blocks, 7);
        assert_eq!(read.to_toml(), text.to_toml());
    }

    #[test]
    fn half_a_hash_and_a_word_too_much_are_refused() {
        for text in [
            text("abcd"),
            text(&"ab".repeat(32)) + ",salt=00",
            text(&"ab".repeat(32)) + ",panic=0",
            text(&"g ".repeat(32)),
            "root_hash=".to_owned(),
        ] {
            assert_eq!(VerityParams::parse(&text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,120}") {
            if let Some(verity) = VerityParams::parse(&text) {
                prop_assert!(verity.root_hash.len() == HASH_DIGITS && verity.data_blocks > 0);
            }
        }
    }
}
