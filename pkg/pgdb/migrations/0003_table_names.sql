-- Four tables of 0001 get descriptive names. Services of the previous release use the old names until the rollout is
-- complete, so each old name becomes a view, which PostgreSQL reads and updates like the table. A later migration drops
-- the views.

-- +goose Up

-- The migration locks the tables. A load holds its locks for minutes, and every reader would wait behind the
-- migration: it fails instead while a load runs (0x736c7569636532, the lock of pkg/source/postgres). Readers lock the
-- table of loads first, so this order cannot deadlock with them.
-- +goose StatementBegin
DO $$
DECLARE
    renamed record;
    granted record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    BEGIN
        SET LOCAL lock_timeout = '10s';
        LOCK TABLE load, also, size, horizon IN ACCESS EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'the tables are in use; migrate again';
    END;
    FOR renamed IN SELECT * FROM (VALUES
        ('load', 'load_batch'), ('also', 'additional_subject'), ('size', 'type_stats'), ('horizon', 'trim_horizon')
    ) AS r (old, new) LOOP
        EXECUTE format('ALTER TABLE %I RENAME TO %I', renamed.old, renamed.new);
        EXECUTE format('CREATE VIEW %I AS SELECT * FROM %I', renamed.old, renamed.new);
        -- The view has the privileges of the table.
        FOR granted IN
            SELECT a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
            FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a
            WHERE c.oid = format('%I', renamed.new)::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON %I TO %s', granted.privilege_type, renamed.old, granted.role);
        END LOOP;
    END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP VIEW load, also, size, horizon;
ALTER TABLE load_batch RENAME TO load;
ALTER TABLE additional_subject RENAME TO also;
ALTER TABLE type_stats RENAME TO size;
ALTER TABLE trim_horizon RENAME TO horizon;
