-- Usage records beside meter events, whole numbers, and what settles a delivery
-- whose outcome stayed unknown.

-- +goose Up

-- A meter is bound to a billing meter's event_name, or to a legacy metered price
-- whose subscription items take usage records, or to nothing.
ALTER TABLE meters
    ADD COLUMN stripe_price text,
    ADD COLUMN stripe_whole boolean NOT NULL DEFAULT false, -- only whole numbers are sent; usage records are whole in any case
    DROP CONSTRAINT meters_bound,
    ADD CONSTRAINT meters_bound CHECK ((stripe_event_name IS NULL AND stripe_price IS NULL) = (stripe_bound_at IS NULL)),
    ADD CONSTRAINT meters_bound_once CHECK (stripe_event_name IS NULL OR stripe_price IS NULL),
    ADD CONSTRAINT meters_price_length CHECK (length(stripe_price) BETWEEN 1 AND 255);

-- All of these are fixed by the first send, like event_name and customer.
ALTER TABLE deliveries
    ADD COLUMN backend           text NOT NULL DEFAULT 'meter_event',
    ADD COLUMN price             text NOT NULL DEFAULT '', -- of a usage record
    ADD COLUMN subscription_item text NOT NULL DEFAULT '', -- of a usage record
    ADD COLUMN action            text NOT NULL DEFAULT '', -- of a usage record: set, or increment where Stripe allows nothing else
    ADD COLUMN stamp             timestamptz,              -- the time that the call carries
    -- Of quantity, what is handed to Stripe: millionths for a meter event, whole units for a usage record, where
    -- set carries the sum over the deliveries of the same item and stamp that were neither rejected nor need review.
    -- NULL: never sent, or sent before this column existed, as quantity says.
    ADD COLUMN sent_value        bigint,
    ADD COLUMN sent_at           timestamptz,              -- the last try; first_sent_at is the first
    ADD COLUMN replaced_by       text NOT NULL DEFAULT '', -- identifier of the delivery that took its place, because Stripe never had this one
    ADD CONSTRAINT deliveries_backend CHECK (backend IN ('meter_event', 'usage_record')),
    ADD CONSTRAINT deliveries_action CHECK (action IN ('', 'set', 'increment')),
    ADD CONSTRAINT deliveries_replaced CHECK (replaced_by = '' OR state = 'rejected');
-- Stripe takes one call at a time per customer and meter.
CREATE INDEX deliveries_sending ON deliveries (part, account, meter) WHERE state = 'sending';
-- What Stripe's own totals may settle.
CREATE INDEX deliveries_review ON deliveries (next_try_at) WHERE state = 'needs_review';

-- What was fixed but not sent, because Stripe takes whole units only: the remainder
-- goes with the next delivery. Negative only where a correction found nothing left to
-- lower at its own time.
CREATE TABLE delivery_carries (
    part       smallint    NOT NULL,
    account    text        NOT NULL,
    meter      text        NOT NULL,
    customer   text        NOT NULL,
    remainder  bigint      NOT NULL, -- millionths of a unit
    updated_at timestamptz NOT NULL,
    CONSTRAINT delivery_carries_pkey PRIMARY KEY (part, account, meter, customer),
    CONSTRAINT delivery_carries_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT delivery_carries_remainder CHECK (remainder < 1000000)
);

-- Subscription items as last read from Stripe: where usage records go. One row per
-- item that was ever seen.
CREATE TABLE subscription_items (
    part         smallint    NOT NULL,
    account      text        NOT NULL,
    customer     text        NOT NULL,
    price        text        NOT NULL,
    item         text        NOT NULL,
    subscription text        NOT NULL,
    state        text        NOT NULL, -- active: usage goes there; gone: deleted, swapped or cancelled; unfit: its price does not add usage records up
    limited      boolean     NOT NULL, -- billing thresholds: Stripe refuses action=set
    period_start timestamptz NOT NULL,
    period_end   timestamptz NOT NULL, -- Stripe's period is (start, end]
    created_at   timestamptz NOT NULL, -- at Stripe
    seen_at      timestamptz NOT NULL,
    CONSTRAINT subscription_items_pkey PRIMARY KEY (part, account, customer, price, item),
    CONSTRAINT subscription_items_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT subscription_items_state CHECK (state IN ('active', 'gone', 'unfit'))
);
-- Periods that end soon: their usage goes first.
CREATE INDEX subscription_items_ending ON subscription_items (period_end) WHERE state = 'active';

-- One worker at a time takes deliveries, so that no two take the same customer's.
-- A transaction locks the row for as long as it takes to claim, never while it sends.
CREATE TABLE delivery_turns (
    queue text NOT NULL,
    CONSTRAINT delivery_turns_pkey PRIMARY KEY (queue)
);
INSERT INTO delivery_turns (queue) VALUES ('usage');

GRANT SELECT, INSERT, UPDATE ON delivery_carries, subscription_items TO tallystick_service;
GRANT SELECT, UPDATE ON delivery_turns TO tallystick_service;
