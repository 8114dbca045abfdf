-- Schema 12. Sound and pictures among what was read from a cache, which may be priced apart: of the record's cache reads.

BEGIN IMMEDIATE;

PRAGMA user_version = 12;

ALTER TABLE call_details ADD COLUMN audio_cache_read_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE call_details ADD COLUMN image_cache_read_tokens INTEGER NOT NULL DEFAULT 0;

COMMIT;
