//! Keys of Corda's that mean nothing to this node, so that existing files are accepted, and those that cannot be.

use quorate_runtime::config::Section;

/// Accepted in silence but for a note: leaving them out changes nothing.
const UNNEEDED: &[(&[&str], &str)] = &[
    (&["jarDirs"], "database drivers are built in"),
    (
        &["cordappDirectories"],
        "applications are linked into the program",
    ),
    (
        &[
            "cordappSignerKeyFingerprintBlacklist",
            "blacklistedAttachmentSigningKeys",
        ],
        "contracts are named by the hash of their code, not by who signed it",
    ),
    (&["emailAddress"], "nobody is registered with"),
    (&["verifierType"], "contracts are verified in this process"),
    (
        &[
            "noLocalShell",
            "localShellAllowExitInSafeMode",
            "localShellUnsafe",
        ],
        "the shell is a program of its own: quorate shell",
    ),
    (&["enableSNI"], "SNI is always sent"),
    (&["useOpenSsl"], "TLS is built in"),
    (
        &["lazyBridgeStart"],
        "a connection to a peer is made when there is something to send",
    ),
    (
        &[
            "attachmentCacheBound",
            "transactionCacheSizeMegaBytes",
            "attachmentContentCacheSizeMegaBytes",
        ],
        "caches are bounded by the program",
    ),
    (
        &["jmxMonitoringHttpPort", "jmxReporterType"],
        "metrics are served at operations.address",
    ),
    (
        &[
            "flowMonitorPeriodMillis",
            "flowMonitorSuspensionLoggingThresholdMillis",
        ],
        "`flow list` shows what waits",
    ),
    (
        &[
            "devModeOptions",
            "systemProperties",
            "quasarExcludePackages",
            "reloadCheckpointAfterSuspend",
        ],
        "there is no JVM here",
    ),
    (
        &["messagingServerBackupAddresses"],
        "messages are kept in the node's database",
    ),
    (&["h2Settings", "h2port"], "there is no H2 here"),
    (
        &["flowExternalOperationThreadPoolSize"],
        "the node finds its own degree of concurrency",
    ),
];

/// Accepted with a warning: whoever wrote them expects something that does not happen.
const WITHOUT_EFFECT: &[(&[&str], &str)] = &[
    (
        &[
            "compatibilityZoneURL",
            "networkServices",
            "extraNetworkMapKeys",
        ],
        "there is no network map service: node infos and network parameters come as files, made by `quorate network \
         bootstrap` or copied into additional-node-infos",
    ),
    (
        &["networkParameterAcceptanceSettings"],
        "network parameters come as a file and are accepted by a person",
    ),
    (
        &[
            "tlsCertCrlDistPoint",
            "tlsCertCrlIssuer",
            "certificateChainCheckPolicies",
            "crlCheckArtemisServer",
        ],
        "certificate revocation lists are not consulted",
    ),
    (
        &["sshd"],
        "there is no SSH server in the node: run `quorate shell` on a machine that reaches its RPC address",
    ),
    (
        &["graphiteOptions"],
        "metrics are not pushed; fetch them at operations.address",
    ),
    (
        &["flowOverrides"],
        "the application decides which flow answers which",
    ),
    (
        &["custom"],
        "applications take their configuration from elsewhere",
    ),
    (
        &["baseDirectory"],
        "the base directory is given on the command line: --base-directory",
    ),
    (
        &["freshIdentitiesConfiguration"],
        "confidential identities are not supported",
    ),
];

/// Refused: going on without them would be something else than what was asked for.
const REFUSED: &[(&str, &str)] = &[(
    "relay",
    "tunnels to a relay are not supported; forward the port by other means and remove this section",
)];

pub(super) fn decode(root: &Section<'_>) {
    for (keys, why) in UNNEEDED {
        keys.iter().for_each(|key| root.unneeded(key, why));
    }
    for (keys, why) in WITHOUT_EFFECT {
        keys.iter().for_each(|key| root.ignored(key, why));
    }
    for (key, why) in REFUSED {
        root.refused(key, why);
    }
    root.refused_if_true(
        "messagingServerExternal",
        "an external message broker is not supported: messages are kept in the node's database; remove this key",
    );
    let clock = "a clock that can be set is not supported in a node; remove this key";
    root.refused_if_true("useTestClock", clock);
    if root.has("detectPublicIp") && root.boolean_or("detectPublicIp", false) {
        root.warning(
            "detectPublicIp",
            "has no effect: p2pAddress is advertised as it is written",
        );
    }
    if root.has("crlCheckSoftFail") && !root.boolean_or("crlCheckSoftFail", true) {
        root.problem(
            "crlCheckSoftFail",
            "certificate revocation lists are not consulted, so a check cannot be enforced; write true to go without",
        );
    }
}
