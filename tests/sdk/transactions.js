'use strict';
// Transactions the way an application of fabric-common sends and sees them: a proposal, a commit, a committer; and its
// own event service, which reads blocks.

const crypto = require('node:crypto');
const { Client, User, Eventer } = require('fabric-common');
const fabproto = require('fabric-protos');
const { client, examine, fetch, PATIENCE } = require('./wire.js');

const CHAINCODE = 'asset';

/** Everything that fabric-common needs to talk to the orderer. */
function application(world) {
    const sdk = new Client('application');
    if (world.settings.mutual) {
        sdk.setTlsClientCertAndKey(world.clientTls.certificate.toString(), world.clientTls.key.toString());
    }
    const endpoint = sdk.newEndpoint({
        url: `grpcs://${world.settings.orderer}`,
        pem: world.roots.toString(),
        'ssl-target-name-override': 'localhost',
        requestTimeout: PATIENCE,
        'grpc-wait-for-ready-timeout': PATIENCE,
    });
    const user = User.createUser('user1', '', world.user.mspid, world.user.certificate, world.user.key);
    return { sdk, endpoint, channel: sdk.newChannel(world.channel), identity: () => sdk.newIdentityContext(user) };
}

/** A transaction that a peer endorsed: the step that the orderer has no part in is done here, with the peer's key. */
function endorsed(world, application, text) {
    const identity = application.identity();
    const endorsement = application.channel.newEndorsement(CHAINCODE);
    endorsement.build(identity, { fcn: 'set', args: [text, crypto.randomBytes(200)] });
    endorsement.sign(identity);
    const payload = fabproto.protos.ProposalResponsePayload.encode({
        proposal_hash: crypto.randomBytes(32),
        extension: fabproto.protos.ChaincodeAction.encode({
            response: { status: 200 },
            chaincode_id: { name: CHAINCODE, version: '1.0' },
        }).finish(),
    }).finish();
    const signature = world.peer.sign(Buffer.concat([payload, world.peer.creator]));
    endorsement._proposalResponses = [{
        response: { status: 200 }, payload, endorsement: { endorser: world.peer.creator, signature },
    }];
    const commit = endorsement.newCommit();
    commit.build(identity);
    commit.sign(identity);
    return { commit, txId: endorsement.getTransactionId() };
}

/** A channel that was joined a moment ago may have no leader yet: an application tries again. */
async function broadcast(commit, committer) {
    const deadline = Date.now() + PATIENCE;
    for (;;) {
        const answer = await commit.send({ targets: [committer] });
        if (answer.status !== 'SERVICE_UNAVAILABLE' || Date.now() > deadline) return answer;
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

async function transactions(world) {
    const app = application(world);
    const committer = app.sdk.newCommitter('orderer', 'OrdererOrgMSP');
    await committer.connect(app.endpoint);
    app.channel.addCommitter(committer);

    const sent = [];
    for (let i = 0; i < world.settings.count; i += 1) {
        const { commit, txId } = endorsed(world, app, `asset-${i}`);
        const answer = await broadcast(commit, committer);
        sent.push({ txId, status: answer.status, info: answer.info });
    }
    // And some at a time, each on its own stream of the same connection.
    const together = Array.from({ length: world.settings.count }, (_, i) => endorsed(world, app, `together-${i}`));
    const answers = await Promise.all(together.map(({ commit }) => commit.send({ targets: [committer] })));
    answers.forEach(({ status, info }, i) => sent.push({ txId: together[i].txId, status, info }));

    const { commit: spoilt } = endorsed(world, app, 'spoilt');
    spoilt._signature[spoilt._signature.length - 1] ^= 1;
    const refused = await spoilt.send({ targets: [committer] });
    committer.disconnect();

    const txIds = sent.map(({ txId }) => txId);
    return { sent, refused, events: await events(app, txIds), chain: await chain(world) };
}

/** fabric-common's event service is made for peers; an orderer's Deliver has the same messages under another name. */
async function events(app, txIds) {
    const eventer = new Eventer('orderer', app.sdk, 'OrdererOrgMSP');
    eventer.serviceClass = fabproto.services.orderer.AtomicBroadcast;
    await eventer.connect(app.endpoint);
    const service = app.channel.newEventService('blocks');
    const identity = app.identity();
    service.build(identity, { startBlock: 0, blockType: 'full' });
    service.sign(identity);
    const missing = new Set(txIds);
    const blocks = [];
    const done = new Promise((resolve, reject) => {
        setTimeout(() => reject(new Error(`${missing.size} transactions were not seen`)), PATIENCE).unref();
        service.registerBlockListener((error, event) => {
            if (error) return reject(error);
            const transactions = event.block.data.data.map(({ payload }) => {
                const header = payload.header.channel_header;
                missing.delete(header.tx_id);
                return { type: header.typeString, txId: header.tx_id };
            });
            const signers = event.block.metadata.metadata[0].signatures.map((s) => s.signature_header.creator.mspid);
            blocks.push({ number: event.blockNumber.toNumber(), transactions, signers });
            if (missing.size === 0) resolve();
        }, { unregister: false });
    });
    await service.send({ targets: [eventer] });
    await done;
    service.close();
    return blocks;
}

/** The whole chain, read and verified by ourselves. */
async function chain(world) {
    const orderer = client(world);
    const { blocks, status } = await fetch(orderer, world, { start: 'oldest', stop: 'newest' });
    orderer.close();
    return { status, blocks: blocks.map((block, i) => examine(block, blocks[i - 1])) };
}

module.exports = { transactions };
