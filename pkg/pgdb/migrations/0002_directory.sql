-- Groups with their members, and export grants. See docs/access.md.

-- +goose Up

-- A change of a group locks its row first; a load locks the table. Neither blocks readers.
CREATE TABLE directory_group (
    id           text        COLLATE "C" PRIMARY KEY,
    exportable   boolean     NOT NULL, -- neither inactive nor definitional
    last_updated timestamptz           -- meta.lastUpdated of the loaded Group; null if missing
);

-- Patients in groups. A patient may have several rows in a group, with different periods. There is no foreign key to
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

-- One row holds an owner's whole grant, so that no reader gets a partial list of exceptions. An unknown kind grants
-- nothing.
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
