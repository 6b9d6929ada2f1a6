-- Two meters at one price would overwrite each other's totals: action=set replaces
-- what the other has set for the same item and time.

-- +goose Up

CREATE UNIQUE INDEX meters_price ON meters (stripe_price);
