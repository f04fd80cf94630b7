//! The program; all of it is in the library, from whose definitions the manual pages are made.

use std::process::ExitCode;

fn main() -> ExitCode {
    kata_image::main()
}
