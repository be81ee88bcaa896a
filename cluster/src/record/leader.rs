//! Which gateway carries swaps out.

use serde::{Deserialize, Serialize};

use crate::name::GatewayId;

/// The gateway that carries swaps out. Its fencing token is the revision at which its key was created: every write
/// it makes compares that, so that a leader that was replaced without noticing changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Which one.
    pub gateway: GatewayId,
    /// `host:port` of its public port, for people.
    pub address: String,
}
