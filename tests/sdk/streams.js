'use strict';
// Broadcast and Deliver streams as gateways, peers and tools hold them open.

const crypto = require('node:crypto');
const { common, orderer: messages } = require('@hyperledger/fabric-protos');
const wire = require('./wire.js');

const { HeaderType } = common;

/** An ordinary message of `signer`. */
function message(world, txId, changed = {}) {
    const data = crypto.randomBytes(300);
    return wire.envelope({
        type: HeaderType.MESSAGE, channel: world.channel, signer: world.user, data, txId, tlsHash: world.tlsHash,
        ...changed,
    });
}

/** One answer of Broadcast, or how the stream ended. */
async function answerOf(talk) {
    try {
        const answer = await talk.next();
        if (answer === null) return { end: true };
        return { status: wire.statusName(answer.getStatus()), info: answer.getInfo() };
    } catch (error) {
        return { grpc: error.code, details: error.details };
    }
}

/** What one message is answered, and what comes after the answer although the client says nothing more. */
async function broadcastOne(client, envelope) {
    const talk = wire.conversation(client.broadcast());
    talk.send(envelope);
    const answer = await answerOf(talk);
    const after = answer.status && answer.status !== 'SUCCESS' ? await answerOf(talk) : null;
    talk.finish();
    return { answer, after };
}

/** Sends until there is a leader. */
async function ready(world, client) {
    const deadline = Date.now() + wire.PATIENCE;
    for (;;) {
        const { answer } = await broadcastOne(client, message(world, 'first'));
        if (answer.status === 'SUCCESS') return;
        if (Date.now() > deadline) throw new Error(`not ready: ${JSON.stringify(answer)}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

/** The numbers of blocks, and the status. */
async function numbers(client, world, asked) {
    const { blocks, status } = await wire.fetch(client, world, asked);
    return { blocks: blocks.map((block) => block.getHeader().getNumber()), status };
}

async function streams(world) {
    const client = wire.client(world);
    await ready(world, client);

    // A stream that waits for what does not exist yet, opened before anything is sent.
    const first = await wire.fetch(client, world, { start: 'newest', stop: 'newest' });
    const height = first.blocks[0].getHeader().getNumber() + 1;
    const open = wire.conversation(client.deliver());
    open.send(wire.seek({
        channel: world.channel, signer: world.user, start: height, stop: 'forever', tlsHash: world.tlsHash,
    }));

    // Many envelopes before the first answer is read.
    const stream = wire.conversation(client.broadcast());
    const txIds = Array.from({ length: world.settings.count }, (_, i) => `tx-${i}`);
    txIds.forEach((txId) => stream.send(message(world, txId)));
    stream.finish();
    const answers = [];
    do answers.push(await answerOf(stream)); while (answers.at(-1).status);

    // All of them, in order, in the blocks that arrive on the open stream.
    const live = [];
    let previous = first.blocks[0];
    const arrived = () => live.flatMap((block) => block.transactions).filter(({ txId }) => txIds.includes(txId));
    while (arrived().length < txIds.length) {
        const answer = await open.next();
        if (!answer.hasBlock()) throw new Error(`the open stream says ${answer.getStatus()}`);
        live.push(wire.examine(answer.getBlock(), previous));
        previous = answer.getBlock();
    }
    const tip = previous.getHeader().getNumber();

    // One stream, several questions.
    const several = wire.conversation(client.deliver());
    const asked = [];
    for (const [start, stop] of [['oldest', 'oldest'], ['newest', 'newest'], [1, 2], ['oldest', 'newest'], [1, 1]]) {
        several.send(wire.seek({ channel: world.channel, signer: world.user, start, stop, tlsHash: world.tlsHash }));
        const { blocks, status } = await wire.blocksUntilStatus(several);
        asked.push({ blocks: blocks.map((block) => block.getHeader().getNumber()), status });
    }
    several.finish();

    const refusals = {
        wrongSignature: await broadcastOne(client, (() => {
            const spoilt = message(world, 'spoilt');
            spoilt.setSignature(world.user.sign(Buffer.from('something else')));
            return spoilt;
        })()),
        stranger: await broadcastOne(client, message(world, 'stranger', { signer: world.stranger })),
        unknownChannel: await broadcastOne(client, message(world, 'nowhere', { channel: 'nosuchchannel' })),
        tooLarge: await broadcastOne(client, message(world, 'large', { data: Buffer.alloc(70_000, 1) })),
        empty: await broadcastOne(client, new common.Envelope()),
        deliverStranger: await numbers(client, world, { start: 0, stop: 0, signer: world.stranger }),
        deliverUnknownChannel: await numbers(client, world, { start: 0, stop: 0, channel: 'nosuchchannel' }),
        deliverBackwards: await numbers(client, world, { start: 2, stop: 1 }),
        deliverTooFar: await numbers(client, world, { start: tip + 5, stop: tip + 9 }),
        deliverNotReady: await numbers(client, world, { start: tip, stop: tip + 1, failIfNotReady: true }),
    };

    // The end of the stream that is still open comes from us.
    const quiet = open.quiet();
    open.cancel();
    const cancelled = await answerOf(open);
    client.close();
    return { height, tip, count: txIds.length, answers, live, asked, refusals, quiet, cancelled };
}

/** The newest configuration, found as tools find it: by the number in the newest block's signed metadata. */
async function newestConfig(client, world) {
    const { blocks: [newest] } = await wire.fetch(client, world, { start: 'newest', stop: 'newest' });
    const number = wire.examine(newest).lastConfig ?? 0;
    const { blocks: [block] } = await wire.fetch(client, world, { start: number, stop: number });
    const envelope = common.Envelope.deserializeBinary(block.getData().getDataList_asU8()[0]);
    const payload = common.Payload.deserializeBinary(envelope.getPayload_asU8());
    const config = common.ConfigEnvelope.deserializeBinary(payload.getData_asU8()).getConfig();
    return { number, config };
}

/** What an application reads in a configuration. */
function readable({ number, config }) {
    const root = config.getChannelGroup();
    const ordering = root.getGroupsMap().get('Orderer');
    const value = (group, name) => group.getValuesMap().get(name).getValue_asU8();
    const kind = messages.ConsensusType.deserializeBinary(value(ordering, 'ConsensusType'));
    const metadata = messages.etcdraft.ConfigMetadata.deserializeBinary(kind.getMetadata_asU8());
    const size = messages.BatchSize.deserializeBinary(value(ordering, 'BatchSize'));
    return {
        block: number,
        sequence: config.getSequence(),
        consensusType: kind.getType(),
        consenters: metadata.getConsentersList().map((consenter) => `${consenter.getHost()}:${consenter.getPort()}`),
        maxMessageCount: size.getMaxMessageCount(),
        batchTimeout: messages.BatchTimeout.deserializeBinary(value(ordering, 'BatchTimeout')).getTimeout(),
        capabilities: common.Capabilities.deserializeBinary(value(root, 'Capabilities')).getCapabilitiesMap().toArray()
            .map(([name]) => name),
        organizations: root.getGroupsMap().get('Application').getGroupsMap().toArray().map(([name]) => name),
    };
}

/** A signed proposal to change the batch size. */
function batchSizeUpdate(world, config, maxMessageCount) {
    const ordering = config.getChannelGroup().getGroupsMap().get('Orderer');
    const present = ordering.getValuesMap().get('BatchSize');
    const size = messages.BatchSize.deserializeBinary(present.getValue_asU8());
    size.setMaxMessageCount(maxMessageCount);
    const value = new common.ConfigValue();
    value.setVersion(present.getVersion() + 1);
    value.setModPolicy(present.getModPolicy());
    value.setValue(size.serializeBinary());
    const group = (values) => {
        const inner = new common.ConfigGroup();
        inner.setVersion(ordering.getVersion());
        if (values) inner.getValuesMap().set('BatchSize', value);
        const outer = new common.ConfigGroup();
        outer.setVersion(config.getChannelGroup().getVersion());
        outer.getGroupsMap().set('Orderer', inner);
        return outer;
    };
    const update = new common.ConfigUpdate();
    update.setChannelId(world.channel);
    update.setReadSet(group(false));
    update.setWriteSet(group(true));
    const proposal = new common.ConfigUpdateEnvelope();
    proposal.setConfigUpdate(update.serializeBinary());
    const header = new common.SignatureHeader();
    header.setCreator(world.ordererAdmin.creator);
    header.setNonce(crypto.randomBytes(24));
    const signature = new common.ConfigSignature();
    signature.setSignatureHeader(header.serializeBinary());
    signature.setSignature(world.ordererAdmin.sign(
        Buffer.concat([signature.getSignatureHeader_asU8(), proposal.getConfigUpdate_asU8()]),
    ));
    proposal.addSignatures(signature);
    return proposal.serializeBinary();
}

async function configuration(world) {
    const client = wire.client(world);
    await ready(world, client);
    const before = await newestConfig(client, world);
    const data = batchSizeUpdate(world, before.config, 7);
    const update = () => wire.envelope({
        type: HeaderType.CONFIG_UPDATE, channel: world.channel, signer: world.ordererAdmin, data,
        tlsHash: world.tlsHash,
    });
    const { blocks: [newest] } = await wire.fetch(client, world, { start: 'newest', stop: 'newest' });
    const next = newest.getHeader().getNumber() + 1;
    const sent = await broadcastOne(client, update());
    // A stream that waits for the block after the newest gets the configuration block when it is made, perhaps behind
    // one with the messages that were pending.
    const open = wire.conversation(client.deliver());
    open.send(wire.seek({
        channel: world.channel, signer: world.user, start: next, stop: 'forever', tlsHash: world.tlsHash,
    }));
    let made;
    let previous = newest;
    for (;;) {
        const block = (await open.next()).getBlock();
        made = wire.examine(block, previous);
        previous = block;
        if (made.transactions[0].type === 'CONFIG') break;
    }
    open.cancel();
    const seen = {
        before: readable(before),
        sent,
        made,
        after: readable(await newestConfig(client, world)),
        repeated: await broadcastOne(client, update()),
    };
    client.close();
    return seen;
}

/** An orderer that asks for client certificates, met by those who have none, and by those who name another. */
async function bindings(world) {
    const known = wire.client(world);
    await ready(world, known);
    const bare = wire.client(world, {});
    const talk = wire.conversation(bare.broadcast());
    talk.send(message(world, 'nobody'));
    const withoutCertificate = await answerOf(talk);
    bare.close();
    const foreign = wire.client(world, world.strangerTls);
    const other = wire.conversation(foreign.broadcast());
    other.send(message(world, 'stranger'));
    const foreignCertificate = await answerOf(other);
    foreign.close();
    const asked = { start: 0, stop: 0 };
    const seen = {
        withoutCertificate,
        foreignCertificate,
        bound: await numbers(known, world, asked),
        unbound: await numbers(known, world, { ...asked, tlsHash: undefined }),
        wronglyBound: await numbers(known, world, { ...asked, tlsHash: wire.sha256('another certificate') }),
    };
    known.close();
    return seen;
}

module.exports = { bindings, configuration, streams };
