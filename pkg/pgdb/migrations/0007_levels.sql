-- The levels of export that a grant allows. See docs/access.md.

-- +goose Up

-- +goose StatementBegin
DO $$
BEGIN
    SET LOCAL lock_timeout = '10s';
    -- Null: the group level alone, as in grants of the previous release, whose programs do not read the column.
    ALTER TABLE directory_grant ADD COLUMN levels text[] COLLATE "C"
        CHECK (cardinality(levels) > 0 AND levels <@ ARRAY['group', 'patient', 'system']);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the grants are in use by a plan; migrate again';
END $$;
-- +goose StatementEnd

-- +goose Down
ALTER TABLE directory_grant DROP COLUMN levels;
