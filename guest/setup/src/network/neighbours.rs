//! Neighbours: addresses on the link whose hardware address the host knows.

use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};

use super::{Network, NetworkError, change};

/// An entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Name of the interface that it is reached by.
    pub device: String,
    /// Its hardware address.
    pub hardware_address: Vec<u8>,
    /// `NUD_*` of linux/neighbour.h; 0 is taken as permanent.
    pub state: u16,
    /// `NTF_*` of linux/neighbour.h.
    pub flags: u8,
}

impl Network {
    /// Adds `neighbours`, replacing what is known of the same addresses.
    ///
    /// # Errors
    ///
    /// Fails when an interface is missing or the kernel refuses an entry; those before it stay.
    pub async fn add_neighbours(&self, neighbours: &[Neighbour]) -> Result<(), NetworkError> {
        for neighbour in neighbours {
            let index = self.index_of(&neighbour.device).await?;
            let state = match neighbour.state {
                0 => NeighbourState::Permanent,
                state => NeighbourState::from(state),
            };
            let what = format!("add neighbour {} on {}", neighbour.address, neighbour.device);
            self.handle
                .neighbours()
                .add(index, neighbour.address)
                .link_layer_address(&neighbour.hardware_address)
                .state(state)
                .flags(NeighbourFlags::from_bits_truncate(neighbour.flags))
                .replace()
                .execute()
                .await
                .map_err(change(what))?;
        }
        Ok(())
    }
}
