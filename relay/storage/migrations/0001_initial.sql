-- Schema 1. Amounts are nano-credits, times unix milliseconds, days UTC day indices; 0 stands for "no time".
-- STRICT everywhere: a value of a wrong type is refused and not stored as something else.
-- Every TEXT and BLOB column has a largest length and a meaning in tests/storage/test_schema.py.

BEGIN IMMEDIATE;

PRAGMA application_id = 1380273241; -- "RELY": the file is a relay's
PRAGMA user_version = 1;

-- One row. batch counts the writer's commits, so that a reader can tell what its snapshot holds.
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    store_id BLOB NOT NULL CHECK (length(store_id) = 16),
    batch INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
INSERT INTO store VALUES (1, randomblob(16), 0, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER));

CREATE TABLE organisations (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    limits TEXT NOT NULL CHECK (length(limits) <= 20000),
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    email TEXT NOT NULL UNIQUE CHECK (length(email) BETWEEN 1 AND 320),
    organisation_id INTEGER NOT NULL, -- 0: none
    plan TEXT NOT NULL CHECK (length(plan) BETWEEN 1 AND 64),
    status TEXT NOT NULL CHECK (status IN ('active', 'frozen', 'banned', 'closed')),
    limits TEXT NOT NULL CHECK (length(limits) <= 20000),
    created_ms INTEGER NOT NULL,
    closed_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX accounts_by_organisation ON accounts (organisation_id) WHERE organisation_id != 0;

CREATE TABLE keys (
    id INTEGER PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL CHECK (length(name) <= 200),
    description TEXT NOT NULL CHECK (length(description) <= 2000),
    status TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'revoked')),
    scopes TEXT CHECK (length(scopes) <= 20000), -- JSON list of names; NULL: all
    models TEXT CHECK (length(models) <= 20000),
    networks TEXT CHECK (length(networks) <= 20000),
    limits TEXT NOT NULL CHECK (length(limits) <= 20000),
    expires_ms INTEGER NOT NULL,
    on_disconnect TEXT CHECK (on_disconnect IN ('cancel', 'drain')),
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER NOT NULL,
    last_used_day INTEGER NOT NULL
) STRICT;
CREATE INDEX keys_by_account ON keys (account_id);

-- The secrets of a key: several while they rotate. WITHOUT ROWID: a look-up by public id is one descent of one tree.
CREATE TABLE credentials (
    public_id TEXT PRIMARY KEY CHECK (length(public_id) BETWEEN 1 AND 32),
    key_id INTEGER NOT NULL REFERENCES keys (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    last4 TEXT NOT NULL CHECK (length(last4) <= 4),
    pepper_version INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX credentials_by_key ON credentials (key_id);

-- The ledger. Entries are only ever added: a correction is a new entry.
-- Balance of an account = sum of its entries - sum of the cost of its calls (rollups) = sum of what remains of its lots.
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    account_id INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN (
        'purchased', 'subscription', 'trial', 'adjustment', 'refund', 'expiry', 'forfeit', 'write_off'
    )),
    amount_nano INTEGER NOT NULL CHECK (amount_nano != 0),
    call_id INTEGER NOT NULL, -- 0 but for write-offs
    reason TEXT NOT NULL CHECK (length(reason) <= 1000),
    idempotency_key TEXT CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    time_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_by_account ON entries (account_id);
CREATE UNIQUE INDEX entries_by_idempotency_key ON entries (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TRIGGER entries_are_not_changed BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
CREATE TRIGGER entries_are_not_deleted BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
-- REPLACE deletes without the trigger above.
CREATE TRIGGER entries_are_not_replaced BEFORE INSERT ON entries
WHEN EXISTS (SELECT 1 FROM entries WHERE id = NEW.id OR idempotency_key = NEW.idempotency_key)
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;

-- Credit by origin. is_open is only cleared when nothing remains.
CREATE TABLE lots (
    id INTEGER PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id),
    kind TEXT NOT NULL CHECK (kind IN ('purchased', 'subscription', 'trial', 'adjustment')),
    granted_nano INTEGER NOT NULL CHECK (granted_nano > 0),
    is_open INTEGER NOT NULL CHECK (is_open IN (0, 1)),
    expires_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX lots_open ON lots (account_id) WHERE is_open = 1;
CREATE INDEX lots_by_account ON lots (account_id);
CREATE INDEX lots_by_expiry ON lots (expires_ms) WHERE is_open = 1 AND expires_ms > 0;
CREATE TRIGGER lots_are_not_deleted BEFORE DELETE ON lots
BEGIN SELECT RAISE(ABORT, 'lots are kept'); END;

-- What calls used of a lot and what is left of it. Apart from `lots`, because this is rewritten with every settlement:
-- narrow rows, no index, no trigger, no foreign key, so that REPLACE is one descent of the tree (0.35 us a row).
CREATE TABLE lot_use (
    lot_id INTEGER PRIMARY KEY,
    used_nano INTEGER NOT NULL CHECK (used_nano >= 0),
    remaining_nano INTEGER NOT NULL CHECK (remaining_nano >= 0)
) STRICT;

-- Which lots an entry gave to or took from (write-offs touch none). What calls used is in lot_use.
CREATE TABLE entry_lots (
    entry_id INTEGER NOT NULL REFERENCES entries (id),
    lot_id INTEGER NOT NULL REFERENCES lots (id),
    amount_nano INTEGER NOT NULL CHECK (amount_nano != 0),
    PRIMARY KEY (entry_id, lot_id)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER entry_lots_are_not_changed BEFORE UPDATE ON entry_lots
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
CREATE TRIGGER entry_lots_are_not_deleted BEFORE DELETE ON entry_lots
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;
CREATE TRIGGER entry_lots_are_not_replaced BEFORE INSERT ON entry_lots
WHEN EXISTS (SELECT 1 FROM entry_lots WHERE entry_id = NEW.entry_id AND lot_id = NEW.lot_id)
BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END;

CREATE TABLE rate_cards (
    id TEXT PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    body TEXT NOT NULL CHECK (length(body) <= 1000000),
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER rate_cards_are_not_changed BEFORE UPDATE ON rate_cards
BEGIN SELECT RAISE(ABORT, 'rate cards are immutable'); END;
CREATE TRIGGER rate_cards_are_not_deleted BEFORE DELETE ON rate_cards
BEGIN SELECT RAISE(ABORT, 'rate cards are immutable'); END;
CREATE TRIGGER rate_cards_are_not_replaced BEFORE INSERT ON rate_cards
WHEN EXISTS (SELECT 1 FROM rate_cards WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'rate cards are immutable'); END;

-- What many calls have in common, stored once: names of the route table, the catalogue and the configuration, and closed
-- sets. It halves the size of a call (82 instead of 179 bytes) and of its insertion (1.5 instead of 2.8 us).
CREATE TABLE shapes (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL CHECK (length(path) <= 128),
    model TEXT CHECK (length(model) <= 256),
    upstream_model TEXT CHECK (length(upstream_model) <= 256),
    channel TEXT CHECK (length(channel) <= 64),
    attempts INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    status INTEGER NOT NULL,
    error_code TEXT CHECK (length(error_code) <= 40),
    usage_source TEXT NOT NULL CHECK (length(usage_source) <= 10),
    rate_card TEXT CHECK (length(rate_card) <= 64)
) STRICT;

-- One row per call. The id is ordered by time: new rows go to the right edge of the tree. No second index: it would cost
-- more than the row.
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    account_id INTEGER,
    organisation_id INTEGER,
    key_id INTEGER,
    shape_id INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    images INTEGER NOT NULL,
    video_seconds INTEGER NOT NULL,
    web_searches INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL CHECK (cost_nano BETWEEN 0 AND 10000000000000000),
    latency_us INTEGER NOT NULL,
    first_byte_us INTEGER,
    source_ip TEXT CHECK (length(source_ip) <= 45),
    user_agent TEXT CHECK (length(user_agent) <= 256)
) STRICT;

-- Calls with the columns and in the order of records.CALL_COLUMNS.
CREATE VIEW call_records AS
SELECT
    calls.id, account_id, organisation_id, key_id, path, model, upstream_model, channel, attempts, stream, status,
    error_code, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, images, video_seconds, web_searches,
    usage_source, cost_nano, rate_card, latency_us, first_byte_us, source_ip, user_agent
FROM calls CROSS JOIN shapes ON shapes.id = calls.shape_id;

-- Sums over calls, kept for ever. key_id 0, model '': unknown. failed: calls with an error code.
CREATE TABLE rollups (
    account_id INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    day INTEGER NOT NULL,
    model TEXT NOT NULL CHECK (length(model) <= 256),
    calls INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    images INTEGER NOT NULL,
    video_seconds INTEGER NOT NULL,
    web_searches INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    PRIMARY KEY (account_id, key_id, day, model)
) STRICT, WITHOUT ROWID;

-- The same sums over the calls that retention deleted: rollups = remaining calls + folded.
CREATE TABLE folded (
    account_id INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    day INTEGER NOT NULL,
    model TEXT NOT NULL CHECK (length(model) <= 256),
    calls INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    images INTEGER NOT NULL,
    video_seconds INTEGER NOT NULL,
    web_searches INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    PRIMARY KEY (account_id, key_id, day, model)
) STRICT, WITHOUT ROWID;

-- Cost per account and day, for caps: an account with a million keys must not be summed over all of them.
CREATE TABLE spend (
    account_id INTEGER NOT NULL,
    day INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    PRIMARY KEY (account_id, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    time_ms INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (length(kind) <= 40),
    code TEXT CHECK (length(code) <= 40),
    account_id INTEGER,
    key_id INTEGER,
    scope TEXT CHECK (length(scope) <= 64),
    channel TEXT CHECK (length(channel) <= 64),
    source_ip TEXT CHECK (length(source_ip) <= 45),
    count INTEGER NOT NULL,
    detail TEXT CHECK (length(detail) <= 500)
) STRICT;

COMMIT;
