-- Money that goes back without a refund (disputes, credit notes), payments that
-- fail after all, and the sweep of Stripe's list of events.

-- +goose Up

-- One row per thing that money goes back by: a refund's id, a dispute's or a
-- credit note's. The default is what all rows are so far, and what a process of
-- the version before goes on writing.
ALTER TABLE clawbacks
    ADD COLUMN kind text NOT NULL DEFAULT 'refund',
    ADD CONSTRAINT clawbacks_kind CHECK (kind IN ('refund', 'dispute', 'credit_note'));

-- Disputes of payments that we know, as Stripe last told them. An account is
-- flagged while it has an open one. Keyed like payments: by Stripe's own id.
CREATE TABLE disputes (
    dispute_id text        NOT NULL,
    payment_id text        NOT NULL,
    part       smallint,               -- NULL while the payment is parked
    account    text,
    status     text        NOT NULL,   -- Stripe's word
    money      bigint      NOT NULL,   -- disputed, in minor units of currency
    withdrawn  bigint      NOT NULL,   -- of money, what Stripe has taken at present
    currency   text        NOT NULL,
    opened_at  timestamptz NOT NULL,
    closed_at  timestamptz,            -- NULL while it is open
    updated_at timestamptz NOT NULL,
    CONSTRAINT disputes_pkey PRIMARY KEY (dispute_id),
    CONSTRAINT disputes_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT disputes_account_whole CHECK ((part IS NULL) = (account IS NULL)),
    CONSTRAINT disputes_withdrawn CHECK (withdrawn BETWEEN 0 AND money)
);
CREATE INDEX disputes_open ON disputes (part, account) WHERE closed_at IS NULL;

-- Why a person must look at a payment that was granted: it has failed since.
-- '' when there is nothing to look at.
ALTER TABLE payments ADD COLUMN review text NOT NULL DEFAULT '';
CREATE INDEX payments_parked ON payments (updated_at) WHERE state = 'parked';
CREATE INDEX payments_review ON payments (updated_at) WHERE review <> '';
CREATE INDEX payments_by_time ON payments (created_at, payment_id);

-- How far Stripe's list of events has been swept into the inbox, and who sweeps.
-- swept_to is written only after all that was listed before it is stored.
CREATE TABLE stripe_sweeps (
    sweep       text        NOT NULL,
    swept_to    timestamptz,             -- NULL before the first sweep has ended
    lease_epoch bigint      NOT NULL,    -- rises with every lease: who was overtaken writes nothing
    lease_until timestamptz NOT NULL,
    found       bigint      NOT NULL,    -- events that no delivery had brought, in all
    updated_at  timestamptz NOT NULL,
    CONSTRAINT stripe_sweeps_pkey PRIMARY KEY (sweep)
);

-- What somebody must look at, for lists and for replays of all that failed.
CREATE INDEX stripe_events_failed ON stripe_events (created_at, event_id) WHERE state IN ('failed', 'flagged');

GRANT SELECT, INSERT, UPDATE ON disputes, stripe_sweeps TO tallystick_service;
