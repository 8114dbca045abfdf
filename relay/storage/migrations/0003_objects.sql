-- Schema 3. What lives at providers and belongs to an account: files, stored responses, batches, videos; and jobs, whose
-- charge outlives the call that began them.

BEGIN IMMEDIATE;

PRAGMA user_version = 3;

-- Ids are the providers' own. The last four columns are of files that batches may be made of: what their lines ask for.
CREATE TABLE objects (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('file', 'response', 'batch', 'video', 'message_batch', 'gemini_batch')),
    object_id TEXT NOT NULL CHECK (length(object_id) BETWEEN 1 AND 128),
    account_id INTEGER NOT NULL,
    key_id INTEGER NOT NULL,
    channel TEXT NOT NULL CHECK (length(channel) BETWEEN 1 AND 64),
    created_ms INTEGER NOT NULL,
    model TEXT CHECK (length(model) <= 256),
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX objects_by_id ON objects (kind, object_id);
CREATE INDEX objects_by_account ON objects (account_id, kind, number);

-- The id is that of the call record that a job's ending writes, in the same transaction in which the job ends: once.
-- object_id is NULL until the provider has answered with it.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('response', 'batch', 'video', 'message_batch', 'gemini_batch')),
    object_id TEXT CHECK (length(object_id) BETWEEN 1 AND 128),
    account_id INTEGER NOT NULL,
    organisation_id INTEGER NOT NULL, -- 0: none
    key_id INTEGER NOT NULL,
    channel TEXT NOT NULL CHECK (length(channel) BETWEEN 1 AND 64),
    path TEXT NOT NULL CHECK (length(path) BETWEEN 1 AND 128),
    model TEXT NOT NULL CHECK (length(model) BETWEEN 1 AND 256),
    upstream_model TEXT NOT NULL CHECK (length(upstream_model) BETWEEN 1 AND 256),
    rate_card TEXT NOT NULL CHECK (length(rate_card) BETWEEN 1 AND 64),
    hold_nano INTEGER NOT NULL CHECK (hold_nano >= 0),
    max_cost_nano INTEGER NOT NULL, -- -1: none
    units INTEGER NOT NULL, -- seconds of a video
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'ended'))
) STRICT;
CREATE INDEX jobs_open ON jobs (id) WHERE state = 'open';

COMMIT;
