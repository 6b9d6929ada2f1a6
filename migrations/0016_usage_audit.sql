-- What the auditor keeps of usage, so that a run costs what has changed and not
-- what there is: its own sums by the hour, and what of them Stripe agreed with.

-- +goose Up

SET LOCAL statement_timeout = 0;

-- Sums by UTC hour of occurred_at, of usage that was recorded since its meter was
-- bound and was not voided. Made of usage and usage_hours by the auditor's own
-- statements; never read by those who charge or send.
CREATE TABLE reconcile_hours (
    part     smallint    NOT NULL,
    account  text        NOT NULL,
    meter    text        NOT NULL,
    hour     timestamptz NOT NULL,
    quantity bigint      NOT NULL, -- millionths
    CONSTRAINT reconcile_hours_pkey PRIMARY KEY (part, account, meter, hour)
);

-- One row per account that Stripe can bill and bound meter. What lies outside of
-- [open_from, open_to) was read at Stripe and agreed.
CREATE TABLE reconcile_pairs (
    part        smallint    NOT NULL,
    account     text        NOT NULL,
    meter       text        NOT NULL,
    bound_at    timestamptz NOT NULL, -- of the meter, as its hours were counted
    open_from   timestamptz,          -- NULL: all that is known agrees
    open_to     timestamptz,
    weight      bigint      NOT NULL, -- millionths that have changed since: the heaviest is read first
    compared_at timestamptz,          -- the last time that anything was read at Stripe
    read_at     timestamptz,          -- the last time that everything was
    agreed_at   timestamptz,          -- the last time that nothing was left open
    CONSTRAINT reconcile_pairs_pkey PRIMARY KEY (part, account, meter),
    CONSTRAINT reconcile_pairs_open CHECK ((open_from IS NULL) = (open_to IS NULL) AND open_from < open_to)
);
CREATE INDEX reconcile_pairs_waiting ON reconcile_pairs (weight) WHERE open_from IS NOT NULL;
CREATE INDEX reconcile_pairs_by_reading ON reconcile_pairs (read_at NULLS FIRST);

-- What was recorded or voided since the last run: both tables grow in this order.
CREATE INDEX usage_by_recording ON usage USING brin (recorded_at) WITH (autosummarize = on);
CREATE INDEX usage_voids_by_time ON usage_voids USING brin (voided_at) WITH (autosummarize = on);

GRANT SELECT, INSERT, UPDATE ON reconcile_hours, reconcile_pairs TO tallystick_service;

-- What Stripe has refused and nobody has mended; the rest of what is not delivered is in deliveries_due and deliveries_review.
CREATE INDEX deliveries_rejected ON deliveries (bucket) WHERE state = 'rejected' AND replaced_by = '';
