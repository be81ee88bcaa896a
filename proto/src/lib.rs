//! Beige's wire interfaces: the `.proto` files beside this crate, and the code generated from them.
//!
//! [`v1`] is public and stable; [`worker::v1`] is between gateways and workers of one release. What the
//! messages mean is written once, in the `.proto` files.

pub mod codec;

/// Package `beige.v1`: what clients speak.
#[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("beige.v1");

    /// Encoded `FileDescriptorSet` of the package, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("beige.v1");
}

/// What gateways ask of workers.
pub mod worker {
    /// Package `beige.worker.v1`.
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
    pub mod v1 {
        tonic::include_proto!("beige.worker.v1");
    }
}
