//! Names that only a name server on the host knows: what the agent hands over, and brings back.

use anyhow::{Context as _, Result, ensure};
use kata_channel::dns_relay::{Message, Transport, ask_to_listen};
use kata_channel::{ChannelStream, DNS_RELAY_PORT};
use kata_guest_tests::*;

/// A question for the addresses of `web`, with its length before it as by TCP, and octal for
/// printf(1).
const QUESTION: &str =
    r"\000\025\022\064\001\000\000\001\000\000\000\000\000\000\003web\000\000\001\000\001";

#[test]
fn programs_ask_the_hosts_name_server() -> Result<()> {
    booted(First::Agent, async |guest| {
        let mut relay = guest.machine.dial(DNS_RELAY_PORT).await?;
        ask_to_listen(&mut relay, "127.0.0.11:53".parse()?).await?;

        let lookup = sh("nslookup -type=a web 127.0.0.11");
        let (output, ()) = tokio::try_join!(guest.run("udp", lookup), answer(&mut relay, 1))?;
        ensure!(output.status == 0 && output.text().contains("Address: 192.0.2.7"), "{output:?}");

        // Two on one connection, and what the last one is told.
        let script = format!(
            "(printf '{QUESTION}'; printf '{QUESTION}') | nc 127.0.0.11 53 | tail -c 4 | od -An -tu1"
        );
        let (output, ()) = tokio::try_join!(guest.run("tcp", sh(&script)), answer(&mut relay, 2))?;
        let told: Vec<String> = output.text().split_whitespace().map(str::to_owned).collect();
        ensure!(told == ["192", "0", "2", "7"], "{output:?}");

        // A second one cannot listen there, and its end disturbs nobody.
        let mut second = guest.machine.dial(DNS_RELAY_PORT).await?;
        let refused = ask_to_listen(&mut second, "127.0.0.11:53".parse()?).await;
        ensure!(refused.is_err(), "two listen at one address");
        let mut elsewhere = guest.machine.dial(DNS_RELAY_PORT).await?;
        let refused = ask_to_listen(&mut elsewhere, "0.0.0.0:53".parse()?).await;
        ensure!(refused.is_err(), "it listens for the world");

        // The address is free again when the host has lost interest.
        drop(relay);
        loop {
            let mut again = guest.machine.dial(DNS_RELAY_PORT).await?;
            if ask_to_listen(&mut again, "127.0.0.11:53".parse()?).await.is_ok() {
                return Ok(());
            }
        }
    })
}

/// Answers so many questions with the address 192.0.2.7.
async fn answer(relay: &mut ChannelStream, questions: usize) -> Result<()> {
    for _ in 0..questions {
        let question = Message::read(relay).await?.context("no question came")?;
        let transport = if questions == 1 { Transport::Udp } else { Transport::Tcp };
        ensure!(question.transport == transport, "{question:?}");
        let mut dns = question.dns.clone();
        ensure!(dns[12..].starts_with(b"\x03web\0\0\x01\0\x01"), "{question:?}");
        // An answer, with one record.
        dns[2] |= 0x80;
        dns[7] = 1;
        dns.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x07");
        Message { dns, ..question }.write(relay).await?;
    }
    Ok(())
}
