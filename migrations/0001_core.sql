-- The two halves of the product's own records: metering and credits here, what
-- came from Stripe (inbox, payments) and what goes out (deliveries, mails).
--
-- Account-scoped tables carry part, a fixed hash of the account id, first in
-- every key: on one machine a plain column, on Citus the distribution column.
-- Credits and quantities are bigint millionths; money is bigint minor units.

-- +goose Up

-- +goose StatementBegin
DO $$
BEGIN
    -- The role is shared by all databases of a cluster: it may exist already.
    CREATE ROLE tallystick_service NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('GRANT tallystick_service TO %I', current_user);
END
$$;
-- +goose StatementEnd

-- Catalogs ------------------------------------------------------------------

CREATE TABLE meters (
    meter             text        NOT NULL,
    unit              text        NOT NULL,
    aggregation       text        NOT NULL,
    stripe_event_name text,                   -- NULL: not billed at Stripe
    stripe_bound_at   timestamptz,            -- since when; usage recorded before is not Stripe's business
    rate_version      integer     NOT NULL,   -- the version that prices usage recorded now
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    CONSTRAINT meters_pkey PRIMARY KEY (meter),
    CONSTRAINT meters_meter_length CHECK (length(meter) BETWEEN 1 AND 128),
    CONSTRAINT meters_unit_length CHECK (length(unit) <= 64),
    CONSTRAINT meters_aggregation CHECK (aggregation IN ('sum', 'count', 'max', 'last')),
    CONSTRAINT meters_bound CHECK ((stripe_event_name IS NULL) = (stripe_bound_at IS NULL)),
    CONSTRAINT meters_event_name_length CHECK (length(stripe_event_name) BETWEEN 1 AND 100)
);

CREATE TABLE meter_rates (
    meter            text        NOT NULL,
    version          integer     NOT NULL,
    credits_per_unit bigint      NOT NULL,
    rates            jsonb       NOT NULL, -- [{"match": {dimension: value}, "credits_per_unit": decimal text}], first match wins
    created_at       timestamptz NOT NULL,
    CONSTRAINT meter_rates_pkey PRIMARY KEY (meter, version),
    CONSTRAINT meter_rates_meter FOREIGN KEY (meter) REFERENCES meters (meter),
    CONSTRAINT meter_rates_not_negative CHECK (credits_per_unit >= 0)
);

CREATE TABLE api_keys (
    key_id      text        NOT NULL,
    name        text        NOT NULL,
    scopes      text[]      NOT NULL,
    secret_hash bytea       NOT NULL, -- SHA-256 of the whole key; the key itself is shown once
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz,
    revoked_at  timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT api_keys_name_length CHECK (length(name) <= 200),
    CONSTRAINT api_keys_scopes CHECK (scopes <@ ARRAY['usage', 'read', 'admin'] AND cardinality(scopes) > 0),
    CONSTRAINT api_keys_hash_length CHECK (length(secret_hash) = 32)
);

-- Accounts and their ledger ---------------------------------------------------

CREATE TABLE accounts (
    part        smallint    NOT NULL,
    account     text        NOT NULL,
    name        text        NOT NULL,
    overdraft   bigint      NOT NULL,
    low_balance bigint,
    metadata    jsonb       NOT NULL,
    available   bigint      NOT NULL, -- projection of transfers, as are the next four
    held        bigint      NOT NULL,
    debt        bigint      NOT NULL,
    version     bigint      NOT NULL, -- rises by one per transfer
    chain       bytea       NOT NULL, -- hash of the last transfer; empty before the first
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    CONSTRAINT accounts_pkey PRIMARY KEY (part, account),
    CONSTRAINT accounts_part CHECK (part BETWEEN 0 AND 255),
    CONSTRAINT accounts_account_length CHECK (length(account) BETWEEN 1 AND 128),
    CONSTRAINT accounts_name_length CHECK (length(name) <= 500),
    CONSTRAINT accounts_overdraft_not_negative CHECK (overdraft >= 0),
    CONSTRAINT accounts_available CHECK (available >= -overdraft),
    CONSTRAINT accounts_held_not_negative CHECK (held >= 0),
    CONSTRAINT accounts_debt_not_negative CHECK (debt >= 0),
    CONSTRAINT accounts_version_not_negative CHECK (version >= 0)
);

-- One Stripe customer belongs to one account; an account may have several, and
-- its usage goes to the one with the lowest position.
CREATE TABLE stripe_customers (
    customer text     NOT NULL,
    part     smallint NOT NULL,
    account  text     NOT NULL,
    position integer  NOT NULL,
    CONSTRAINT stripe_customers_pkey PRIMARY KEY (customer),
    CONSTRAINT stripe_customers_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT stripe_customers_length CHECK (length(customer) BETWEEN 1 AND 255)
);
CREATE INDEX stripe_customers_by_account ON stripe_customers (part, account, position);

-- Journal: insert only. A transfer moves amount from one book to another, so
-- every transfer sums to zero by construction. The account's own books are
-- available, held and debt (debt's balance is minus what is owed); the others
-- stand for the world outside.
CREATE TABLE transfers (
    part            smallint    NOT NULL,
    account         text        NOT NULL,
    version         bigint      NOT NULL,
    kind            text        NOT NULL,
    amount          bigint      NOT NULL,
    source          text        NOT NULL,
    target          text        NOT NULL,
    cause           text        NOT NULL, -- id of the usage, grant, refund, adjustment … behind it
    grant_ids       text[]      NOT NULL, -- grants that the amount came out of or went into,
    grant_amounts   bigint[]    NOT NULL, -- and the change of each one's remainder
    available_after bigint      NOT NULL,
    held_after      bigint      NOT NULL,
    debt_after      bigint      NOT NULL,
    actor           text        NOT NULL, -- "key:…", "stripe:…", "system:…", "operator:…"
    note            text        NOT NULL,
    posted_at       timestamptz NOT NULL,
    hash            bytea       NOT NULL, -- SHA-256 of the previous hash and this row
    CONSTRAINT transfers_pkey PRIMARY KEY (part, account, version),
    CONSTRAINT transfers_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT transfers_kind CHECK (kind IN ('purchase', 'grant', 'usage', 'hold', 'unhold', 'capture', 'refund', 'refund_failed',
        'dispute', 'dispute_won', 'expiry', 'adjustment', 'debt_repaid')),
    CONSTRAINT transfers_amount_not_negative CHECK (amount >= 0),
    CONSTRAINT transfers_books CHECK (source <> target
        AND source IN ('available', 'held', 'debt', 'purchases', 'grants', 'usage', 'refunds', 'disputes', 'expired', 'adjustments')
        AND target IN ('available', 'held', 'debt', 'purchases', 'grants', 'usage', 'refunds', 'disputes', 'expired', 'adjustments')),
    CONSTRAINT transfers_grants_paired CHECK (cardinality(grant_ids) = cardinality(grant_amounts)),
    CONSTRAINT transfers_note_length CHECK (length(note) <= 1000),
    CONSTRAINT transfers_hash_length CHECK (length(hash) = 32)
);

-- Insert only, except for remaining, which is a projection of transfers.
CREATE TABLE grants (
    part             smallint    NOT NULL,
    account          text        NOT NULL,
    grant_id         text        NOT NULL,
    kind             text        NOT NULL,
    credits          bigint      NOT NULL,
    remaining        bigint      NOT NULL,
    priority         integer     NOT NULL, -- lower is spent first
    expires_at       timestamptz,
    reason           text        NOT NULL,
    payment          text,                 -- Stripe's payment object, for a purchase
    fingerprint      bytea       NOT NULL, -- SHA-256 of the request's content
    transfer_version bigint      NOT NULL, -- its transfer in the journal
    created_at       timestamptz NOT NULL,
    CONSTRAINT grants_pkey PRIMARY KEY (part, account, grant_id),
    CONSTRAINT grants_transfer FOREIGN KEY (part, account, transfer_version) REFERENCES transfers (part, account, version),
    CONSTRAINT grants_kind CHECK (kind IN ('purchase', 'grant')),
    CONSTRAINT grants_credits_positive CHECK (credits > 0),
    CONSTRAINT grants_remaining CHECK (remaining BETWEEN 0 AND credits),
    CONSTRAINT grants_purchase_has_payment CHECK ((kind = 'purchase') = (payment IS NOT NULL)),
    CONSTRAINT grants_reason_length CHECK (length(reason) <= 1000),
    CONSTRAINT grants_fingerprint_length CHECK (length(fingerprint) = 32)
);
-- The order of spending: priority, expiry (never last), age.
CREATE INDEX grants_open ON grants (part, account, priority, expires_at, created_at, grant_id) WHERE remaining > 0;
CREATE INDEX grants_expiring ON grants (expires_at) WHERE remaining > 0;

-- Journal: corrections of a balance by a person, insert only.
CREATE TABLE adjustments (
    part             smallint    NOT NULL,
    account          text        NOT NULL,
    adjustment_id    text        NOT NULL,
    credits          bigint      NOT NULL, -- signed
    reason           text        NOT NULL,
    fingerprint      bytea       NOT NULL,
    transfer_version bigint      NOT NULL, -- its transfer in the journal
    created_at       timestamptz NOT NULL,
    CONSTRAINT adjustments_pkey PRIMARY KEY (part, account, adjustment_id),
    CONSTRAINT adjustments_transfer FOREIGN KEY (part, account, transfer_version) REFERENCES transfers (part, account, version),
    CONSTRAINT adjustments_not_zero CHECK (credits <> 0),
    CONSTRAINT adjustments_fingerprint_length CHECK (length(fingerprint) = 32)
);

-- Journal: insert only, never expires. Its key is the guard of every charge.
CREATE TABLE usage (
    part             smallint    NOT NULL,
    account          text        NOT NULL,
    usage_id         text        NOT NULL,
    meter            text        NOT NULL,
    quantity         bigint      NOT NULL,
    credits          bigint      NOT NULL, -- charged
    rate_version     integer     NOT NULL,
    staged           bigint      NOT NULL, -- quantity staged for Stripe with it; 0 when the meter was not bound
    dimensions       jsonb       NOT NULL,
    occurred_at      timestamptz NOT NULL,
    recorded_at      timestamptz NOT NULL,
    fingerprint      bytea       NOT NULL,
    transfer_version bigint      NOT NULL,
    available_after  bigint      NOT NULL, -- the balance in the first answer, which a replay repeats
    held_after       bigint      NOT NULL,
    debt_after       bigint      NOT NULL,
    CONSTRAINT usage_pkey PRIMARY KEY (part, account, usage_id),
    CONSTRAINT usage_transfer FOREIGN KEY (part, account, transfer_version) REFERENCES transfers (part, account, version),
    CONSTRAINT usage_rate FOREIGN KEY (meter, rate_version) REFERENCES meter_rates (meter, version),
    CONSTRAINT usage_id_length CHECK (length(usage_id) BETWEEN 8 AND 128),
    CONSTRAINT usage_quantity_positive CHECK (quantity > 0),
    CONSTRAINT usage_credits_not_negative CHECK (credits >= 0),
    CONSTRAINT usage_staged_not_negative CHECK (staged >= 0),
    CONSTRAINT usage_fingerprint_length CHECK (length(fingerprint) = 32)
);
CREATE INDEX usage_by_account ON usage (part, account, occurred_at);
CREATE INDEX usage_by_time ON usage USING brin (occurred_at); -- whole windows, for the auditor: usage arrives nearly in order

-- Stripe in -------------------------------------------------------------------

-- The inbox: events as received, kept for good. event_id is the guard against
-- handling one message twice; payments is the guard on the thing itself.
CREATE TABLE stripe_events (
    event_id    text        NOT NULL,
    type        text        NOT NULL,
    api_version text        NOT NULL,
    livemode    boolean     NOT NULL,
    created_at  timestamptz NOT NULL, -- Stripe's own time of the event
    payload     bytea       NOT NULL, -- the raw body
    source      text        NOT NULL,
    received_at timestamptz NOT NULL,
    state       text        NOT NULL,
    attempts    integer     NOT NULL,
    next_try_at timestamptz NOT NULL, -- also the end of a worker's lease
    error       text        NOT NULL,
    done_at     timestamptz,
    CONSTRAINT stripe_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT stripe_events_payload_length CHECK (length(payload) <= 262144),
    CONSTRAINT stripe_events_source CHECK (source IN ('webhook', 'sweep', 'replay')),
    -- ignored: a type that changes nothing here; flagged: kept, but refused (mode, version); failed: gave up, visible
    CONSTRAINT stripe_events_state CHECK (state IN ('pending', 'done', 'ignored', 'flagged', 'failed'))
);
CREATE INDEX stripe_events_due ON stripe_events (next_try_at) WHERE state = 'pending';
CREATE INDEX stripe_events_by_time ON stripe_events (created_at, event_id);

-- One row per payment in Stripe that buys credits, or that nobody could map.
CREATE TABLE payments (
    payment_id text        NOT NULL, -- the PaymentIntent, or the session when there is none
    session_id text        NOT NULL, -- '' when it came without a checkout session
    customer   text        NOT NULL, -- '' when unknown
    part       smallint,
    account    text,
    grant_id   text,
    credits    bigint      NOT NULL,
    money      bigint      NOT NULL, -- minor units of currency
    currency   text        NOT NULL,
    livemode   boolean     NOT NULL,
    state      text        NOT NULL,
    reason     text        NOT NULL, -- why it is parked
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT payments_pkey PRIMARY KEY (payment_id),
    CONSTRAINT payments_state CHECK (state IN ('granted', 'parked')),
    CONSTRAINT payments_granted CHECK ((state = 'granted') = (part IS NOT NULL AND account IS NOT NULL AND grant_id IS NOT NULL AND credits > 0)),
    CONSTRAINT payments_grant FOREIGN KEY (part, account, grant_id) REFERENCES grants (part, account, grant_id)
);

-- Credits taken back because money went back; one row per refund.
CREATE TABLE clawbacks (
    part       smallint    NOT NULL,
    account    text        NOT NULL,
    refund_id  text        NOT NULL,
    payment_id text        NOT NULL,
    grant_id   text        NOT NULL,
    money      bigint      NOT NULL,
    credits    bigint      NOT NULL, -- taken back for this refund at present; 0 after it failed
    state      text        NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT clawbacks_pkey PRIMARY KEY (part, account, refund_id),
    CONSTRAINT clawbacks_grant FOREIGN KEY (part, account, grant_id) REFERENCES grants (part, account, grant_id),
    CONSTRAINT clawbacks_not_negative CHECK (money >= 0 AND credits >= 0),
    CONSTRAINT clawbacks_state CHECK (state IN ('taken', 'returned'))
);
CREATE INDEX clawbacks_by_grant ON clawbacks (part, account, grant_id);

-- Out ---------------------------------------------------------------------------

-- Usage for Stripe, summed per account, meter and bucket. Late usage opens the
-- next sequence of its bucket.
CREATE TABLE deliveries (
    part          smallint    NOT NULL,
    account       text        NOT NULL,
    meter         text        NOT NULL,
    bucket        timestamptz NOT NULL,
    sequence      integer     NOT NULL,
    quantity      bigint      NOT NULL,
    usages        bigint      NOT NULL, -- how many usages are summed in quantity
    origin        text        NOT NULL, -- repair: sent once more because Stripe lacks it
    state         text        NOT NULL,
    event_name    text        NOT NULL, -- '' until first sent: then fixed, like the next
    customer      text        NOT NULL,
    identifier    text        NOT NULL, -- made of account, meter, bucket and sequence; Stripe knows the delivery by it
    attempts      integer     NOT NULL,
    next_try_at   timestamptz NOT NULL, -- while pending: when the bucket closes; while sending: the end of the lease
    first_sent_at timestamptz,
    delivered_at  timestamptz,
    error         text        NOT NULL,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL,
    CONSTRAINT deliveries_pkey PRIMARY KEY (part, account, meter, bucket, sequence),
    CONSTRAINT deliveries_account FOREIGN KEY (part, account) REFERENCES accounts (part, account),
    CONSTRAINT deliveries_origin CHECK (origin IN ('usage', 'repair')),
    CONSTRAINT deliveries_state CHECK (state IN ('pending', 'sending', 'delivered', 'ambiguous', 'rejected', 'needs_review'))
) WITH (fillfactor = 70); -- an open bucket's row is updated in place
CREATE INDEX deliveries_due ON deliveries (next_try_at) WHERE state IN ('pending', 'sending', 'ambiguous');
CREATE INDEX deliveries_by_bucket ON deliveries (bucket, identifier);
CREATE UNIQUE INDEX deliveries_identifier ON deliveries (part, identifier);

CREATE TABLE mails (
    mail_id      text        NOT NULL, -- names the cause, so that one cause is mailed once
    message_id   text        NOT NULL,
    recipients   text[]      NOT NULL,
    subject      text        NOT NULL,
    text_body    text        NOT NULL,
    html_body    text        NOT NULL,
    attachments  jsonb       NOT NULL, -- [{"name", "content_type", "content" (base64)}]
    in_reply_to  text        NOT NULL,
    state        text        NOT NULL,
    attempts     integer     NOT NULL,
    next_try_at  timestamptz NOT NULL,
    delivered_at timestamptz,
    error        text        NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    CONSTRAINT mails_pkey PRIMARY KEY (mail_id),
    CONSTRAINT mails_state CHECK (state IN ('pending', 'sending', 'delivered', 'ambiguous', 'rejected'))
);
CREATE INDEX mails_due ON mails (next_try_at) WHERE state IN ('pending', 'sending', 'ambiguous');

-- Privileges: journals are insert only for the service, by right, not by habit. --

GRANT SELECT, INSERT ON transfers, usage, adjustments, meter_rates TO tallystick_service;
GRANT SELECT, INSERT ON grants TO tallystick_service;
GRANT UPDATE (remaining) ON grants TO tallystick_service;
GRANT SELECT, INSERT, UPDATE ON meters, api_keys, accounts, payments, clawbacks, deliveries, mails TO tallystick_service;
GRANT SELECT, INSERT ON stripe_events TO tallystick_service;
GRANT UPDATE (state, attempts, next_try_at, error, done_at) ON stripe_events TO tallystick_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON stripe_customers TO tallystick_service;
