-- Keys: a second secret while one is being rotated, a limit on requests, and
-- tokens with which an end customer reads its own account.

-- +goose Up

ALTER TABLE api_keys
    ADD COLUMN previous_hash       bytea,       -- SHA-256 of the secret before the last rotation, good
    ADD COLUMN previous_expires_at timestamptz, -- until then; NULL: it ended with the rotation
    ADD COLUMN rotated_at          timestamptz,
    ADD COLUMN rate_per_second     integer,     -- NULL: no limit
    ADD COLUMN rate_burst          integer,
    ADD CONSTRAINT api_keys_previous CHECK ((previous_hash IS NULL) = (previous_expires_at IS NULL)),
    ADD CONSTRAINT api_keys_previous_rotated CHECK (previous_hash IS NULL OR rotated_at IS NOT NULL),
    ADD CONSTRAINT api_keys_previous_hash_length CHECK (length(previous_hash) = 32),
    ADD CONSTRAINT api_keys_rate CHECK ((rate_per_second IS NULL) = (rate_burst IS NULL)),
    ADD CONSTRAINT api_keys_rate_range CHECK (rate_per_second BETWEEN 1 AND 100000 AND rate_burst BETWEEN 1 AND 100000);

-- A token names its part, so that it is found in one shard without its account.
CREATE TABLE account_tokens (
    part        smallint    NOT NULL,
    token_id    text        NOT NULL, -- begins with the part, in two hexadecimal digits
    account     text        NOT NULL,
    name        text        NOT NULL,
    secret_hash bytea       NOT NULL, -- SHA-256 of the whole token; the token itself is shown once
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    CONSTRAINT account_tokens_pkey PRIMARY KEY (part, token_id),
    CONSTRAINT account_tokens_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT account_tokens_name_length CHECK (length(name) <= 200),
    CONSTRAINT account_tokens_life CHECK (expires_at > created_at AND expires_at <= created_at + interval '86400 seconds'),
    CONSTRAINT account_tokens_hash_length CHECK (length(secret_hash) = 32)
);
CREATE INDEX account_tokens_by_account ON account_tokens (part, account, expires_at, token_id);

GRANT SELECT, INSERT, DELETE ON account_tokens TO tallystick_service;
GRANT UPDATE (revoked_at) ON account_tokens TO tallystick_service;
