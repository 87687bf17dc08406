//! Generates clients and servers of the gRPC services; the messages are the crate `fabric`'s own.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=../fabric/proto");
    let descriptors = protox::compile(["services.proto"], ["proto", "../fabric/proto"])?;
    tonic_prost_build::configure()
        .extern_path(".common", "::quorate_fabric::proto::common")
        .extern_path(".orderer", "::quorate_fabric::proto::orderer")
        .compile_fds(descriptors)?;
    Ok(())
}
