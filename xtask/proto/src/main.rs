//! Decides how the published `.proto` files become Rust: which messages are written by hand in the
//! SDK (the batches of calls and of requests, which are read hundreds of thousands of times a
//! second and must not be larger than they may), and how the rest is generated. Needs `protoc`. The
//! result is committed, so that no build needs either; it goes to the folder that the first
//! argument names.

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
        .extern_path(".unanimity.v1.BeginBatch", "crate::stream::BeginBatch")
        .compile_protos(
            &["proto/unanimity/v1/participant.proto", "proto/unanimity/v1/transactions.proto"],
            &["proto"],
        )
}
