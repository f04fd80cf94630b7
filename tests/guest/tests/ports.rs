//! Connections of the host to servers in the guest.

use std::io::ErrorKind;

use anyhow::{Result, ensure};
use kata_channel::PORT_FORWARD_PORT;
use kata_channel::port_forward::{ask_for_port, carry};
use kata_guest_tests::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// The server's, and more than the two connections hold on their way.
const PORT: u16 = 8080;
const SENT: usize = 3 << 20;

#[test]
fn host_is_connected_to_a_port_of_a_container() -> Result<()> {
    booted(First::Agent, async |guest| {
        let mut early = guest.machine.dial(PORT_FORWARD_PORT).await?;
        let refused = ask_for_port(&mut early, PORT).await.unwrap_err();
        ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{refused}");
        ensure!(early.read(&mut [0]).await? == 0, "something follows a refusal");

        guest.create("server", sh(&format!("exec nc -ll -p {PORT} -e cat"))).await?;
        guest.start("server").await?;
        let stream = loop {
            let mut stream = guest.machine.dial(PORT_FORWARD_PORT).await?;
            if ask_for_port(&mut stream, PORT).await.is_ok() {
                break stream;
            }
        };
        // It dawdles, for its words are long.
        let mut second = guest.machine.dial(PORT_FORWARD_PORT).await?;
        ask_for_port(&mut second, PORT).await?;
        second.write_all(b"\xff\xffand nothing").await?;

        let (dialler, hosts) = duplex(4096);
        let (mut from_server, mut to_server) = tokio::io::split(dialler);
        let sent = vec![b'x'; SENT];
        let mut heard = Vec::new();
        let ask = async {
            to_server.write_all(&sent).await?;
            to_server.shutdown().await
        };
        tokio::try_join!(carry(stream, hosts), ask, from_server.read_to_end(&mut heard))?;
        ensure!(heard == sent, "{} bytes came back", heard.len());

        guest.remove("server").await
    })
}
