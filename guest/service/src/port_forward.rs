//! Connections of the host to TCP ports of the guest's loopback interface
//! ([`kata_channel::port_forward`]): all containers share it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use kata_channel::ChannelStream;
use kata_channel::port_forward::{answer, carry, wanted_port};
use tokio::net::TcpStream;

/// Connects the stream to the port that the host wants, until one of the two has ended.
pub(crate) async fn serve(mut stream: ChannelStream) -> io::Result<()> {
    let port = wanted_port(&mut stream).await?;
    let mut connection = match connect(port).await {
        Ok(connection) => connection,
        Err(error) => {
            answer(&mut stream, false).await?;
            return Err(error);
        }
    };
    answer(&mut stream, true).await?;
    let carried = carry(stream, &mut connection).await;
    if carried.is_err() {
        connection.set_zero_linger()?;
    }
    carried
}

/// As whoever forwards ports looks for a server called localhost: by IPv4 first.
async fn connect(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(connection) => Ok(connection),
        Err(error) => {
            let second = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await;
            second.map_err(|_| error)
        }
    }
}
