-- An index of the versions by load, for incremental exports. See docs/postgres.md.

-- +goose Up

-- It blocks loads and not readers, and takes as long as reading all rows once. As in migration 3: fail while a load runs.
-- +goose StatementBegin
DO $$
DECLARE
    leaf text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    SET LOCAL maintenance_work_mem = '256MB';
    -- The patterns and the expression keep the planner from using the index of patients instead: its queries are written
    -- with the same (pkg/source/postgres/window.go). Rows of a load are in the order of patients, so the index grows at its
    -- end.
    FOR leaf IN SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'resource'::regclass LOOP
        EXECUTE format('CREATE INDEX %I ON %I (born, patient text_pattern_ops, (coalesce(last_updated, ''infinity'')))',
            leaf || '_window', leaf);
    END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
DECLARE
    leaf text;
BEGIN
    FOR leaf IN SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'resource'::regclass LOOP
        EXECUTE format('DROP INDEX %I', leaf || '_window');
    END LOOP;
END $$;
-- +goose StatementEnd
