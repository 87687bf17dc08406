-- Who may write: one row per resource. All times are the database's, in microseconds since 1970.
CREATE TABLE leases (
    resource {text} NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    machine {text} NOT NULL,
    base_directory {text} NOT NULL,
    process_id BIGINT NOT NULL,
    process_started BIGINT NOT NULL,
    host {text} NOT NULL,
    acquired_at BIGINT NOT NULL,
    renewed_at BIGINT NOT NULL,
    renewals BIGINT NOT NULL,
    released BIGINT NOT NULL,
    last_batch BIGINT NOT NULL
);
CREATE TABLE lease_history (
    resource {text} NOT NULL,
    generation BIGINT NOT NULL,
    machine {text} NOT NULL,
    base_directory {text} NOT NULL,
    process_id BIGINT NOT NULL,
    process_started BIGINT NOT NULL,
    host {text} NOT NULL,
    acquired_at BIGINT NOT NULL,
    last_batch BIGINT,
    PRIMARY KEY (resource, generation)
);

CREATE TABLE counters (
    name {text} NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('vault', 0);

-- status: 0 in flight, 1 final. visibility: which states the vault keeps, 0 none, 1 relevant, 2 all.
CREATE TABLE transactions (
    tx_id {bytes} NOT NULL PRIMARY KEY,
    bytes {bytes} NOT NULL,
    status BIGINT NOT NULL,
    visibility BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    generation BIGINT NOT NULL
);

-- status: 0 unconsumed, 1 consumed. participants: hashes of the participants' keys, 32 bytes each.
CREATE TABLE vault_states (
    tx_id {bytes} NOT NULL,
    idx BIGINT NOT NULL,
    state_type {text} NOT NULL,
    contract {text} NOT NULL,
    notary {text} NOT NULL,
    state {bytes} NOT NULL,
    participants {bytes} NOT NULL,
    status BIGINT NOT NULL,
    produced_seq BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    consumed_seq BIGINT,
    consumed_at BIGINT,
    consumed_by {bytes},
    PRIMARY KEY (tx_id, idx)
);
CREATE INDEX vault_unconsumed ON vault_states (state_type, produced_seq, idx) WHERE status = 0;
CREATE INDEX vault_produced ON vault_states (produced_seq);
CREATE INDEX vault_consumed ON vault_states (consumed_seq) WHERE consumed_seq IS NOT NULL;

-- States consumed by a recorded transaction that the vault does not hold: their producer may be recorded later.
CREATE TABLE vault_consumptions (
    tx_id {bytes} NOT NULL,
    idx BIGINT NOT NULL,
    consumed_by {bytes} NOT NULL,
    PRIMARY KEY (tx_id, idx)
) {clustered};

-- Apart from vault_states: locks come and go, and rewriting the wide row with all its indexes would cost more.
CREATE TABLE vault_locks (
    tx_id {bytes} NOT NULL,
    idx BIGINT NOT NULL,
    flow_id {bytes} NOT NULL,
    seq BIGINT NOT NULL,
    locked_at BIGINT NOT NULL,
    PRIMARY KEY (tx_id, idx)
) {clustered};
CREATE INDEX vault_locks_flow ON vault_locks (flow_id);

CREATE TABLE flows (
    flow_id {bytes} NOT NULL PRIMARY KEY,
    class {text} NOT NULL,
    arguments {text} NOT NULL,
    client_id {text},
    origin {text} NOT NULL,
    status {text} NOT NULL,
    checkpoint {bytes} NOT NULL,
    progress {text},
    outcome {text},
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    owner {text} NOT NULL,
    generation BIGINT NOT NULL,
    CONSTRAINT flows_client_id UNIQUE (client_id)
);
CREATE INDEX flows_unfinished ON flows (flow_id) WHERE finished_at IS NULL;

CREATE TABLE journal (
    flow_id {bytes} NOT NULL,
    seq BIGINT NOT NULL,
    entry {bytes} NOT NULL,
    PRIMARY KEY (flow_id, seq)
);

-- sequence: the number in the sender's queue, plus what earlier epochs of that queue have used.
CREATE TABLE inbox (
    peer {text} NOT NULL,
    sequence BIGINT NOT NULL,
    envelope {bytes} NOT NULL,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (peer, sequence)
);
CREATE TABLE inbound_marks (
    peer {text} NOT NULL,
    epoch {bytes} NOT NULL,
    sequence BIGINT NOT NULL,
    base BIGINT NOT NULL,
    PRIMARY KEY (peer, epoch)
);

CREATE TABLE outbox_peers (
    peer {text} NOT NULL PRIMARY KEY,
    epoch {bytes} NOT NULL,
    last_sequence BIGINT NOT NULL
);
CREATE TABLE outbox (
    peer {text} NOT NULL,
    sequence BIGINT NOT NULL,
    envelope {bytes} NOT NULL,
    enqueued_at BIGINT NOT NULL,
    PRIMARY KEY (peer, sequence)
);

CREATE TABLE attachments (
    id {bytes} NOT NULL PRIMARY KEY,
    bytes {bytes} NOT NULL,
    uploader {text} NOT NULL,
    stored_at BIGINT NOT NULL
);

CREATE TABLE notary_states (
    tx_id {bytes} NOT NULL,
    idx BIGINT NOT NULL,
    consumed_by {bytes} NOT NULL,
    PRIMARY KEY (tx_id, idx)
) {clustered};
CREATE TABLE notary_transactions (
    tx_id {bytes} NOT NULL PRIMARY KEY,
    requester {text} NOT NULL,
    request_signature {bytes} NOT NULL,
    committed_at BIGINT NOT NULL
);

CREATE TABLE settings (
    name {text} NOT NULL PRIMARY KEY,
    value {text} NOT NULL
);
