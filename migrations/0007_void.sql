-- Usage taken back.

-- +goose Up

ALTER TABLE transfers
    DROP CONSTRAINT transfers_kind,
    ADD CONSTRAINT transfers_kind CHECK (kind IN ('purchase', 'grant', 'usage', 'hold', 'unhold', 'capture', 'void', 'refund', 'refund_failed',
        'dispute', 'dispute_won', 'expiry', 'adjustment', 'debt_repaid'));

-- Journal: insert only. Its key is the guard: a usage is voided once.
CREATE TABLE usage_voids (
    part             smallint    NOT NULL,
    account          text        NOT NULL,
    usage_id         text        NOT NULL,
    reason           text        NOT NULL,
    returned         bigint      NOT NULL, -- of the credits that the usage was charged, what came back,
    expired          bigint      NOT NULL, -- and what came out of grants that were due by then
    staged           bigint      NOT NULL, -- of the quantity staged for Stripe with the usage, what was taken back
    stripe           text        NOT NULL, -- how
    delivery         text        NOT NULL, -- identifier of the delivery that was lowered or that corrects; '' for none
    fingerprint      bytea       NOT NULL,
    transfer_version bigint      NOT NULL, -- its transfer in the journal
    balance_version  bigint      NOT NULL, -- of the balance in the first answer, which a replay repeats: where debt was paid, one more
    available_after  bigint      NOT NULL,
    held_after       bigint      NOT NULL,
    debt_after       bigint      NOT NULL,
    actor            text        NOT NULL,
    voided_at        timestamptz NOT NULL,
    CONSTRAINT usage_voids_pkey PRIMARY KEY (part, account, usage_id),
    CONSTRAINT usage_voids_transfer FOREIGN KEY (part, account, transfer_version) REFERENCES transfers (part, account, version),
    CONSTRAINT usage_voids_reason_length CHECK (length(reason) BETWEEN 1 AND 1000),
    CONSTRAINT usage_voids_not_negative CHECK (returned >= 0 AND expired >= 0 AND staged >= 0),
    CONSTRAINT usage_voids_stripe CHECK (stripe IN ('not_billed', 'withdrawn', 'corrected', 'too_late', 'no_delivery')),
    CONSTRAINT usage_voids_staged CHECK (staged = 0 OR stripe IN ('withdrawn', 'corrected')),
    CONSTRAINT usage_voids_delivery CHECK ((delivery <> '') = (stripe IN ('withdrawn', 'corrected'))),
    CONSTRAINT usage_voids_fingerprint_length CHECK (length(fingerprint) = 32)
);

GRANT SELECT, INSERT ON usage_voids TO tallystick_service;
