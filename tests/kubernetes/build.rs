//! Generates the messages of `proto/`, without `protoc`.

use std::path::Path;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    Codegen::new()
        .include("proto")
        .input("proto/cri.proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().lite_runtime(true))
        .run()?;

    // The generated file begins with attributes, which `include!` refuses.
    let out_dir = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    fs::write(Path::new(&out_dir).join("modules.rs"), "pub mod cri;\n")
}
