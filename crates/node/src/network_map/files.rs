//! Files of the network map: their names, bounded reading, durable writing, and how a change is noticed.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use quorate_identity::{Certificate, SecureHash, UnixTime, X500Name};
use quorate_ledger::DecodeError;
use quorate_ledger::limits::MAX_NETWORK_FILE_BYTES;
use quorate_ledger::network::{
    NetworkError, NetworkParameters, NodeInfo, SignedNetworkParameters, SignedNodeInfo,
};
use quorate_runtime::Entropy;

/// The folder, inside a node's base directory, in which it finds the infos of other nodes.
pub const ADDITIONAL_NODE_INFOS_DIRECTORY: &str = "additional-node-infos";

/// How the names of node info files begin.
pub const NODE_INFO_PREFIX: &str = "nodeInfo-";

/// The signed network parameters, in a node's base directory.
pub const NETWORK_PARAMETERS_FILE: &str = "network-parameters";

/// Node infos can be read by everybody, they are public in the network.
const PUBLIC_MODE: u32 = 0o644;

/// Readable by the owner only.
pub(crate) const SECRET_MODE: u32 = 0o600;

/// The name of the file in which the info of a node travels: the same for every info of that node, so that a newer one
/// replaces the older one wherever it is copied to.
#[must_use]
pub fn node_info_file(legal_name: &X500Name) -> String {
    let hash = SecureHash::of(legal_name.as_str().as_bytes());
    format!("{NODE_INFO_PREFIX}{hash}")
}

/// Why a file of the network map does not count.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkFileError {
    /// The file system refuses.
    #[error("the file {} cannot be read; check its owner and permissions", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory, a pipe or the like.
    #[error("{} is not a file", .path.display())]
    NotAFile {
        /// Which path.
        path: PathBuf,
    },
    /// Larger than anything of the network map.
    #[error("the file {} has {size} bytes, at most {MAX_NETWORK_FILE_BYTES} are read; this is no {what}", .path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// Other bytes than expected.
    #[error("the file {} holds no {what}; copy it again from the node that made it", .path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with the bytes.
        source: DecodeError,
    },
    /// Readable, but not to be believed.
    #[error("the {what} in the file {} is not accepted", .path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Why.
        source: NetworkError,
    },
}

const NODE_INFO: &str = "signed node info";
const PARAMETERS: &str = "signed network parameters";

/// Reads and verifies one node info.
pub(crate) fn read_node_info(
    path: &Path,
    trust_root: &Certificate,
    now: UnixTime,
) -> Result<(SignedNodeInfo, NodeInfo), NetworkFileError> {
    let bytes = read(path, NODE_INFO)?;
    let signed = SignedNodeInfo::decode(&bytes).map_err(|source| NetworkFileError::Malformed {
        path: path.to_owned(),
        what: NODE_INFO,
        source,
    })?;
    let info = signed
        .verify(trust_root, now)
        .map_err(|source| NetworkFileError::Refused {
            path: path.to_owned(),
            what: NODE_INFO,
            source,
        })?;
    Ok((signed, info))
}

/// Reads and verifies network parameters.
pub(crate) fn read_parameters(
    path: &Path,
    trust_root: &Certificate,
    now: UnixTime,
) -> Result<(SignedNetworkParameters, NetworkParameters), NetworkFileError> {
    let bytes = read(path, PARAMETERS)?;
    let signed =
        SignedNetworkParameters::decode(&bytes).map_err(|source| NetworkFileError::Malformed {
            path: path.to_owned(),
            what: PARAMETERS,
            source,
        })?;
    let parameters =
        signed
            .verify(trust_root, now)
            .map_err(|source| NetworkFileError::Refused {
                path: path.to_owned(),
                what: PARAMETERS,
                source,
            })?;
    Ok((signed, parameters))
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, NetworkFileError> {
    let failed = |source| NetworkFileError::Read {
        path: path.to_owned(),
        source,
    };
    let too_large = |size| NetworkFileError::TooLarge {
        path: path.to_owned(),
        what,
        size,
    };
    // Asked before opening: to open a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(NetworkFileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let max = MAX_NETWORK_FILE_BYTES as u64;
    if metadata.len() > max {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    match bytes.len() as u64 {
        size if size > max => Err(too_large(size)),
        _ => Ok(bytes),
    }
}

/// Replaces a public file at once or not at all; durable on return.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, bytes, PUBLIC_MODE)
}

/// As [`write_public`], with these permissions.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let unique: [u8; 8] = Entropy::system().bytes();
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", hex::encode(unique)));
    let temporary = path.with_file_name(temporary);

    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        // The first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory_of(path)
}

/// Makes a name that was created, replaced or removed durable.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// What changes whenever a file does. Size and time alone would miss a file that is replaced within one tick of the file
/// system's clock, or by a copy that keeps the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    size: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    identity: (u64, u64, i64, i64),
}

impl Fingerprint {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            size: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            identity: (
                metadata.dev(),
                metadata.ino(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ),
        }
    }
}
