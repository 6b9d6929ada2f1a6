-- Which member of a CloudEvent's data holds the quantity.

-- +goose Up

-- A constant default: the table is not rewritten, and a process of the version
-- before, which knows no such column, goes on writing.
ALTER TABLE meters
    ADD COLUMN value_field text NOT NULL DEFAULT 'quantity',
    ADD CONSTRAINT meters_value_field_length CHECK (octet_length(value_field) BETWEEN 1 AND 64),
    ADD CONSTRAINT meters_value_field CHECK (value_field <> 'dimensions');
