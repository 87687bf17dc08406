//! The orderer, and what is demanded of it whatever happens.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use crate::support::{Door, Identity, Line, Node, Orderer, bytes, connector};

/// Within this time another client is served. A second would do; other tests use the same processors.
const SOON: Duration = Duration::from_secs(3);

/// A good transaction on `fixture1`; nobody minds the same one twice.
pub(crate) const TRANSACTION: &str = "statuses/requests/b-ok-endorser-client.pb";

/// One orderer that serves the channel `fixture1` alone, and belongs to `fixture`.
pub(crate) struct Victim {
    orderer: Orderer,
}

impl Victim {
    pub(crate) async fn start() -> Self {
        let node = Node::anywhere(0)
            .with("ORDERER_GENERAL_AUTHENTICATION_TIMEWINDOW", "200000h")
            .with("ORDERER_GENERAL_MAXRECVMSGSIZE", "1048576");
        let orderer = node.start().await;
        orderer.join("genesis/fixture1.block").await;
        orderer.join("genesis/fixture.block").await;
        orderer
            .says("Raft leader changed: 0 -> 1 channel=fixture1 ")
            .await;
        Self { orderer }
    }

    pub(crate) fn orderer(&self) -> &Orderer {
        &self.orderer
    }

    /// TLS to the port for clients and orderers.
    pub(crate) async fn connect(
        &self,
        identity: Option<&Identity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(("127.0.0.1", self.orderer.port())).await?;
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        connector(identity, &[b"h2"]).connect(name, socket).await
    }

    /// A client, an operator and a health check that come now are served.
    pub(crate) async fn serves_others(&self, meanwhile: &str) {
        let started = Instant::now();
        let client = async {
            let line = Line::open(self.orderer.port(), None).await.unwrap();
            assert_eq!(line.submit(bytes(TRANSACTION)).await.0, 200, "{meanwhile}");
        };
        let served = timeout(SOON, client).await;
        assert!(served.is_ok(), "{meanwhile}: no client is served");
        let operator = timeout(SOON, self.orderer.describe("fixture1")).await;
        assert!(operator.is_ok(), "{meanwhile}: no operator is served");
        let health = Door::plain(self.orderer.operations_port());
        let health = timeout(SOON, health.ask("GET", "/healthz", &[], b"")).await;
        assert!(
            health.is_ok_and(|answer| answer.status == 200),
            "{meanwhile}: health"
        );
        eprintln!(
            "{meanwhile}: others are served in {:?}; {} KiB",
            started.elapsed(),
            self.orderer.resident_kib()
        );
    }

    /// The process holds no more than this, and nothing in it has panicked.
    pub(crate) fn is_unharmed(&self, limit_kib: u64) {
        let resident = self.orderer.resident_kib();
        assert!(resident < limit_kib, "{resident} KiB are in memory");
        assert!(!self.orderer.log().contains("panicked"));
    }

    /// It can still be asked to stop.
    pub(crate) async fn stops(self) {
        self.orderer.stop().await;
    }
}
