-- What users asked for by RPC, each noted before it is done. allowed: 0 refused for lack of a permission, 1 not.
CREATE TABLE rpc_audit (
    recorded_at BIGINT NOT NULL,
    invocation_id {bytes} NOT NULL,
    username {text} NOT NULL,
    interface {text} NOT NULL,
    action {text} NOT NULL,
    parameters {text} NOT NULL,
    allowed BIGINT NOT NULL,
    PRIMARY KEY (recorded_at, invocation_id)
) {clustered};

-- When the first message of the epoch came. Not known of rows that a former release has written: the clean-up gives
-- them the time at which it sees them first.
ALTER TABLE inbound_marks ADD COLUMN begun_at BIGINT;
