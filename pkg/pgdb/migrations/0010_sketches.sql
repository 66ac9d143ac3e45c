-- Sketches of the lines, by which exports with _typeFilter leave rows out. See docs/postgres.md.

-- +goose Up

-- As in migration 5: fail while a load runs, lock the table of loads first. No row is rewritten: without a sketch an export
-- reads it.
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    SET LOCAL lock_timeout = '10s';
    LOCK TABLE load_batch IN ACCESS EXCLUSIVE MODE;
    -- A typefilter.Sketch. Loads of the previous release leave the columns null.
    ALTER TABLE resource
        ADD COLUMN codes        bigint,
        ADD COLUMN dated_from   int,
        ADD COLUMN dated_to     int,
        ADD COLUMN sketch_rules int; -- the rules under which the row was made (pkg/source/postgres/narrow.go)
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the tables are in use; migrate again';
END $$;
-- +goose StatementEnd

-- +goose Down
ALTER TABLE resource DROP COLUMN codes, DROP COLUMN dated_from, DROP COLUMN dated_to, DROP COLUMN sketch_rules;
