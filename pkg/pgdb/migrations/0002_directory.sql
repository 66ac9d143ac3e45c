-- Groups and grants: who is in which group, and who may export what. See docs/access.md.

-- +goose Up

-- Who writes about a group locks its row first, and a load the table. Readers wait for neither.
CREATE TABLE directory_group (
    id           text        COLLATE "C" PRIMARY KEY,
    exportable   boolean     NOT NULL, -- neither inactive nor definitional
    last_updated timestamptz           -- meta.lastUpdated of what was loaded; null when it has none
);

-- Patients in groups. A patient may stand in a group several times, each time with another period. Nothing refers to
-- directory_group, because checking a million rows one by one takes longer than writing them.
CREATE TABLE directory_member (
    group_id text        COLLATE "C" NOT NULL,
    patient  text        COLLATE "C" NOT NULL,
    starts   timestamptz NOT NULL DEFAULT '-infinity', -- the first instant of the period
    ends     timestamptz NOT NULL DEFAULT 'infinity',  -- the first instant after it
    inactive boolean     NOT NULL DEFAULT false,
    joined   timestamptz NOT NULL DEFAULT clock_timestamp(), -- when the patient was first known to be in the group
    PRIMARY KEY (group_id, patient, starts, ends, inactive)
);

-- A row is all of one owner's grant, so that nobody can see half a list of exceptions. A kind that a program does not
-- know allows nothing.
CREATE TABLE directory_grant (
    issuer        text   COLLATE "C" NOT NULL,
    subject       text   COLLATE "C" NOT NULL,
    types         text   COLLATE "C" NOT NULL CHECK (types IN ('all', 'only', 'except')),
    type_names    text[] COLLATE "C" NOT NULL,
    groups        text   COLLATE "C" NOT NULL CHECK (groups IN ('all', 'only', 'except')),
    group_names   text[] COLLATE "C" NOT NULL,
    patients      text   COLLATE "C" NOT NULL CHECK (patients IN ('all', 'only', 'except')),
    patient_names text[] COMPRESSION lz4 COLLATE "C" NOT NULL, -- there may be millions
    PRIMARY KEY (issuer, subject),
    CHECK (types <> 'all' OR type_names = '{}'),
    CHECK (groups <> 'all' OR group_names = '{}'),
    CHECK (patients <> 'all' OR patient_names = '{}')
);

-- +goose Down
DROP TABLE directory_grant, directory_member, directory_group;
