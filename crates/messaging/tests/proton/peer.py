"""An AMQP 1.0 peer built on Qpid Proton, an implementation that has nothing in common with ours.

send HOST PORT SNI ADDRESS SENDER RECIPIENT COUNT   sends COUNT messages, the last of them large, and waits for answers
receive CREDIT COUNT                                listens, prints its port, accepts COUNT messages with little credit
The working directory holds own.pem, own.key and root.pem. Prints one line per result.
"""
import sys

from proton import Message, SSLDomain, symbol, ulong, uint
from proton.handlers import MessagingHandler
from proton.reactor import Container


def domain(mode):
    ssl = SSLDomain(mode)
    ssl.set_credentials("own.pem", "own.key", None)
    if mode == SSLDomain.MODE_CLIENT:
        # Our certificates carry legal names, not host names; the hash of one is all that Proton could compare.
        ssl.set_trusted_ca_db("root.pem")
        ssl.set_peer_authentication(SSLDomain.VERIFY_PEER)
    else:
        # Only a verified client is offered the mechanism EXTERNAL.
        ssl.set_trusted_ca_db("root.pem")
        ssl.set_peer_authentication(SSLDomain.VERIFY_PEER, "root.pem")
    return ssl


class Send(MessagingHandler):
    def __init__(self, host, port, sni, address, sender, recipient, count):
        super().__init__()
        self.url, self.sni, self.address = f"amqps://{host}:{port}", sni, address
        self.sender_name, self.recipient, self.count = sender, recipient, int(count)
        self.sent = self.accepted = 0

    def on_start(self, event):
        connection = event.container.connect(
            self.url, ssl_domain=domain(SSLDomain.MODE_CLIENT), sni=self.sni, virtual_host=self.sni,
            allowed_mechs="EXTERNAL", heartbeat=4, reconnect=False,
        )
        event.container.create_sender(connection, self.address)

    def on_sendable(self, event):
        while event.sender.credit and self.sent < self.count:
            self.sent += 1
            body = b"x" * (3_000_000 if self.sent == self.count else 100)
            event.sender.send(Message(body=body, inferred=True, durable=True, properties={
                "version": uint(1), "sender": self.sender_name, "recipient": self.recipient,
                "epoch": "00112233445566778899aabbccddeeff", "sequence": ulong(self.sent),
            }))

    def on_accepted(self, event):
        self.accepted += 1
        if self.accepted == self.count:
            print("accepted", self.accepted, flush=True)
            event.connection.close()

    def on_rejected(self, event):
        print("rejected", event.delivery.remote.condition, flush=True)
        event.connection.close()

    def on_transport_error(self, event):
        print("transport error", event.transport.condition, flush=True)


class Receive(MessagingHandler):
    def __init__(self, credit, count):
        super().__init__(prefetch=int(credit))
        self.count, self.received = int(count), 0

    def on_start(self, event):
        import socket
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        event.container.ssl.server = domain(SSLDomain.MODE_SERVER)
        self.acceptor = event.container.listen(f"amqps://127.0.0.1:{port}")
        print("port", port, flush=True)

    def on_message(self, event):
        self.received += 1
        assert event.message.properties["sequence"] == self.received, event.message.properties
        if self.received == self.count:
            print("received", self.received, len(event.message.body), flush=True)

    def on_connection_closed(self, event):
        self.acceptor.close()


Container({"send": Send, "receive": Receive}[sys.argv[1]](*sys.argv[2:])).run()
