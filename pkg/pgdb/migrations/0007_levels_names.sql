-- The levels of export that a grant allows, and what groups are called. See docs/access.md.

-- +goose Up

-- Programs of the previous release do not read the columns. What they load keeps the name of the version before.
-- +goose StatementBegin
DO $$
BEGIN
    SET LOCAL lock_timeout = '10s';
    ALTER TABLE directory_grant ADD COLUMN levels text[] COLLATE "C" -- null: the group level alone
        CHECK (cardinality(levels) > 0 AND levels <@ ARRAY['group', 'patient', 'system']);
    ALTER TABLE directory_group
        ADD COLUMN name        text,
        ADD COLUMN identifiers jsonb,  -- a list of {"system", "value"}
        ADD COLUMN quantity    bigint; -- Group.quantity of the loaded Group; null if it is missing or was not kept up to date
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the groups or grants are in use by a load or a plan; migrate again';
END $$;
-- +goose StatementEnd

-- +goose Down
ALTER TABLE directory_group DROP COLUMN name, DROP COLUMN identifiers, DROP COLUMN quantity;
ALTER TABLE directory_grant DROP COLUMN levels;
