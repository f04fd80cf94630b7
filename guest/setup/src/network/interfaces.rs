//! Interfaces and their addresses.

use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::{Network, NetworkError, Prefix, change, link_name};
use crate::uevent::Uevents;

/// An interface, as it is or as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its name in the guest, at most 15 bytes.
    pub name: String,
    /// Its hardware address, which is how a wanted interface is found; empty for loopback and
    /// tunnels.
    pub hardware_address: Vec<u8>,
    /// 0 in a wanted interface means "leave it".
    pub mtu: u32,
    /// Exactly these; others are taken away.
    pub addresses: Vec<Prefix>,
    /// Whether the interface does not speak ARP (IFF_NOARP).
    pub no_arp: bool,
}

impl Network {
    /// Brings the loopback interface up.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no loopback interface or refuses.
    pub async fn loopback_up(&self) -> Result<(), NetworkError> {
        // The kernel makes it before any other, in every namespace.
        const INDEX: u32 = 1;
        let up = LinkUnspec::new_with_index(INDEX).up().build();
        self.handle.link().set(up).execute().await.map_err(change("bring the loopback up"))
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses to list them.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetworkError> {
        let addresses = self.addresses().await?;
        Ok(self.links().await?.iter().map(|link| describe(link, &addresses)).collect())
    }

    /// Makes the interface with `wanted.hardware_address` be as wanted, and up; waits for at most
    /// `patience` until it appears. Yields what it is afterwards.
    ///
    /// # Errors
    ///
    /// Fails when there is no such interface after that time, or when the kernel refuses a change;
    /// the changes before it stay.
    pub async fn update_interface(
        &self,
        wanted: &Interface,
        patience: Duration,
    ) -> Result<Interface, NetworkError> {
        let link = self.wait_for_link(&wanted.hardware_address, patience).await?;
        let index = link.header.index;
        if link_name(&link) != Some(wanted.name.as_str()) {
            self.rename(index, &wanted.name).await?;
        }
        self.replace_addresses(index, &wanted.addresses).await?;
        let mut message = LinkUnspec::new_with_index(index).arp(!wanted.no_arp).up();
        if wanted.mtu != 0 {
            message = message.mtu(wanted.mtu);
        }
        let what = format!("bring interface {} up", wanted.name);
        self.handle.link().set(message.build()).execute().await.map_err(change(what))?;

        let interfaces = self.interfaces().await?;
        interfaces
            .into_iter()
            .find(|interface| interface.name == wanted.name)
            .ok_or_else(|| NetworkError::NoInterface { wanted: wanted.name.clone() })
    }

    /// Renaming needs the interface down, and the name free: whoever has it gets a name of its own.
    async fn rename(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        if let Ok(holder) = self.index_of(name).await {
            self.set_name(holder, &format!("kata{holder}")).await?;
        }
        self.set_name(index, name).await
    }

    async fn set_name(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).down().name(name).build();
        let what = format!("rename interface {index} to {name:?}");
        self.handle.link().set(message).execute().await.map_err(change(what))
    }

    async fn replace_addresses(&self, index: u32, wanted: &[Prefix]) -> Result<(), NetworkError> {
        for message in self.addresses().await? {
            if message.header.index == index && !is_link_local_v6(&message) {
                let what = format!("take an address off interface {index}");
                self.handle.address().del(message).execute().await.map_err(change(what))?;
            }
        }
        for prefix in wanted {
            let what = format!("add address {}/{}", prefix.address, prefix.length);
            let mut request =
                self.handle.address().add(index, prefix.address, prefix.length).replace();
            if prefix.address.is_ipv6() {
                // The host has looked for duplicates already; doing it again would keep the address
                // from being used for a second.
                let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                request.message_mut().attributes.push(flags);
            }
            request.execute().await.map_err(change(what))?;
        }
        Ok(())
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        self.handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|source| NetworkError::List { what: "addresses", source })
    }

    async fn wait_for_link(
        &self,
        hardware_address: &[u8],
        patience: Duration,
    ) -> Result<LinkMessage, NetworkError> {
        let missing = || NetworkError::NoInterface { wanted: format_address(hardware_address) };
        // Subscribed before the first look, so that an interface cannot appear in between unseen.
        let events = Uevents::open().map_err(NetworkError::Connect)?;
        let appears = async {
            loop {
                let links = self.links().await?;
                let found = links
                    .into_iter()
                    .find(|link| link_address(link).is_some_and(|own| own == hardware_address));
                if let Some(link) = found {
                    return Ok(link);
                }
                events.next().await.map_err(NetworkError::Connect)?;
            }
        };
        tokio::time::timeout(patience, appears).await.unwrap_or_else(|_| Err(missing()))
    }
}

fn describe(link: &LinkMessage, addresses: &[AddressMessage]) -> Interface {
    let mut interface = Interface {
        name: link_name(link).unwrap_or_default().to_owned(),
        hardware_address: link_address(link).unwrap_or_default().to_vec(),
        no_arp: link.header.flags.contains(LinkFlags::Noarp),
        ..Interface::default()
    };
    for attribute in &link.attributes {
        if let LinkAttribute::Mtu(mtu) = attribute {
            interface.mtu = *mtu;
        }
    }
    interface.addresses = addresses
        .iter()
        .filter(|message| message.header.index == link.header.index)
        .filter_map(|message| Prefix::new(address_of(message)?, message.header.prefix_len))
        .collect();
    interface
}

fn link_address(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

/// On a point-to-point link `Address` is the peer and `Local` is ours; elsewhere both are ours.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(move |attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

/// The kernel makes these itself from the hardware address; neighbour discovery needs them.
fn is_link_local_v6(message: &AddressMessage) -> bool {
    matches!(address_of(message), Some(IpAddr::V6(address)) if address.is_unicast_link_local())
}

/// Reads `02:42:ac:11:00:02`; `None` for anything but 1 to 32 such bytes.
#[must_use]
pub fn parse_hardware_address(text: &str) -> Option<Vec<u8>> {
    let byte = |digits: &str| {
        let is_pair = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_pair.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes.filter(|bytes| bytes.len() <= 32)
}

/// The opposite of [`parse_hardware_address`].
pub(super) fn format_address(address: &[u8]) -> String {
    let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

impl Interface {
    /// The hardware address in the usual notation; empty if there is none.
    #[must_use]
    pub fn hardware_address_text(&self) -> String {
        format_address(&self.hardware_address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_hardware_address_takes_only_pairs_of_digits() {
        assert_eq!(parse_hardware_address("02:42:aC:11:00:02").unwrap().len(), 6);
        for bad in ["", "2:42", "02:42:zz", "02-42", "+2:42"] {
            assert_eq!(parse_hardware_address(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn hardware_address_round_trips(bytes in proptest::collection::vec(any::<u8>(), 1..32)) {
            prop_assert_eq!(parse_hardware_address(&format_address(&bytes)), Some(bytes));
        }
    }
}
