-- Schema 10. What a call was charged for beside tokens and pieces of its own model: tools that its provider ran, and tokens
-- of other models behind them. Each is part of the call's cost.

BEGIN IMMEDIATE;

PRAGMA user_version = 10;

CREATE TABLE call_lines (
    call_id INTEGER NOT NULL,
    line INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (length(kind) BETWEEN 1 AND 48), -- by which name it is priced
    model TEXT CHECK (length(model) <= 256), -- whose tokens they are; NULL: priced by the piece
    pieces INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL, -- of those written
    image_input_tokens INTEGER NOT NULL, -- of the input
    image_output_tokens INTEGER NOT NULL, -- of the output
    cost_nano INTEGER NOT NULL,
    PRIMARY KEY (call_id, line)
) STRICT, WITHOUT ROWID;

COMMIT;
