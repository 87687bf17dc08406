'use strict';
// The channel participation API through Node's https, asked as osnadmin asks it.

const fs = require('node:fs');
const crypto = require('node:crypto');
const https = require('node:https');
const wire = require('./wire.js');

/** One request; a connection that never gave an answer is `{ error }`. */
function ask(world, method, path, { body, headers, tls = world.adminTls } = {}) {
    const [host, port] = world.settings.admin.split(':');
    return new Promise((resolve) => {
        const secrets = { servername: 'localhost', ca: world.roots, cert: tls?.certificate, key: tls?.key };
        const options = { host, port, method, path, headers, ...secrets, timeout: wire.PATIENCE, agent: false };
        const request = https.request(options, (response) => {
            let text = '';
            response.on('data', (part) => (text += part));
            response.on('end', () => resolve({
                status: response.statusCode,
                type: response.headers['content-type'] ?? null,
                protocol: response.socket.getProtocol?.() ?? null,
                body: text,
            }));
            response.on('error', (error) => resolve({ error: error.code ?? error.message }));
        });
        request.on('timeout', () => request.destroy(new Error('timeout')));
        request.on('error', (error) => resolve({ error: error.code ?? error.message }));
        request.end(body);
    });
}

/** A form with one file, as osnadmin posts a block. */
function form(field, block) {
    const boundary = crypto.randomBytes(30).toString('hex');
    const head = `--${boundary}\r\nContent-Disposition: form-data; name="${field}"; filename="${field}"\r\n`
        + 'Content-Type: application/octet-stream\r\n\r\n';
    return {
        headers: { 'Content-Type': `multipart/form-data; boundary=${boundary}` },
        body: Buffer.concat([Buffer.from(head), block, Buffer.from(`\r\n--${boundary}--\r\n`)]),
    };
}

const CHANNELS = '/participation/v1/channels';

async function participation(world) {
    const block = fs.readFileSync(world.genesis);
    const sent = form('config-block', block);
    return {
        withoutCertificate: await ask(world, 'GET', CHANNELS, { tls: null }),
        before: await ask(world, 'GET', CHANNELS),
        wrongField: await ask(world, 'POST', CHANNELS, form('block', block)),
        joined: await ask(world, 'POST', CHANNELS, sent),
        again: await ask(world, 'POST', CHANNELS, sent),
        list: await ask(world, 'GET', CHANNELS),
        info: await ask(world, 'GET', `${CHANNELS}/${world.channel}`),
        unknown: await ask(world, 'GET', `${CHANNELS}/nosuchchannel`),
    };
}

async function remove(world) {
    const path = `${CHANNELS}/${world.channel}`;
    const removed = await ask(world, 'DELETE', path);
    // The removal goes on after its answer, and is refused as long as it does.
    const deadline = Date.now() + wire.PATIENCE;
    let again;
    do again = await ask(world, 'DELETE', path); while (again.status === 409 && Date.now() < deadline);
    return { removed, again, list: await ask(world, 'GET', CHANNELS) };
}

module.exports = { participation, remove };
