-- What the store holds or was given and no export contains, and versions by meta.versionId. See docs/postgres.md.

-- +goose Up

-- As in migration 3: fail while a load runs, lock the table of loads first.
-- +goose StatementBegin
DO $$
DECLARE
    several text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    -- Loads did not trim these two tables.
    DELETE FROM tombstone WHERE born <= (SELECT load FROM trim_horizon);
    FOR several IN SELECT DISTINCT type FROM additional_subject LOOP
        EXECUTE format('DELETE FROM additional_subject AS a WHERE type = %L AND NOT EXISTS (
            SELECT FROM %I AS r WHERE r.id = a.id AND a.patient = ANY(r.others))', several, 'resource_' || lower(several));
    END LOOP;
    BEGIN
        SET LOCAL lock_timeout = '10s';
        LOCK TABLE load_batch IN ACCESS EXCLUSIVE MODE;
        ALTER TABLE resource
            ADD COLUMN version  bigint,           -- meta.versionId; null unless it is a positive whole number
            ADD COLUMN left_out text COLLATE "C"; -- why no export contains the resource (export.Reason); null if one may
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'the tables are in use; migrate again';
    END;
END $$;
-- +goose StatementEnd

-- Totals of what no export contains, by type and reason. The sealing transaction of a load updates them.
CREATE TABLE left_out (
    type      text    COLLATE "C" NOT NULL, -- '' if it is unknown
    reason    text    COLLATE "C" NOT NULL,
    held      boolean NOT NULL, -- the store has it (resource.left_out); else the last load of the type left it out
    resources bigint  NOT NULL,
    PRIMARY KEY (type, reason, held)
);

-- Who may read the statistics may read it.
-- +goose StatementBegin
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a
        WHERE c.oid = 'type_stats'::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON left_out TO %s', granted.privilege_type, granted.role);
    END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE left_out;
ALTER TABLE resource DROP COLUMN version, DROP COLUMN left_out;
