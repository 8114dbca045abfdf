-- Schema 2: what a cost depends on beside the record of its call; prices that are announced; keys of calls that must not
-- be made twice.

BEGIN IMMEDIATE;

-- Only for calls whose cost needs it. cache_write_1h_tokens is part of the record's cache_write_tokens, audio and images of
-- its input and output tokens. service: 0 standard, 1 batch, 2 flex, 3 priority.
CREATE TABLE call_details (
    call_id INTEGER PRIMARY KEY,
    cache_write_1h_tokens INTEGER NOT NULL,
    audio_input_tokens INTEGER NOT NULL,
    audio_output_tokens INTEGER NOT NULL,
    image_input_tokens INTEGER NOT NULL,
    service INTEGER NOT NULL
) STRICT;

-- Prices that take effect by themselves. withdrawn_ms: taken back before that; 0: not.
CREATE TABLE rate_schedule (
    id INTEGER PRIMARY KEY,
    body TEXT NOT NULL CHECK (length(body) <= 1000000),
    effective_ms INTEGER NOT NULL,
    announced_ms INTEGER NOT NULL,
    withdrawn_ms INTEGER NOT NULL
) STRICT;
CREATE TRIGGER rate_schedule_is_not_deleted BEFORE DELETE ON rate_schedule
BEGIN SELECT RAISE(ABORT, 'announced rates are kept'); END;
CREATE TRIGGER rate_schedule_is_not_changed BEFORE UPDATE OF id, body, effective_ms, announced_ms ON rate_schedule
BEGIN SELECT RAISE(ABORT, 'announced rates are immutable'); END;

-- Idempotency-Keys of calls that were charged, for a day. digest: HMAC of account and key; body: 63 bits of an HMAC.
CREATE TABLE idempotency_keys (
    digest BLOB PRIMARY KEY CHECK (length(digest) BETWEEN 1 AND 32),
    body INTEGER NOT NULL,
    call_id INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_call ON idempotency_keys (call_id);

PRAGMA user_version = 2;

COMMIT;
