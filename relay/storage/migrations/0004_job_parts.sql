-- Schema 4. Jobs that several models work on: what each is charged for.

BEGIN IMMEDIATE;

PRAGMA user_version = 4;

-- The models of a job beside its own, while it is open. Each is charged in a record of its own, with this id, when the job
-- ends. Which requests are its: for each eight bytes of an HMAC of the name that its maker gave it.
CREATE TABLE job_parts (
    job_id INTEGER NOT NULL,
    record_id INTEGER NOT NULL,
    model TEXT NOT NULL CHECK (length(model) BETWEEN 1 AND 256),
    upstream_model TEXT NOT NULL CHECK (length(upstream_model) BETWEEN 1 AND 256),
    requests BLOB NOT NULL CHECK (length(requests) <= 800000),
    PRIMARY KEY (job_id, record_id)
) STRICT, WITHOUT ROWID;

COMMIT;
