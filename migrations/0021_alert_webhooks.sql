-- Alerts that are posted as signed webhooks, until they are taken.

-- +goose Up

CREATE TABLE alert_webhooks (
    webhook_id   text        NOT NULL, -- also its webhook-id: sent twice, a receiver drops the second
    body         text        NOT NULL, -- the signed bytes
    state        text        NOT NULL,
    attempts     integer     NOT NULL,
    next_try_at  timestamptz NOT NULL,
    error        text        NOT NULL,
    created_at   timestamptz NOT NULL,
    delivered_at timestamptz,
    CONSTRAINT alert_webhooks_pkey PRIMARY KEY (webhook_id),
    CONSTRAINT alert_webhooks_state CHECK (state IN ('pending', 'sending', 'delivered', 'failed'))
);
CREATE INDEX alert_webhooks_due ON alert_webhooks (next_try_at) WHERE state IN ('pending', 'sending');

GRANT SELECT, INSERT, UPDATE ON alert_webhooks TO tallystick_service;
