//! `enterpriseConfiguration.externalBridge`: a firewall between the node and its peers.

use std::path::Path;

use quorate_messaging::firewall::LinkFiles;
use quorate_runtime::config::Section;

/// Peers come, and are reached, through the bridges of a firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalBridge {
    /// `messagingServerSslConfiguration`: what bridges are recognised by. Without it they have a copy of the node's own
    /// TLS key.
    pub link: Option<LinkFiles>,
}

pub(super) fn decode(enterprise: &Section<'_>, base: &Path) -> Option<ExternalBridge> {
    const LINK: &str = "messagingServerSslConfiguration";
    if !enterprise.boolean_or("externalBridge", false) {
        enterprise.unneeded(
            LINK,
            "messages are kept in the node's database; there is no broker to connect to",
        );
        return None;
    }
    let link = enterprise.section(LINK);
    Some(ExternalBridge {
        link: link
            .is_present()
            .then(|| LinkFiles::decode(link, base))
            .flatten(),
    })
}
