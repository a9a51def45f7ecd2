//! Decides how the published `.proto` files become Rust: which messages are written by hand in the
//! SDK (the batches of calls, which are written and read hundreds of thousands of times a second),
//! and how the rest is generated. Needs `protoc`. The result is committed, so that no build needs
//! either; it goes to the folder that the first argument names.

fn main() -> std::io::Result<()> {
    let out = std::env::args()
        .nth(1)
        .ok_or_else(|| std::io::Error::other("say into which folder: cargo xtask proto does"))?;
    tonic_prost_build::configure()
        .out_dir(out)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .codec_path("crate::stream::Codec")
        .extern_path(".unanimity.v1.Calls", "crate::stream::Calls")
        .extern_path(".unanimity.v1.Call", "crate::stream::Call")
        .compile_protos(
            &["proto/unanimity/v1/participant.proto", "proto/unanimity/v1/transactions.proto"],
            &["proto"],
        )
}
