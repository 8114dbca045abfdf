-- Schema 15. Sandboxes in which providers run tools are objects, too: whose they are is asked when a request names one.

BEGIN IMMEDIATE;

PRAGMA user_version = 15;

CREATE TABLE objects_15 (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN (
        'file', 'response', 'batch', 'video', 'message_batch', 'gemini_batch', 'container')),
    object_id TEXT NOT NULL CHECK (length(object_id) BETWEEN 1 AND 128),
    account_id INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    channel TEXT NOT NULL CHECK (length(channel) BETWEEN 1 AND 64),
    created_ms INTEGER NOT NULL,
    model TEXT CHECK (length(model) <= 256),
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO objects_15 (number, kind, object_id, account_id, key_id, channel, created_ms, model, requests, prompt_tokens,
    output_tokens, bytes)
SELECT number, kind, object_id, account_id, key_id, channel, created_ms, model, requests, prompt_tokens, output_tokens,
    bytes
FROM objects;
DROP TABLE objects;
ALTER TABLE objects_15 RENAME TO objects;
CREATE UNIQUE INDEX objects_by_id ON objects (kind, object_id);
CREATE INDEX objects_by_account ON objects (account_id, kind, number);

COMMIT;
