-- Clinical resources, one version per row. A version is visible to an export that reads as of load L if it was born in
-- L or earlier and had not ended by then: born <= L AND (ended IS NULL OR ended > L). See docs/postgres.md.

-- +goose Up

-- Loads, in order. A load without sealed_at is running or was abandoned; exports do not read it.
CREATE TABLE load (
    no         int         PRIMARY KEY,
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    sealed_at  timestamptz UNIQUE,
    abandoned  boolean     NOT NULL DEFAULT false, -- another load took the lock
    undone     boolean     NOT NULL DEFAULT false  -- and reverted the changes of this one
);

-- The newest load up to which history was trimmed: versions that ended in it or earlier may be deleted. One row.
CREATE TABLE horizon (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    load int     NOT NULL
);
INSERT INTO horizon (load) VALUES (0);

-- Totals of the resources visible as of the newest sealed load. The sealing transaction updates them.
CREATE TABLE size (
    type      text   COLLATE "C" PRIMARY KEY,
    resources bigint NOT NULL,
    bytes     bigint NOT NULL -- as NDJSON, newlines included
);

CREATE TABLE resource (
    last_updated timestamptz,             -- meta.lastUpdated; null if missing
    born         int    NOT NULL,            -- load that brought this version
    ended        int,                        -- load that replaced or deleted it
    type         text   COLLATE "C" NOT NULL,
    id           text   COLLATE "C" NOT NULL,
    patient      text   COLLATE "C" NOT NULL, -- the smallest of the subjects; '' if there are none
    others       text[] COLLATE "C",      -- all subjects, ascending, if there are several
    head         bytea  NOT NULL,         -- the fields that an export needs besides the body: pkg/source/postgres/head.go
    body         text   COMPRESSION lz4 COLLATE "C" NOT NULL
) PARTITION BY LIST (type);

-- One table per exportable type. Rows of one load are in the physical order of patients. Bodies of usual size are stored
-- in the row, uncompressed: compression and TOAST cost more than they save.
-- +goose StatementBegin
DO $$
DECLARE
    t text;
    leaf text;
BEGIN
    FOREACH t IN ARRAY ARRAY[
        'Account', 'AdverseEvent', 'AllergyIntolerance', 'Appointment', 'AppointmentResponse', 'Basic',
        'BodyStructure', 'CarePlan', 'CareTeam', 'ChargeItem', 'Claim', 'ClaimResponse', 'ClinicalImpression',
        'Communication', 'CommunicationRequest', 'Composition', 'Condition', 'Consent', 'Coverage',
        'CoverageEligibilityRequest', 'CoverageEligibilityResponse', 'DetectedIssue', 'Device',
        'DeviceRequest', 'DeviceUseStatement', 'DiagnosticReport', 'DocumentManifest', 'DocumentReference',
        'Encounter', 'EnrollmentRequest', 'EpisodeOfCare', 'ExplanationOfBenefit', 'FamilyMemberHistory',
        'Flag', 'Goal', 'ImagingStudy', 'Immunization', 'ImmunizationEvaluation',
        'ImmunizationRecommendation', 'Invoice', 'List', 'Location', 'MeasureReport', 'Media', 'Medication',
        'MedicationAdministration', 'MedicationDispense', 'MedicationRequest', 'MedicationStatement',
        'MolecularSequence', 'NutritionOrder', 'Observation', 'Organization', 'Patient', 'Practitioner',
        'PractitionerRole', 'Procedure', 'Provenance', 'QuestionnaireResponse', 'RelatedPerson',
        'RequestGroup', 'ResearchSubject', 'RiskAssessment', 'ServiceRequest', 'Specimen', 'SupplyDelivery',
        'SupplyRequest', 'VisionPrescription'
    ] LOOP
        leaf := 'resource_' || lower(t);
        EXECUTE format('CREATE TABLE %I PARTITION OF resource FOR VALUES IN (%L) WITH (toast_tuple_target = 8160)',
            leaf, t);
        EXECUTE format('CREATE INDEX %I ON %I (patient)', leaf || '_patient', leaf);
        -- Allows one current version per id, and finds all versions of an id.
        EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id, (coalesce(ended, 2147483647)))', leaf || '_id', leaf);
        -- For reverting an unfinished load: the rows of one load are adjacent.
        EXECUTE format('CREATE INDEX %I ON %I USING brin (born)', leaf || '_born', leaf);
        EXECUTE format('CREATE INDEX %I ON %I (ended) WHERE ended IS NOT NULL', leaf || '_ended', leaf);
    END LOOP;
END $$;
-- +goose StatementEnd

-- Finds resources with several subjects by each subject except the smallest. It may list stale entries: the row of the
-- visible version decides whether the patient is a subject.
CREATE TABLE also (
    type    text COLLATE "C" NOT NULL,
    patient text COLLATE "C" NOT NULL,
    id      text COLLATE "C" NOT NULL,
    PRIMARY KEY (type, patient, id)
);

-- Targets of each version of a Provenance, to find the Provenance by its targets.
CREATE TABLE target (
    born       int  NOT NULL,
    provenance text COLLATE "C" NOT NULL,
    type       text COLLATE "C" NOT NULL,
    id         text COLLATE "C" NOT NULL,
    PRIMARY KEY (type, id, provenance, born)
);
CREATE INDEX target_provenance ON target (provenance);

-- Deletions: the subjects of the deleted resource, and the load that deleted it.
CREATE TABLE tombstone (
    type    text   COLLATE "C" NOT NULL,
    id      text   COLLATE "C" NOT NULL,
    born    int    NOT NULL,
    patient text   COLLATE "C" NOT NULL,
    others  text[] COLLATE "C",
    PRIMARY KEY (type, id, born)
);
CREATE INDEX tombstone_patient ON tombstone (type, patient);

-- +goose Down
DROP TABLE tombstone, target, also, resource, size, horizon, load;
