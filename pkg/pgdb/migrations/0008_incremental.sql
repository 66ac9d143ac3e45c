-- Since when members are members, and records of what changed, for incremental exports. See docs/postgres.md.

-- +goose Up

-- As in migration 3: fail while a load runs. Readers lock the horizon last, and hold no lock for which this waits.
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    SET LOCAL lock_timeout = '10s';
    -- Since when the row makes somebody a member, apart from its period; null: as long as is known. It is not "joined", which
    -- counts the time as an inactive member. Loads of the previous release set it for each row that they write.
    ALTER TABLE directory_member ADD COLUMN active_since timestamptz;
    ALTER TABLE directory_member ALTER COLUMN active_since SET DEFAULT clock_timestamp();
    ALTER TABLE directory_subgroup ADD COLUMN active_since timestamptz;
    ALTER TABLE directory_subgroup ALTER COLUMN active_since SET DEFAULT clock_timestamp();
    -- Since when the group can be exported; null: as long as it is known. Members of a new group have always been members.
    ALTER TABLE directory_group ADD COLUMN exportable_since timestamptz;

    -- Each version that ended and has no successor, or one about others, and each version of a Patient.
    ALTER TABLE tombstone ADD COLUMN began int; -- the load that added the version; null if it is unknown
    -- The newest load whose records in tombstone are not complete.
    ALTER TABLE trim_horizon ADD COLUMN deletions int NOT NULL DEFAULT 0;
    UPDATE trim_horizon SET deletions = coalesce((SELECT max(no) FROM load_batch WHERE sealed_at IS NOT NULL), 0);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the tables are in use; migrate again';
END $$;
-- +goose StatementEnd

-- The ids of deleted groups: a group of that name that is created later is not new.
CREATE TABLE directory_former_group (id text COLLATE "C" PRIMARY KEY);
CREATE INDEX directory_subgroup_member ON directory_subgroup (member);

-- +goose StatementBegin
CREATE FUNCTION directory_group_since() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO directory_former_group VALUES (OLD.id) ON CONFLICT DO NOTHING;
        RETURN OLD;
    END IF;
    -- A new group that was deleted once, or that another group already names, begins now.
    IF TG_OP = 'UPDATE' AND NEW.exportable AND NOT OLD.exportable OR TG_OP = 'INSERT' AND (
        EXISTS (SELECT FROM directory_former_group WHERE id = NEW.id)
        OR EXISTS (SELECT FROM directory_subgroup WHERE member = NEW.id))
    THEN
        NEW.exportable_since := clock_timestamp();
    END IF;
    RETURN NEW;
END $$;
-- +goose StatementEnd
CREATE TRIGGER directory_group_since BEFORE INSERT OR UPDATE OR DELETE ON directory_group FOR EACH ROW
    EXECUTE FUNCTION directory_group_since();

-- Who may read the statistics may read the deletions, and who may read the groups the ids of former ones.
-- +goose StatementBegin
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT t.to_table, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM (VALUES ('type_stats', 'tombstone'), ('directory_group', 'directory_former_group')) AS t (from_table, to_table)
        JOIN pg_class AS c ON c.oid = t.from_table::regclass CROSS JOIN aclexplode(c.relacl) AS a
        WHERE a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT ON %I TO %s', granted.to_table, granted.role);
    END LOOP;
END $$;
-- +goose StatementEnd

-- For Deleted: by patient, and by load.
CREATE INDEX tombstone_patient_born ON tombstone (type, patient, born);
CREATE INDEX tombstone_born ON tombstone (type, born);
CREATE INDEX tombstone_others ON tombstone (type, born) WHERE others IS NOT NULL;
DROP INDEX tombstone_patient;

-- +goose Down
CREATE INDEX tombstone_patient ON tombstone (type, patient);
DROP INDEX tombstone_patient_born, tombstone_born, tombstone_others;
DROP TRIGGER directory_group_since ON directory_group;
DROP FUNCTION directory_group_since;
DROP INDEX directory_subgroup_member;
DROP TABLE directory_former_group;
ALTER TABLE trim_horizon DROP COLUMN deletions;
ALTER TABLE tombstone DROP COLUMN began;
ALTER TABLE directory_group DROP COLUMN exportable_since;
ALTER TABLE directory_subgroup DROP COLUMN active_since;
ALTER TABLE directory_member DROP COLUMN active_since;
