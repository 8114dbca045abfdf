-- Schema 5. Tokens of pictures in answers, which may be priced apart: of the record's output tokens.

BEGIN IMMEDIATE;

PRAGMA user_version = 5;

ALTER TABLE call_details ADD COLUMN image_output_tokens INTEGER NOT NULL DEFAULT 0;

COMMIT;
