//! How many processors the guest is to use altogether: an addition of ours to the request
//! OnlineCPUMem, which knows how many are new and has no word for those that are to go.
//!
//! It is a field that no other peer knows, and that a decoder skips (protobuf's encoding rules). An
//! agent of another kind therefore switches on what `nb_cpus` says and leaves on what it has.
//!
//! | field | what |
//! |---|---|
//! | 20001 | how many processors are to be on, at least 1 |

use protobuf::UnknownValueRef;

use crate::agent::OnlineCPUMemRequest;

const FIELD: u32 = 20001;

/// Asks for `count` processors, of which `new` are not on yet, and leaves memory alone.
#[must_use]
pub fn cpu_count_request(count: u32, new: u32) -> OnlineCPUMemRequest {
    let mut request =
        OnlineCPUMemRequest { nb_cpus: new, cpu_only: true, ..OnlineCPUMemRequest::default() };
    request.special_fields.mut_unknown_fields().add_varint(FIELD, count.into());
    request
}

/// How many are to be on; `None` from a peer that does not say so.
#[must_use]
pub fn cpu_count(request: &OnlineCPUMemRequest) -> Option<u32> {
    match request.special_fields.unknown_fields().get(FIELD) {
        Some(UnknownValueRef::Varint(count)) => {
            u32::try_from(count).ok().filter(|count| *count > 0)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;

    #[test]
    fn count_survives_the_wire_and_others_have_none() {
        let bytes = cpu_count_request(3, 1).write_to_bytes().unwrap();
        let request = OnlineCPUMemRequest::parse_from_bytes(&bytes).unwrap();
        assert_eq!((cpu_count(&request), request.nb_cpus, request.cpu_only), (Some(3), 1, true));
        assert_eq!(cpu_count(&OnlineCPUMemRequest::default()), None);
        assert_eq!(cpu_count(&cpu_count_request(0, 0)), None);
        let mut odd = OnlineCPUMemRequest::default();
        odd.special_fields.mut_unknown_fields().add_fixed32(FIELD, 7);
        assert_eq!(cpu_count(&odd), None);
    }
}
