-- Schema 14. Whether a job asked for the priority service: only then is it held for and charged at that price. 1 for those of
-- before, which were held at the dearest.

BEGIN IMMEDIATE;

PRAGMA user_version = 14;

ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 1;

COMMIT;
