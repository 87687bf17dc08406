//! Generates Rust types for `proto/`; protox parses it, so no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "common.proto",
            "msp.proto",
            "msp_config.proto",
            "orderer.proto",
            "etcdraft.proto",
            "peer.proto",
        ],
        ["proto"],
    )?;
    // Ordered maps: the bytes we write are the same every time. Payloads are shared, not copied.
    prost_build::Config::new()
        .btree_map(["."])
        .bytes([
            ".common.Envelope",
            ".common.BlockData",
            ".common.BlockHeader",
            ".common.BlockMetadata",
            ".orderer.ConsensusRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
