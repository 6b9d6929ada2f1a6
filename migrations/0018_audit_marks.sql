-- The auditor's memory of the ledger: how far each check agreed with each
-- account's journal, so that only what came after is read again.

-- +goose Up

-- One row per check and account. It says what the journal was when the check last
-- agreed with it: a journal that says otherwise later was changed.
CREATE TABLE reconcile_marks (
    part       smallint    NOT NULL,
    check_name text        NOT NULL,
    account    text        NOT NULL,
    version    bigint      NOT NULL, -- of the account, up to which the check agreed; 0: not yet
    chain      bytea       NOT NULL, -- the account's hash at that version
    available  bigint      NOT NULL, -- the sums of the journal up to it
    held       bigint      NOT NULL,
    debt       bigint      NOT NULL,
    remainders jsonb       NOT NULL, -- of its open grants then, by grant
    whole_at   timestamptz NOT NULL, -- when all of it was last read; -infinity: it must be read whole, since it did not agree
    CONSTRAINT reconcile_marks_pkey PRIMARY KEY (part, check_name, account)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON reconcile_marks TO tallystick_service;
