//! Checkpoints in an object store: content-addressed, verified, cached.
