//! Generates the messages and the asynchronous ttrpc services from `proto/`, without `protoc`.

use std::path::Path;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// Files of `proto/`; each becomes a module.
const MESSAGES: [&str; 5] = ["agent", "csi", "health", "oci", "types"];
/// Modules that the generator adds for files with a service.
const SERVICES: [&str; 2] = ["agent_ttrpc", "health_ttrpc"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    Codegen::new()
        .include("proto")
        .inputs(MESSAGES.map(|name| format!("proto/{name}.proto")))
        .rust_protobuf()
        // Reflection would only make the guest's binary larger.
        .rust_protobuf_customize(ProtobufCustomize::default().lite_runtime(true))
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;

    // The generator's own list of modules begins with an attribute, which `include!` refuses.
    let modules: String =
        MESSAGES.iter().chain(&SERVICES).map(|name| format!("pub mod {name};\n")).collect();
    let out_dir = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    fs::write(Path::new(&out_dir).join("modules.rs"), modules)
}
