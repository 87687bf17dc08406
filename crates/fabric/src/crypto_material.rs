//! Keys and certificates for whole organisations, from a `crypto-config.yaml`.
//!
//! The folders, their files and the certificates are those of Fabric's `cryptogen`, so that whoever finds its way
//! around there finds its way around here. Meant for trying and testing, as that tool is: all keys of all
//! organisations are made in one place. Start with [`generate`], then [`Material::write`].

mod authority;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use zeroize::Zeroizing;

use self::authority::{Authority, Leaf, Node};
use self::yaml::Org;

/// Nodes, and users, that one organisation may have. A few bytes of input must not become days of work.
pub const MAX_PER_ORGANIZATION: u32 = 10_000;

/// Why no material can be made or written.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// The file is no YAML, or holds something that does not belong there.
    #[error("crypto-config.yaml cannot be read: {0}")]
    Yaml(String),
    /// A setting is missing or cannot have this value.
    #[error("{section}: {problem}")]
    Setting {
        /// The organisation, and what of it.
        section: String,
        /// What is wrong there, and what would be right.
        problem: String,
    },
    /// A certificate cannot be made.
    #[error("no certificate for {name}: {reason}")]
    Certificate {
        /// The common name.
        name: String,
        /// What the library said.
        reason: String,
    },
    /// An organisation's folder is there already.
    #[error(
        "{} exists already; its keys are not replaced: choose another output folder or remove it",
        .0.display()
    )]
    Exists(PathBuf),
    /// A file or folder cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
}

fn setting(section: impl Into<String>, problem: impl Into<String>) -> CryptoError {
    CryptoError::Setting {
        section: section.into(),
        problem: problem.into(),
    }
}

/// A folder tree, still in memory. Private keys are wiped when it is dropped.
#[derive(Default)]
pub struct Material {
    organizations: Vec<PathBuf>,
    folders: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, File>,
}

enum File {
    Public(String),
    Secret(Zeroizing<String>),
}

/// Makes the material for all organisations in the text of a `crypto-config.yaml`.
///
/// Certificates are valid for ten years from five minutes before `now`.
///
/// # Errors
/// [`CryptoError`] naming the organisation and the setting.
pub fn generate(crypto_config: &str, now: OffsetDateTime) -> Result<Material, CryptoError> {
    let config = yaml::read(crypto_config)?;
    let mut material = Material::default();
    for org in config.peer_orgs.iter().flatten() {
        material.organization(Kind::Peer, org, now)?;
    }
    for org in config.orderer_orgs.iter().flatten() {
        material.organization(Kind::Orderer, org, now)?;
    }
    Ok(material)
}

#[derive(Clone, Copy)]
enum Kind {
    Peer,
    Orderer,
}

impl Material {
    /// The files' paths below the output folder, and their contents.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files.iter().map(|(path, file)| match file {
            File::Public(text) => (path.as_path(), text.as_bytes()),
            File::Secret(text) => (path.as_path(), text.as_bytes()),
        })
    }

    /// The organisations' folders below the output folder.
    pub fn organizations(&self) -> impl Iterator<Item = &Path> {
        self.organizations.iter().map(PathBuf::as_path)
    }

    /// Writes everything below `output`. Private keys are readable by their owner only.
    ///
    /// # Errors
    /// [`CryptoError::Exists`] before anything is written, [`CryptoError::Write`] naming the file.
    pub fn write(&self, output: &Path) -> Result<(), CryptoError> {
        for folder in &self.organizations {
            let folder = output.join(folder);
            if folder.exists() {
                return Err(CryptoError::Exists(folder));
            }
        }
        let parents = self.files.keys().filter_map(|path| path.parent());
        for folder in self.folders.iter().map(PathBuf::as_path).chain(parents) {
            let path = output.join(folder);
            std::fs::create_dir_all(&path).map_err(|source| CryptoError::Write { path, source })?;
        }
        for (path, file) in &self.files {
            let path = output.join(path);
            write(&path, file).map_err(|source| CryptoError::Write { path, source })?;
        }
        Ok(())
    }

    fn organization(
        &mut self,
        kind: Kind,
        org: &Org,
        now: OffsetDateTime,
    ) -> Result<(), CryptoError> {
        let domain = &org.domain;
        check_name(&org.name, domain)?;
        let (parent, nodes_folder) = match kind {
            Kind::Peer => ("peerOrganizations", "peers"),
            Kind::Orderer => ("ordererOrganizations", "orderers"),
        };
        let folder = Path::new(parent).join(domain);
        if self.organizations.contains(&folder) {
            return Err(setting(
                &org.name,
                format!("a second organization with domain {domain}"),
            ));
        }
        self.organizations.push(folder.clone());

        let ca_name = yaml::ca_name(org)?;
        check_name(&org.name, &ca_name)?;
        let ca = Authority::new(domain, &ca_name, &org.ca, now)?;
        let tls_ca = Authority::new(domain, &format!("tls{ca_name}"), &org.ca, now)?;
        self.authority(&folder.join("ca"), &ca)?;
        self.authority(&folder.join("tlsca"), &tls_ca)?;
        let authorities = Authorities {
            ca: &ca,
            tls_ca: &tls_ca,
            node_ous: org.enable_node_ous,
        };
        self.verifying_msp(&folder.join("msp"), &authorities)?;

        let admin = format!("Admin@{domain}");
        let admin_file = certificate_file(&admin);
        let admin_certificate = {
            let users = folder.join("users");
            let user_count = match kind {
                Kind::Peer => org.users.as_ref().map_or(0, |users| users.count),
                // An ordering organisation has nobody but its administrator.
                Kind::Orderer => 0,
            };
            if user_count > MAX_PER_ORGANIZATION {
                let problem = format!("Users.Count {user_count} is above {MAX_PER_ORGANIZATION}");
                return Err(setting(&org.name, problem));
            }
            for number in 1..=user_count {
                let name = format!("User{number}@{domain}");
                self.member(&users.join(&name), &name, &[], Node::Client, &authorities)?;
            }
            self.member(&users.join(&admin), &admin, &[], Node::Admin, &authorities)?
        };
        let role = match kind {
            Kind::Peer => Node::Peer,
            Kind::Orderer => Node::Orderer,
        };
        let nodes = yaml::nodes(org, role)?;
        for node in nodes {
            check_name(&org.name, &node.common_name)?;
            let node_folder = folder.join(nodes_folder).join(&node.common_name);
            self.member(
                &node_folder,
                &node.common_name,
                &node.sans,
                role,
                &authorities,
            )?;
            if !org.enable_node_ous {
                // Without organisational units only this file says who the administrator is.
                let admins = node_folder.join("msp").join("admincerts");
                self.files.retain(|path, _| !path.starts_with(&admins));
                self.public(admins.join(&admin_file), &admin_certificate)?;
            }
        }
        if !org.enable_node_ous {
            let admins = folder.join("msp").join("admincerts");
            self.public(admins.join(&admin_file), &admin_certificate)?;
        }
        Ok(())
    }

    fn authority(&mut self, folder: &Path, authority: &Authority) -> Result<(), CryptoError> {
        self.secret(folder.join("priv_sk"), authority.key_pem())?;
        let file = certificate_file(authority.name());
        self.public(folder.join(file), authority.certificate_pem())
    }

    /// What every MSP folder has.
    fn verifying_msp(
        &mut self,
        folder: &Path,
        authorities: &Authorities<'_>,
    ) -> Result<(), CryptoError> {
        let ca_file = certificate_file(authorities.ca.name());
        let tls_ca_file = certificate_file(authorities.tls_ca.name());
        self.folders.insert(folder.join("admincerts"));
        self.public(
            folder.join("cacerts").join(&ca_file),
            authorities.ca.certificate_pem(),
        )?;
        self.public(
            folder.join("tlscacerts").join(tls_ca_file),
            authorities.tls_ca.certificate_pem(),
        )?;
        if authorities.node_ous {
            self.public(folder.join("config.yaml"), &node_ous(&ca_file))?;
        }
        Ok(())
    }

    /// A node's or user's MSP and TLS folders; returns its certificate.
    fn member(
        &mut self,
        folder: &Path,
        name: &str,
        sans: &[String],
        node: Node,
        authorities: &Authorities<'_>,
    ) -> Result<String, CryptoError> {
        let msp = folder.join("msp");
        self.verifying_msp(&msp, authorities)?;
        let unit = authorities.node_ous.then(|| node.unit());
        let Leaf { key, certificate } = authorities.ca.issue_identity(name, unit)?;
        self.secret(msp.join("keystore").join("priv_sk"), key)?;
        let file = certificate_file(name);
        self.public(msp.join("signcerts").join(&file), &certificate)?;
        if !authorities.node_ous {
            self.public(msp.join("admincerts").join(&file), &certificate)?;
        }

        let tls = folder.join("tls");
        let prefix = match node {
            Node::Peer | Node::Orderer => "server",
            Node::Client | Node::Admin => "client",
        };
        let leaf = authorities.tls_ca.issue_tls(name, sans)?;
        self.public(tls.join("ca.crt"), authorities.tls_ca.certificate_pem())?;
        self.public(tls.join(format!("{prefix}.crt")), &leaf.certificate)?;
        self.secret(tls.join(format!("{prefix}.key")), leaf.key)?;
        Ok(certificate)
    }

    fn public(&mut self, path: PathBuf, text: &str) -> Result<(), CryptoError> {
        self.add(path, File::Public(text.to_owned()))
    }

    fn secret(&mut self, path: PathBuf, text: Zeroizing<String>) -> Result<(), CryptoError> {
        self.add(path, File::Secret(text))
    }

    fn add(&mut self, path: PathBuf, file: File) -> Result<(), CryptoError> {
        if self.files.contains_key(&path) {
            let problem = "would be there twice; give every node its own name";
            return Err(setting(path.display().to_string(), problem));
        }
        self.files.insert(path, file);
        Ok(())
    }
}

/// Paths only: the contents are keys.
impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files.keys()).finish()
    }
}

struct Authorities<'a> {
    ca: &'a Authority,
    tls_ca: &'a Authority,
    node_ous: bool,
}

fn certificate_file(name: &str) -> String {
    format!("{name}-cert.pem")
}

/// Names become folders, so they must not lead anywhere else.
fn check_name(org: &str, name: &str) -> Result<(), CryptoError> {
    let harmless = !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control);
    if harmless {
        return Ok(());
    }
    Err(setting(
        org,
        format!("{name:?} cannot be a domain or host name"),
    ))
}

fn node_ous(ca_file: &str) -> String {
    let mut out = "NodeOUs:\n  Enable: true\n".to_owned();
    for (name, unit) in [
        ("Client", Node::Client),
        ("Peer", Node::Peer),
        ("Admin", Node::Admin),
        ("Orderer", Node::Orderer),
    ] {
        out.push_str(&format!(
            "  {name}OUIdentifier:\n    Certificate: cacerts/{ca_file}\n    OrganizationalUnitIdentifier: {}\n",
            unit.unit()
        ));
    }
    out
}

fn write(path: &Path, file: &File) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let text = match file {
        File::Public(text) => text.as_bytes(),
        File::Secret(text) => {
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            text.as_bytes()
        }
    };
    options.open(path)?.write_all(text)
}
