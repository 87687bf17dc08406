//! `quorate channel consenter add | remove | rotate`: who orders a channel, one change at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use quorate_fabric::config::wanted::{ListChange, WantedConsenter, WantedOrganization, WantedRaft};
use quorate_fabric::config::{ChannelConfig, Wanted};
use quorate_fabric::genesis::BesideConfigtx;
use quorate_orderer::admin_client::{AdminClient, AdminError};
use quorate_orderer::deliver_client::Which;
use tokio::time::{Instant, sleep};

use super::access::{self, Access, Session};
use super::health;
use super::proposal::{Current, Handling, Proposal};
use super::tls;

/// Pause between two questions to a newcomer.
const POLL: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub(super) enum Command {
    /// Add a consenter, and its endpoint for clients
    ///
    /// With --join the whole procedure: the newcomer is added, joins the channel with the new configuration block, and when
    /// it has all blocks its endpoint is made known. Without, the endpoint is added at once, and the newcomer is left to
    /// `quorate channel join`.
    Add {
        /// Where the other orderers reach it, host:port
        #[arg(value_name = "HOST:PORT")]
        address: String,
        #[command(flatten)]
        certificates: Certificates,
        /// Where clients reach it, if that is another address
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<String>,
        /// The orderer organisation that it belongs to; may be left out if there is one
        #[arg(long, value_name = "NAME")]
        org: Option<String>,
        /// Leave the endpoints as they are
        #[arg(long, conflicts_with_all = ["endpoint", "org"])]
        no_endpoint: bool,
        #[command(flatten)]
        join: Join,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a consenter, and its endpoint for clients
    ///
    /// One that works notices, and follows or leaves the channel by itself; one that is gone is not missed any more.
    Remove {
        /// Where the other orderers reach it, host:port
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Where clients reach it, if that is another address
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Give a consenter other TLS certificates
    ///
    /// Afterwards it is started again with the new ones. Certificates over the same key need no restart.
    Rotate {
        /// Where the other orderers reach it, host:port
        #[arg(value_name = "HOST:PORT")]
        address: String,
        #[command(flatten)]
        certificates: Certificates,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
pub(super) struct Common {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    handling: Handling,
}

#[derive(Args)]
pub(super) struct Certificates {
    /// Its TLS certificate (PEM), as server and, if there is no other, as client
    #[arg(long, value_name = "FILE")]
    tls_cert: PathBuf,
    /// Its TLS certificate as client (PEM)
    #[arg(long, value_name = "FILE")]
    client_tls_cert: Option<PathBuf>,
}

/// A newcomer's admin endpoint.
#[derive(Args)]
pub(super) struct Join {
    /// Make it join at its admin endpoint, and wait until it orders
    #[arg(long, conflicts_with_all = ["dry_run", "output"], value_name = "HOST:PORT")]
    join: Option<String>,
    /// CA certificates (PEM) that the admin endpoint's TLS certificate is checked with
    #[arg(long, requires_all = ["join", "admin_client_cert"], value_name = "FILE")]
    admin_ca_file: Option<PathBuf>,
    /// Our TLS certificate (PEM) for the admin endpoint
    #[arg(long, requires = "admin_client_key", value_name = "FILE")]
    admin_client_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, requires = "admin_ca_file", value_name = "FILE")]
    admin_client_key: Option<PathBuf>,
}

impl Join {
    fn client(&self, patience: Duration) -> Result<Option<AdminClient>> {
        let Some(address) = &self.join else {
            return Ok(None);
        };
        let files = (
            &self.admin_ca_file,
            &self.admin_client_cert,
            &self.admin_client_key,
        );
        let tls = match files {
            (Some(roots), Some(certificate), Some(key)) => {
                Some(tls(roots, Some((certificate, key)), Duration::ZERO, None)?)
            }
            _ => None,
        };
        Ok(Some(AdminClient::new(address, tls, patience)?))
    }
}

impl Certificates {
    fn wanted(&self) -> WantedConsenter {
        let text = |path: &Path| path.display().to_string();
        let client = self.client_tls_cert.as_deref().unwrap_or(&self.tls_cert);
        WantedConsenter {
            client_tls_cert: text(client),
            server_tls_cert: text(&self.tls_cert),
        }
    }
}

pub(super) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Add {
            address,
            certificates,
            endpoint,
            org,
            no_endpoint,
            join,
            common,
        } => {
            let adding = Adding {
                consenter: (address.clone(), certificates.wanted()),
                endpoint: (!no_endpoint).then(|| endpoint.unwrap_or(address)),
                org,
            };
            let admin = join.client(common.access.patience())?;
            adding.run(&common, admin).await
        }
        Command::Remove {
            address,
            endpoint,
            common,
        } => {
            let endpoint = endpoint.as_deref().unwrap_or(&address);
            change(&common, |config| {
                known(config, &address)?;
                let mut wanted = consenter(&address, None);
                forget(config, endpoint, &mut wanted);
                Ok(wanted)
            })
            .await
        }
        Command::Rotate {
            address,
            certificates,
            common,
        } => {
            let ended = change(&common, |config| {
                known(config, &address)?;
                let certificates = certificates.wanted();
                unused(config, &address, &certificates)?;
                Ok(consenter(&address, Some(certificates)))
            })
            .await?;
            if common.handling.submits() {
                println!(
                    "next: give {address} the new certificate and key (General.TLS, General.Cluster) and start it again; \
                     with the same key it goes on as it is. Rotate the next one when it works: `quorate channel consenter` \
                     refuses before"
                );
            }
            Ok(ended)
        }
    }
}

/// A change of one consenter and nothing else.
fn consenter(address: &str, to: Option<WantedConsenter>) -> Wanted {
    let mut wanted = Wanted::default();
    wanted.orderer.etcd_raft = WantedRaft {
        consenters: BTreeMap::from([(address.to_owned(), to)]),
        ..WantedRaft::default()
    };
    wanted
}

fn addresses(config: &ChannelConfig) -> Vec<String> {
    let consenters = config.raft_metadata().consenters.iter();
    consenters.map(health::address).collect()
}

fn known(config: &ChannelConfig, address: &str) -> Result<()> {
    let addresses = addresses(config);
    if !addresses.iter().any(|one| one == address) {
        bail!(
            "{address} is no consenter of channel {}; they are {}",
            config.channel_id(),
            addresses.join(", ")
        );
    }
    Ok(())
}

/// Consenters are told apart by their certificates.
fn unused(config: &ChannelConfig, address: &str, wanted: &WantedConsenter) -> Result<()> {
    for file in [&wanted.client_tls_cert, &wanted.server_tls_cert] {
        let pem = super::read(Path::new(file))?;
        let consenters = config.raft_metadata().consenters.iter();
        for other in consenters.filter(|one| health::address(one) != address) {
            if other.client_tls_cert == pem || other.server_tls_cert == pem {
                bail!(
                    "{file} is the certificate of consenter {}: each has its own",
                    health::address(other)
                );
            }
        }
    }
    Ok(())
}

/// Takes an endpoint from wherever it is listed.
fn forget(config: &ChannelConfig, endpoint: &str, wanted: &mut Wanted) {
    let gone = || Some(ListChange::without(endpoint.to_owned()));
    for (name, org) in &config.orderer().organisations {
        if org.endpoints.iter().any(|one| one == endpoint) {
            let org = WantedOrganization {
                orderer_endpoints: gone(),
                ..WantedOrganization::default()
            };
            wanted.orderer.organizations.insert(name.clone(), Some(org));
        }
    }
    if config.orderer_addresses().iter().any(|one| one == endpoint) {
        wanted.orderer.addresses = gone();
    }
}

/// Changes the channel as wanted.
async fn change(
    common: &Common,
    wanted: impl FnOnce(&ChannelConfig) -> Result<Wanted>,
) -> Result<ExitCode> {
    let session = common.access.open()?;
    let ended = step(&session, common, wanted).await;
    session.close().await;
    ended
}

async fn step(
    session: &Session,
    common: &Common,
    wanted: impl FnOnce(&ChannelConfig) -> Result<Wanted>,
) -> Result<ExitCode> {
    let current = Current::fetch(session, &common.access).await?;
    let wanted = wanted(&current.config)?;
    let config = wanted.apply(&current.config, &BesideConfigtx(PathBuf::new()))?;
    match Proposal::of(session, &current, &config, &common.handling)? {
        None => {
            println!("the channel is so already");
            Ok(ExitCode::SUCCESS)
        }
        Some(proposal) => {
            proposal
                .carry_out(session, &current, &common.handling)
                .await
        }
    }
}

struct Adding {
    consenter: (String, WantedConsenter),
    endpoint: Option<String>,
    org: Option<String>,
}

impl Adding {
    async fn run(&self, common: &Common, admin: Option<AdminClient>) -> Result<ExitCode> {
        let session = common.access.open()?;
        let ended = match admin {
            None => self.without_joining(&session, common).await,
            Some(admin) => self.with_joining(&session, common, &admin).await,
        };
        session.close().await;
        ended
    }

    async fn without_joining(&self, session: &Session, common: &Common) -> Result<ExitCode> {
        let ended = step(session, common, |config| {
            let mut wanted = self.as_consenter(config)?;
            self.make_known(config, &mut wanted)?;
            Ok(wanted)
        })
        .await?;
        if common.handling.submits() {
            println!(
                "next: let it join with the new configuration block, `quorate channel fetch config` and `quorate channel \
                 join`; until then it counts and does not work"
            );
        }
        Ok(ended)
    }

    async fn with_joining(
        &self,
        session: &Session,
        common: &Common,
        admin: &AdminClient,
    ) -> Result<ExitCode> {
        // Whoever cannot join is not to be counted: better known before.
        admin.list().await?;
        step(session, common, |config| self.as_consenter(config)).await?;
        self.join(session, common, admin).await?;
        if self.endpoint.is_some() {
            step(session, common, |config| {
                let mut wanted = Wanted::default();
                self.make_known(config, &mut wanted)?;
                Ok(wanted)
            })
            .await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn as_consenter(&self, config: &ChannelConfig) -> Result<Wanted> {
        let (address, certificates) = &self.consenter;
        unused(config, address, certificates)?;
        if addresses(config).contains(address) {
            // The same certificates again are no change; others are a rotation, which has its own command.
            let same = config.raft_metadata().consenters.iter().any(|one| {
                let read = |file: &String| std::fs::read(file).ok();
                health::address(one) == *address
                    && read(&certificates.client_tls_cert).as_ref() == Some(&one.client_tls_cert)
                    && read(&certificates.server_tls_cert).as_ref() == Some(&one.server_tls_cert)
            });
            if !same {
                bail!(
                    "{address} is a consenter already, with other certificates: `quorate channel consenter rotate` changes them"
                );
            }
        }
        Ok(consenter(address, Some(certificates.clone())))
    }

    /// Adds the endpoint where the channel has its endpoints.
    fn make_known(&self, config: &ChannelConfig, wanted: &mut Wanted) -> Result<()> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        let organisations = &config.orderer().organisations;
        let none_has_any = organisations.values().all(|org| org.endpoints.is_empty());
        let come = Some(ListChange::with(endpoint.clone()));
        // The first endpoint of an organisation would make clients forget the channel-wide addresses.
        if none_has_any && !config.orderer_addresses().is_empty() && self.org.is_none() {
            wanted.orderer.addresses = come;
            return Ok(());
        }
        let names: Vec<&str> = organisations.keys().map(String::as_str).collect();
        let name = match (&self.org, &names[..]) {
            (Some(name), _) if organisations.contains_key(name) => name,
            (None, [only]) => *only,
            (Some(name), _) => bail!(
                "there is no orderer organisation {name}; there are {}",
                names.join(", ")
            ),
            (None, _) => bail!(
                "say with --org which organisation it belongs to: {}",
                names.join(", ")
            ),
        };
        let org = WantedOrganization {
            orderer_endpoints: come,
            ..WantedOrganization::default()
        };
        wanted
            .orderer
            .organizations
            .insert(name.to_owned(), Some(org));
        Ok(())
    }

    /// Lets the newcomer join with the newest configuration block, and waits until it orders and has what the others have.
    async fn join(&self, session: &Session, common: &Common, admin: &AdminClient) -> Result<()> {
        let (address, _) = &self.consenter;
        let newest = async |which| {
            let wanted = access::Wanted::now(which);
            session
                .first_block(&common.access.orderer, wanted)
                .await
                .map_err(|refusals| {
                    let refusals: Vec<String> =
                        refusals.iter().map(super::proposal::told).collect();
                    anyhow::anyhow!("no orderer gives a block:\n{}", refusals.join("\n"))
                })
        };
        let (_, block) = newest(Which::Config).await?;
        match admin.join(block.encoded()).await {
            Ok(_) => println!("{address} joined with block {}", block.number()),
            Err(AdminError::Refused { status: 405, .. }) => {
                println!("{address} was in the channel already");
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "{address} is a consenter now and has not joined; bring it in with `quorate channel join`, or take it \
                         back with `quorate channel consenter remove {address}`"
                    )
                });
            }
        }
        let (_, goal) = newest(Which::Newest).await?;
        let deadline = Instant::now() + common.access.patience();
        let mut height = None;
        loop {
            let described = admin.info(&session.channel).await?;
            let caught_up = described.height > goal.number();
            if caught_up
                && described.consensus_relation == "consenter"
                && described.status == "active"
            {
                println!("{address} orders, with {} blocks", described.height);
                return Ok(());
            }
            if height != Some(described.height) {
                println!(
                    "{address}: {}, {}, {} of {} blocks",
                    described.consensus_relation,
                    described.status,
                    described.height,
                    goal.number() + 1
                );
                height = Some(described.height);
            }
            if Instant::now() > deadline {
                bail!(
                    "{address} is a consenter and still catching up after {:?} (--timeout): {} of {} blocks. Its endpoint is not \
                     known to clients yet; the same command goes on from here",
                    common.access.patience(),
                    described.height,
                    goal.number() + 1
                );
            }
            sleep(POLL).await;
        }
    }
}
