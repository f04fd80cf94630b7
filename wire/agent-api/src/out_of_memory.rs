//! Whether the kernel had killed a process of the container for want of memory by the time its
//! first process ended: an addition of ours to the answer to WaitProcess.
//!
//! Engines want to know it together with the status, and the answer to GetOOMEvent, another
//! request, may come later. It is field 20001, a number, which no other peer knows and every
//! decoder skips (protobuf's encoding rules). An answer without it says nothing.

use protobuf::UnknownValueRef;

use crate::agent::WaitProcessResponse;

const OUT_OF_MEMORY: u32 = 20001;

/// Has an answer say that memory was wanting.
pub fn say_out_of_memory(answer: &mut WaitProcessResponse) {
    answer.special_fields.mut_unknown_fields().add_varint(OUT_OF_MEMORY, 1);
}

/// Whether an answer says that memory was wanting.
#[must_use]
pub fn says_out_of_memory(answer: &WaitProcessResponse) -> bool {
    let said = answer.special_fields.unknown_fields().get(OUT_OF_MEMORY);
    matches!(said, Some(UnknownValueRef::Varint(number)) if number != 0)
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;

    #[test]
    fn what_is_said_survives_the_wire_beside_the_status() {
        let mut answer = WaitProcessResponse { status: 137, ..Default::default() };
        assert!(!says_out_of_memory(&answer));
        say_out_of_memory(&mut answer);
        let bytes = answer.write_to_bytes().unwrap();
        let answer = WaitProcessResponse::parse_from_bytes(&bytes).unwrap();
        assert_eq!((answer.status, says_out_of_memory(&answer)), (137, true));
    }

    #[test]
    fn field_of_another_kind_says_nothing() {
        let mut odd = WaitProcessResponse::new();
        odd.special_fields.mut_unknown_fields().add_fixed32(OUT_OF_MEMORY, 1);
        assert!(!says_out_of_memory(&odd));
    }
}
