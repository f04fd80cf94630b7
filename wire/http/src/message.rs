//! As much of HTTP/1.1 (RFC 9112) as the VMM's server and its client need: one request, one
//! response, bodies of a known length.

use std::fmt::Write;

/// The longest head of a response that is accepted.
pub(crate) const MAX_HEAD: usize = 8 * 1024;
/// The longest body of a response that is accepted. The longest one there is describes the whole
/// machine.
pub(crate) const MAX_BODY: usize = 1024 * 1024;

/// How a response begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// The status code, 100 to 999.
    pub(crate) status: u16,
    /// Bytes of the head itself, the empty line at its end included.
    pub(crate) length: usize,
    /// Bytes of the body that follows.
    pub(crate) body_length: usize,
}

/// Why bytes are no response that this client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResponseError {
    /// The head does not end within its limit.
    #[error("the head of the response is longer than {MAX_HEAD} bytes")]
    LongHead,
    /// The body is announced to be longer than its limit.
    #[error("the body of the response is longer than {MAX_BODY} bytes")]
    LongBody,
    /// The first line is not a status line.
    #[error("the response has no status line")]
    NoStatus,
    /// The length of the body is not said in a way that this client reads.
    #[error("the response does not say how long it is")]
    NoLength,
}

/// The bytes of a request to `path`.
pub(crate) fn render(method: &str, path: &str, body: Option<&str>) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(body) = body {
        write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
            .expect("writing to a string never fails");
    }
    request.push_str("\r\n");
    request.push_str(body.unwrap_or_default());
    request.into_bytes()
}

/// Reads the head of a response; `None` while its end is still to come.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<Head>, ResponseError> {
    let within = &bytes[..bytes.len().min(MAX_HEAD)];
    let Some(end) = within.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() < MAX_HEAD { Ok(None) } else { Err(ResponseError::LongHead) };
    };
    let head = str::from_utf8(&bytes[..end]).map_err(|_| ResponseError::NoStatus)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(status).ok_or(ResponseError::NoStatus)?;
    let mut body_length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(ResponseError::NoLength);
        }
        if name.eq_ignore_ascii_case("content-length") {
            body_length = value.trim().parse().map_err(|_| ResponseError::NoLength)?;
        }
    }
    if body_length > MAX_BODY {
        return Err(ResponseError::LongBody);
    }
    Ok(Some(Head { status, length: end + 4, body_length }))
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.")?;
    let code = rest.split(' ').nth(1)?;
    code.parse().ok().filter(|code| (100..1000).contains(code))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_says_how_long_its_body_is() {
        assert_eq!(
            render("PUT", "/api/v1/vm.boot", None),
            b"PUT /api/v1/vm.boot HTTP/1.1\r\nHost: localhost\r\n\r\n"
        );
        let with_body = String::from_utf8(render("PUT", "/", Some("{}"))).unwrap();
        assert!(with_body.ends_with("Content-Length: 2\r\n\r\n{}"), "{with_body}");
    }

    #[test]
    fn head_is_read_once_it_is_whole() {
        let response = b"HTTP/1.1 200 \r\nServer: x\r\ncontent-length: 11\r\n\r\nhello world";
        let head = Head { status: 200, length: response.len() - 11, body_length: 11 };
        assert_eq!(parse_head(response), Ok(Some(head)));
        assert_eq!(parse_head(&response[..30]), Ok(None));
        let bare = b"HTTP/1.1 204 \r\n\r\n";
        assert_eq!(parse_head(bare), Ok(Some(Head { status: 204, length: 17, body_length: 0 })));
    }

    #[test]
    fn what_is_no_response_is_refused() {
        use ResponseError::{LongBody, LongHead, NoLength, NoStatus};
        assert_eq!(parse_head(b"SSH-2.0-x\r\n\r\n"), Err(NoStatus));
        assert_eq!(parse_head(b"HTTP/1.1 20 \r\n\r\n"), Err(NoStatus));
        assert_eq!(parse_head(b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n"), Err(NoLength));
        assert_eq!(
            parse_head(b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(NoLength)
        );
        assert_eq!(parse_head(b"HTTP/1.1 200 \r\nContent-Length: 1048577\r\n\r\n"), Err(LongBody));
        assert_eq!(parse_head(&[b'x'; MAX_HEAD]), Err(LongHead));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, status in "HTTP/1.1 [0-9]{0,4}") {
            let _ = parse_head(&bytes);
            let mut response = status.into_bytes();
            response.extend_from_slice(b" \r\n");
            response.extend(bytes);
            response.extend_from_slice(b"\r\n\r\n");
            if let Ok(Some(head)) = parse_head(&response) {
                prop_assert!(head.length <= response.len() && head.body_length <= MAX_BODY);
            }
        }
    }
}
