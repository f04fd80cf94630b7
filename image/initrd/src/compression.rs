//! The compression formats in which distributions ship kernels, modules and package members,
//! told apart by their first bytes.

use std::io::{self, Read};

/// No kernel, module or package member is near this size; a damaged length must not fill memory.
const MAX_DECOMPRESSED: u64 = 4 << 30;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const GZIP: &[u8] = b"\x1f\x8b\x08";
const LZ4: &[u8] = b"\x04\x22\x4d\x18";
/// The older LZ4 framing, which the kernel's own build uses.
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";

/// A reader of `data`'s plain content. Data in none of the known formats is passed as it is.
///
/// # Errors
/// When the header of a compressed stream is damaged; damage further on shows when reading.
pub fn decompressed<'a>(data: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
    let plain: Box<dyn Read + 'a> = if data.starts_with(XZ) {
        Box::new(lzma_rust2::XzReader::new(data, true))
    } else if data.starts_with(ZSTD) {
        Box::new(ruzstd::decoding::StreamingDecoder::new(data).map_err(io::Error::other)?)
    } else if data.starts_with(GZIP) {
        Box::new(flate2::read::GzDecoder::new(data))
    } else if data.starts_with(LZ4) || data.starts_with(LZ4_LEGACY) {
        Box::new(lz4_flex::frame::FrameDecoder::new(data))
    } else {
        Box::new(data)
    };
    Ok(Box::new(plain.take(MAX_DECOMPRESSED)))
}

/// The whole plain content of `data`; see [`decompressed`].
pub(crate) fn decompress(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    decompressed(data)?.read_to_end(&mut plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn text() -> Vec<u8> {
        b"the quick brown fox ".repeat(1000)
    }

    #[test]
    fn decompress_plain_is_unchanged() {
        assert_eq!(decompress(&text()).unwrap(), text());
    }

    #[test]
    fn decompress_gzip() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&text()).unwrap();
        assert_eq!(decompress(&encoder.finish().unwrap()).unwrap(), text());
    }

    #[test]
    fn decompress_lz4_legacy() {
        let block = lz4_flex::block::compress(&text());
        let size = (block.len() as u32).to_le_bytes();
        let packed = [LZ4_LEGACY, &size, &block].concat();
        assert_eq!(decompress(&packed).unwrap(), text());
    }

    #[test]
    fn decompress_zstd() {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let packed = compress_to_vec(&text()[..], CompressionLevel::Fastest);
        assert_eq!(decompress(&packed).unwrap(), text());
    }

    #[test]
    fn decompress_damaged_xz_is_an_error() {
        assert!(decompress(b"\xfd7zXZ\0 and then nothing of use").is_err());
    }
}
