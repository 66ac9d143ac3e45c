-- Who mentions a referenced resource, for incremental exports. See docs/postgres.md.

-- +goose Up

-- As in migration 3: fail while a load runs, lock the table of loads first.
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    SET LOCAL lock_timeout = '10s';
    -- The rules (source.Rules) under which the mentions of all rows that the load added are known; null: they are not. Loads of
    -- the previous release leave it null.
    ALTER TABLE load_batch ADD COLUMN mentions int;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the tables are in use; migrate again';
END $$;
-- +goose StatementEnd

-- Each pair of any version, also of one that ended or was undone.
CREATE TABLE mention (
    ref text COLLATE "C" NOT NULL, -- the referenced resource, as "Type/id", whether it is held or not
    by  text COLLATE "C" NOT NULL, -- a patient; or "Type/id" of a referenced resource, or of a Provenance without a patient
    PRIMARY KEY (ref, by)
);

-- Who may read the patients may read it.
-- +goose StatementBegin
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = 'resource_patient'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT ON mention TO %s', granted.role);
    END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE mention;
ALTER TABLE load_batch DROP COLUMN mentions;
