//! As much of PCI's configuration space as tells whether there is a device in a port.

use std::io;

/// Offsets and bits of the configuration space (PCI Local Bus 3.0, 6.1 and 6.7; PCI Express Base
/// 5.0, 7.5.3; linux/pci_regs.h has their names).
const CAPABILITIES: u64 = 0x34;
const PCI_EXPRESS: u8 = 0x10;
const EXPRESS_FLAGS: u64 = 0x02;
const HAS_SLOT: u8 = 1 << 0;
const SLOT_STATUS: u64 = 0x1a;
const PRESENT: u8 = 1 << 6;

/// There is room for no more capabilities; a list that goes round has no end.
const MOST: usize = 48;

/// Whether a device is a port of PCI Express with a slot that something is in. `read` fills a
/// buffer with what is at an offset of its configuration space; what cannot be read is not there.
pub(crate) fn slot_is_filled(read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> bool {
    let byte = |at: u64| {
        let mut byte = [0];
        read(&mut byte, at).ok().map(|()| byte[0])
    };
    let mut at = byte(CAPABILITIES).map_or(0, |at| u64::from(at & !3));
    for _ in 0..MOST {
        if at < 0x40 {
            break;
        }
        if byte(at) == Some(PCI_EXPRESS) {
            // The second byte of the flags, and the first of the status.
            let has_slot = byte(at + EXPRESS_FLAGS + 1).is_some_and(|flags| flags & HAS_SLOT != 0);
            let status = || byte(at + SLOT_STATUS).is_some_and(|status| status & PRESENT != 0);
            return has_slot && status();
        }
        at = byte(at + 1).map_or(0, |next| u64::from(next & !3));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device with capabilities at 0x40 (power management) and 0x50.
    fn config(second: u8, flags: u8, status: u8) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[0x34] = 0x40;
        (config[0x40], config[0x41]) = (0x01, 0x50);
        (config[0x50], config[0x51]) = (second, 0x40);
        (config[0x53], config[0x6a]) = (flags, status);
        config
    }

    fn filled(config: &[u8]) -> bool {
        slot_is_filled(|buffer, at| {
            let at = usize::try_from(at).unwrap();
            let bytes = config.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    #[test]
    fn port_with_something_in_its_slot_is_told_from_others() {
        assert!(filled(&config(0x10, 0x01, 0x40)));
        assert!(!filled(&config(0x10, 0x01, 0x00)), "nothing is in it");
        assert!(!filled(&config(0x10, 0x00, 0x40)), "there is no slot");
        assert!(
            !filled(&config(0x11, 0x01, 0x40)),
            "it is no PCI Express, and the list goes round"
        );
        assert!(!filled(&config(0x10, 0x01, 0x40)[..64]), "it cannot be read");
        assert!(!filled(&[]));
    }
}
