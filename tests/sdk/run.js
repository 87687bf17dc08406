'use strict';
// usage: node run.js SCENARIO SETTINGS
//
// Does what clients of an orderer do, and prints as its last line, in JSON, what came of it; who called it judges.
// SETTINGS is JSON: orderer (host:port), admin (host:port), fixtures (folder), channel, mutual (whether the orderer
// demands client certificates) and count (of messages). The packages are found through NODE_PATH.

const fs = require('node:fs');
const path = require('node:path');
const { X509Certificate } = require('node:crypto');
const wire = require('./wire.js');

const settings = JSON.parse(process.argv[3]);
const material = (folder) => path.join(settings.fixtures, 'crypto', folder);
const file = (folder) => fs.readFileSync(material(folder));
const ORDERERS = 'ordererOrganizations/orderer.test';
const ORG1 = 'peerOrganizations/org1.test';

/** What clients of this orderer present. */
const clientTls = {
    certificate: file(`${ORG1}/users/User1@org1.test/tls/client.crt`),
    key: file(`${ORG1}/users/User1@org1.test/tls/client.key`),
};

/** What the scenarios share. */
const world = {
    settings,
    channel: settings.channel,
    user: wire.identity('Org1MSP', material(`${ORG1}/users/User1@org1.test/msp`)),
    peer: wire.identity('Org1MSP', material(`${ORG1}/peers/peer0.org1.test/msp`)),
    ordererAdmin: wire.identity('OrdererOrgMSP', material(`${ORDERERS}/users/Admin@orderer.test/msp`)),
    stranger: wire.identity('Org1MSP', material('special/stranger-as-org1')),
    genesis: path.join(settings.fixtures, 'genesis', `${settings.channel}.block`),
    roots: file(`${ORDERERS}/tlsca/tlsca.orderer.test-cert.pem`),
    clientTls,
    tls: settings.mutual ? clientTls : {},
    tlsHash: settings.mutual ? wire.sha256(new X509Certificate(clientTls.certificate).raw) : undefined,
    strangerTls: {
        certificate: file('special/orderer4-tls-stranger/server.crt'),
        key: file('special/orderer4-tls-stranger/server.key'),
    },
    adminTls: {
        certificate: file(`${ORDERERS}/users/Admin@orderer.test/tls/client.crt`),
        key: file(`${ORDERERS}/users/Admin@orderer.test/tls/client.key`),
    },
};

const scenarios = {
    ...require('./participation.js'),
    ...require('./transactions.js'),
    ...require('./streams.js'),
};

scenarios[process.argv[2]](world).then(
    (seen) => fs.writeSync(1, JSON.stringify(seen) + '\n'),
    (error) => {
        console.error(error);
        process.exitCode = 1;
    },
).finally(() => process.exit());
