'use strict';
// What a client of an orderer knows of the wire, with the messages of @hyperledger/fabric-protos, the streams of
// @grpc/grpc-js and Node's own cryptography. Nothing of this is Quorate's: a mistake that its encoders and decoders
// share shows when these disagree. Hashes and signatures are checked here because no SDK checks an orderer's blocks.

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const { common, msp, orderer } = require('@hyperledger/fabric-protos');
const { Timestamp } = require('google-protobuf/google/protobuf/timestamp_pb.js');

/** An answer that takes longer is missing. */
const PATIENCE = 20_000;

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), crypto.createHash('sha256')).digest();
const bytes = (array) => Buffer.from(array);
const nameOf = (names, value) => Object.keys(names).find((name) => names[name] === value) ?? value;
const statusName = (status) => nameOf(common.Status, status);
const onlyFile = (folder, name) => path.join(name, fs.readdirSync(path.join(folder, name))[0]);

/** Someone who signs: `folder` is an MSP folder, or one with cert.pem and key.pem. */
function identity(mspid, folder) {
    const flat = fs.existsSync(path.join(folder, 'cert.pem'));
    const of = (flatName, name) => fs.readFileSync(path.join(folder, flat ? flatName : onlyFile(folder, name)));
    const certificate = of('cert.pem', 'signcerts');
    const key = of('key.pem', 'keystore');
    const creator = new msp.SerializedIdentity();
    creator.setMspid(mspid);
    creator.setIdBytes(certificate);
    return {
        mspid,
        certificate: certificate.toString(),
        key: key.toString(),
        creator: bytes(creator.serializeBinary()),
        sign: (message) => lowS(crypto.sign('sha256', message, { key, dsaEncoding: 'ieee-p1363' })),
    };
}

const P256_ORDER = BigInt('0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551');

/** Of the two signatures that verify, Fabric accepts the one with the smaller S only. */
function lowS(signature) {
    const r = signature.subarray(0, 32);
    let s = BigInt('0x' + signature.subarray(32).toString('hex'));
    if (s > P256_ORDER / 2n) s = P256_ORDER - s;
    return der(0x30, Buffer.concat([derInteger(BigInt('0x' + r.toString('hex'))), derInteger(s)]));
}

function der(tag, content) {
    const length = content.length < 128 ? [content.length] : [0x81, content.length];
    return Buffer.concat([Buffer.from([tag, ...length]), content]);
}

function derInteger(value) {
    let hex = value.toString(16);
    if (hex.length % 2) hex = '0' + hex;
    if (parseInt(hex.slice(0, 2), 16) >= 0x80) hex = '00' + hex;
    return der(0x02, Buffer.from(hex, 'hex'));
}

/** An envelope of `type` for `channel`, signed by `signer`. `tlsHash` binds it to a TLS client certificate. */
function envelope({ type, channel, signer, data, tlsHash, txId }) {
    const channelHeader = new common.ChannelHeader();
    channelHeader.setType(type);
    channelHeader.setChannelId(channel);
    channelHeader.setTimestamp(Timestamp.fromDate(new Date()));
    if (txId) channelHeader.setTxId(txId);
    if (tlsHash) channelHeader.setTlsCertHash(tlsHash);
    const signatureHeader = new common.SignatureHeader();
    signatureHeader.setCreator(signer.creator);
    signatureHeader.setNonce(crypto.randomBytes(24));
    const header = new common.Header();
    header.setChannelHeader(channelHeader.serializeBinary());
    header.setSignatureHeader(signatureHeader.serializeBinary());
    const payload = new common.Payload();
    payload.setHeader(header);
    payload.setData(data);
    const sealed = new common.Envelope();
    sealed.setPayload(payload.serializeBinary());
    sealed.setSignature(signer.sign(sealed.getPayload()));
    return sealed;
}

function seekPosition(where) {
    const position = new orderer.SeekPosition();
    if (where === 'oldest') position.setOldest(new orderer.SeekOldest());
    else if (where === 'newest') position.setNewest(new orderer.SeekNewest());
    else if (where === 'next') position.setNextCommit(new orderer.SeekNextCommit());
    else {
        const specified = new orderer.SeekSpecified();
        specified.setNumber(where === 'forever' ? Number.MAX_SAFE_INTEGER : where);
        position.setSpecified(specified);
    }
    return position;
}

/** Asks for the blocks from `start` to `stop`: a number, 'oldest', 'newest', 'next' or 'forever'. */
function seek({ channel, signer, start, stop, failIfNotReady, tlsHash }) {
    const info = new orderer.SeekInfo();
    info.setStart(seekPosition(start));
    info.setStop(seekPosition(stop));
    const behaviors = orderer.SeekInfo.SeekBehavior;
    info.setBehavior(failIfNotReady ? behaviors.FAIL_IF_NOT_READY : behaviors.BLOCK_UNTIL_READY);
    const type = common.HeaderType.DELIVER_SEEK_INFO;
    return envelope({ type, channel, signer, data: info.serializeBinary(), tlsHash });
}

/** A client of the orderer; `tls` has its certificate and key, or is empty. */
function client(world, tls = world.tls) {
    const credentials = grpc.credentials.createSsl(world.roots, tls.key ?? null, tls.certificate ?? null);
    return new orderer.AtomicBroadcastClient(world.settings.orderer, credentials, {
        'grpc.ssl_target_name_override': 'localhost',
        'grpc.max_receive_message_length': 100 << 20,
    });
}

/** A stream whose answers are taken one by one; `next` gives null at a good end, and throws the status of a bad one. */
function conversation(stream) {
    const arrived = [];
    let waiting = null;
    const put = (item) => {
        if (waiting) {
            waiting(item);
            waiting = null;
        } else arrived.push(item);
    };
    stream.on('data', (answer) => put({ answer }));
    stream.on('error', (error) => put({ error }));
    stream.on('end', () => put({ answer: null }));
    return {
        send: (message) => stream.write(message),
        finish: () => stream.end(),
        cancel: () => stream.cancel(),
        async next(patience = PATIENCE) {
            let timer;
            const late = new Promise((_, refuse) => {
                timer = setTimeout(() => refuse(new Error(`no answer within ${patience} ms`)), patience);
            });
            const item = arrived.length
                ? arrived.shift()
                : await Promise.race([new Promise((resolve) => (waiting = resolve)), late]);
            clearTimeout(timer);
            if (item.error) throw item.error;
            return item.answer;
        },
        /** Whether nothing has arrived that was not taken. */
        quiet: () => arrived.length === 0,
    };
}

/** What Deliver says until a status or the end: `{ blocks, status }`. */
async function blocksUntilStatus(talk) {
    const blocks = [];
    for (;;) {
        const answer = await talk.next();
        if (answer === null) return { blocks, status: null };
        if (answer.hasBlock()) blocks.push(answer.getBlock());
        else return { blocks, status: statusName(answer.getStatus()) };
    }
}

/** Blocks from an orderer over a stream of their own; `asked` overrides who asks for which channel. */
async function fetch(orderer, world, asked) {
    const talk = conversation(orderer.deliver());
    talk.send(seek({ channel: world.channel, signer: world.user, tlsHash: world.tlsHash, ...asked }));
    const answer = await blocksUntilStatus(talk);
    talk.finish();
    return answer;
}

/** The bytes of which a header's hash is the SHA-256. */
function headerBytes(header) {
    return der(0x30, Buffer.concat([
        derInteger(BigInt(header.getNumber())),
        der(0x04, bytes(header.getPreviousHash_asU8())),
        der(0x04, bytes(header.getDataHash_asU8())),
    ]));
}

/** What can be said of a block without asking anybody. */
function examine(block, previous) {
    const header = block.getHeader();
    const data = block.getData().getDataList_asU8();
    const metadata = block.getMetadata().getMetadataList_asU8();
    const signed = common.Metadata.deserializeBinary(metadata[common.BlockMetadataIndex.SIGNATURES]);
    const signers = signed.getSignaturesList().map((signature) => {
        const who = common.SignatureHeader.deserializeBinary(signature.getSignatureHeader_asU8());
        const creator = msp.SerializedIdentity.deserializeBinary(who.getCreator_asU8());
        const certificate = new crypto.X509Certificate(bytes(creator.getIdBytes_asU8()));
        const proof = signature.getSignature_asU8();
        const message = [signed.getValue_asU8(), signature.getSignatureHeader_asU8(), headerBytes(header)];
        return {
            mspid: creator.getMspid(),
            subject: certificate.subject.split('\n').at(-1),
            verifies: crypto.verify('sha256', Buffer.concat(message), certificate.publicKey, proof),
        };
    });
    const value = signed.getValue_asU8();
    const lastConfig = common.OrdererBlockMetadata.deserializeBinary(value).getLastConfig()?.getIndex() ?? null;
    const transactions = data.map((item) => {
        const payload = common.Payload.deserializeBinary(common.Envelope.deserializeBinary(item).getPayload_asU8());
        const about = common.ChannelHeader.deserializeBinary(payload.getHeader().getChannelHeader_asU8());
        return {
            type: nameOf(common.HeaderType, about.getType()), channel: about.getChannelId(), txId: about.getTxId(),
        };
    });
    const chained = () => sha256(headerBytes(previous.getHeader())).equals(bytes(header.getPreviousHash_asU8()));
    return {
        number: header.getNumber(),
        dataHash: sha256(...data).equals(bytes(header.getDataHash_asU8())),
        previousHash: previous ? chained() : null,
        signers,
        lastConfig,
        transactions,
    };
}

module.exports = {
    PATIENCE, blocksUntilStatus, client, conversation, envelope, examine, fetch, identity, seek, sha256, statusName,
};
