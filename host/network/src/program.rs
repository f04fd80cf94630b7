//! Programs for the kernel (bpf(2)), written an instruction at a time.

use std::os::fd::{AsRawFd, BorrowedFd};

use kata_linux::bpf::Instruction;

/// Registers: what functions return, and the end of the stack's frame. Arguments of functions are 1
/// to 5, and 6 to 9 outlast a call.
pub(crate) const RESULT: u8 = 0;
pub(crate) const FRAME: u8 = 10;

/// Operations on 64 bits, loads of three sizes, jumps, and the end (linux/bpf.h).
pub(crate) const ADD: u8 = 0x07;
pub(crate) const ADD_REGISTER: u8 = 0x0f;
pub(crate) const AND: u8 = 0x57;
pub(crate) const SHIFT_LEFT: u8 = 0x67;
pub(crate) const LOAD_WORD: u8 = 0x61;
pub(crate) const LOAD_HALF: u8 = 0x69;
pub(crate) const LOAD_BYTE: u8 = 0x71;
pub(crate) const ALWAYS: u8 = 0x05;
pub(crate) const IF_EQUAL: u8 = 0x15;
pub(crate) const UNLESS_EQUAL: u8 = 0x55;
pub(crate) const EXIT: u8 = 0x95;

/// Of the kernel's functions for programs the one that gives a socket back (linux/bpf.h).
pub(crate) const SK_RELEASE: i32 = 86;

/// What the methods of [`Assembler`] write.
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const STORE_WORD: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const CALL: u8 = 0x85;

/// In place of a source register: the constant is the descriptor of a map.
const OF_DESCRIPTOR: u8 = 1;

/// A program that grows, with jumps to places that are not known yet.
#[derive(Debug)]
pub(crate) struct Assembler<Label> {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl<Label: PartialEq> Assembler<Label> {
    pub(crate) fn new() -> Self {
        Self { instructions: Vec::new(), jumps: Vec::new(), labels: Vec::new() }
    }

    pub(crate) fn push(&mut self, code: u8, registers: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers, offset, immediate });
    }

    pub(crate) fn copy(&mut self, to: u8, from: u8) {
        self.push(COPY, to | (from << 4), 0, 0);
    }

    pub(crate) fn set(&mut self, register: u8, value: i32) {
        self.push(SET, register, 0, value);
    }

    pub(crate) fn constant(&mut self, operation: u8, register: u8, value: i32) {
        self.push(operation, register, 0, value);
    }

    pub(crate) fn load(&mut self, size: u8, to: u8, from: u8, offset: i16) {
        self.push(size, to | (from << 4), offset, 0);
    }

    /// Writes a word to the stack.
    pub(crate) fn store(&mut self, to: i16, value: i32) {
        self.push(STORE_WORD, FRAME, to, value);
    }

    /// Sets a register to a map, which the program keeps when it has been loaded.
    pub(crate) fn load_map(&mut self, register: u8, map: BorrowedFd<'_>) {
        self.push(LOAD_MAP, register | (OF_DESCRIPTOR << 4), 0, map.as_raw_fd());
        // The upper half of a constant of 64 bits.
        self.push(0, 0, 0, 0);
    }

    pub(crate) fn call(&mut self, function: i32) {
        self.push(CALL, 0, 0, function);
    }

    pub(crate) fn jump(&mut self, condition: u8, register: u8, value: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(condition, register, 0, value);
    }

    /// Jumps to `label` lead here.
    pub(crate) fn label(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    pub(crate) fn answer(&mut self, answer: i32) {
        self.set(RESULT, answer);
        self.push(EXIT, 0, 0, 0);
    }

    /// The program, with its jumps resolved.
    pub(crate) fn instructions(mut self) -> Vec<Instruction> {
        for (from, to) in self.jumps {
            let to = self.labels.iter().find(|(label, _)| *label == to);
            let (_, place) = to.expect("every label that is jumped to is set");
            // A jump counts from the instruction after it.
            let distance = i16::try_from(place - from - 1);
            self.instructions[from].offset =
                distance.expect("the program is short, and jumps lead forward");
        }
        self.instructions
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Panics unless every jump stays within the program, and the program ends with an answer.
    pub(crate) fn check(program: &[Instruction]) {
        for (place, instruction) in program.iter().enumerate() {
            if matches!(instruction.code, ALWAYS | IF_EQUAL | UNLESS_EQUAL) {
                let target = place + 1 + usize::try_from(instruction.offset).unwrap();
                assert!(target < program.len(), "{place}: {instruction:?}");
            }
        }
        assert_eq!(program.last().unwrap().code, EXIT);
    }

    #[test]
    fn jump_leads_to_its_label() {
        let mut code = Assembler::new();
        code.jump(IF_EQUAL, 1, 7, "end");
        code.jump(ALWAYS, 0, 0, "middle");
        code.set(2, 1);
        code.label("middle");
        code.set(3, 1);
        code.label("end");
        code.answer(0);
        let program = code.instructions();
        check(&program);
        assert_eq!((program[0].offset, program[1].offset), (3, 1));
    }
}
