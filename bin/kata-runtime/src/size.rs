//! Amounts of memory as people write them.

use anyhow::{Context, Result};

/// Bytes: a number, or one with `b`, `k`, `m`, `g`, `t` or `p`, which count by 1024; -1 is no
/// limit. As runc takes them.
pub(crate) fn parse(text: &str) -> Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let wrong = || format!("invalid size: '{text}'");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim_start();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => anyhow::bail!(wrong()),
    };
    // Whole numbers need not go through a fraction, where large ones would lose bytes.
    if let Ok(number) = number.parse::<i64>() {
        return number.checked_mul(1 << (10 * power)).with_context(wrong);
    }
    let number: f64 = number.parse().ok().with_context(wrong)?;
    let bytes = number * f64::from(1_u32 << 10).powi(power);
    // The comparison is with a power of two, which is exact.
    let fits = bytes < 2_f64.powi(63);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it fits, and a fraction of a byte is none"
    )]
    Some(bytes as i64).filter(|_| fits).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_runc_reads_them() {
        for (text, bytes) in [
            ("-1", -1),
            ("0", 0),
            ("4096", 4096),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("7b", 7),
            ("2T", 2 << 40),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "-5", "m", "1.2.3m", "5x", "9223372036854775808", "8192p", "1e3"] {
            let error = parse(text).unwrap_err().to_string();
            assert_eq!(error, format!("invalid size: '{text}'"));
        }
    }
}
