-- Versions of groups, groups as members of groups, and counts of the members that are left out. See docs/access.md.

-- +goose Up

-- +goose StatementBegin
DO $$
BEGIN
    SET LOCAL lock_timeout = '10s';
    ALTER TABLE directory_group ADD COLUMN version bigint; -- meta.versionId of the loaded Group; null if it is no number
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the groups are in use by a load or a plan; migrate again';
END $$;
-- +goose StatementEnd

-- Groups in groups. A member group may be missing in directory_group.
CREATE TABLE directory_subgroup (
    group_id text        COLLATE "C" NOT NULL REFERENCES directory_group ON DELETE CASCADE,
    member   text        COLLATE "C" NOT NULL,
    starts   timestamptz NOT NULL,
    ends     timestamptz NOT NULL,
    inactive boolean     NOT NULL,
    PRIMARY KEY (group_id, member, starts, ends, inactive)
);

-- Numbers of members that are no patient of this server, by reason (pkg/export/leftout.go) and period.
CREATE TABLE directory_left_out (
    group_id text        COLLATE "C" NOT NULL REFERENCES directory_group ON DELETE CASCADE,
    reason   text        COLLATE "C" NOT NULL,
    starts   timestamptz NOT NULL,
    ends     timestamptz NOT NULL,
    inactive boolean     NOT NULL,
    members  bigint      NOT NULL,
    PRIMARY KEY (group_id, reason, starts, ends, inactive)
);

-- A load of the previous release does not know the two tables. What it loads has no member groups, rather than those of
-- the version before.
-- +goose StatementBegin
CREATE FUNCTION directory_group_replaced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM directory_subgroup WHERE group_id = NEW.id;
    DELETE FROM directory_left_out WHERE group_id = NEW.id;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER directory_group_replaced AFTER UPDATE ON directory_group FOR EACH ROW
    WHEN (OLD.last_updated IS DISTINCT FROM NEW.last_updated) EXECUTE FUNCTION directory_group_replaced();

-- +goose Down
DROP TRIGGER directory_group_replaced ON directory_group;
DROP FUNCTION directory_group_replaced;
DROP TABLE directory_left_out, directory_subgroup;
ALTER TABLE directory_group DROP COLUMN version;
