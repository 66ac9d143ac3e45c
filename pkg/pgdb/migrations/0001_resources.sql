-- Clinical resources, a version a row. A version is visible to an export that reads as of load L when it was born in
-- L or before and had not ended by then: born <= L AND (ended IS NULL OR ended > L). See docs/postgres.md.

-- +goose Up

-- What was loaded, in order. A load that has no sealed_at is under way or was abandoned: nobody sees any of it.
CREATE TABLE load (
    no         int         PRIMARY KEY,
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    sealed_at  timestamptz UNIQUE,
    abandoned  boolean     NOT NULL DEFAULT false, -- another load took the turn
    undone     boolean     NOT NULL DEFAULT false  -- and took back what this one had merged
);

-- The newest load whose past was trimmed: what ended in it or before may be gone. One row.
CREATE TABLE horizon (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    load int     NOT NULL
);
INSERT INTO horizon (load) VALUES (0);

-- How much is visible as of the newest sealed load. It is kept in the transaction that seals.
CREATE TABLE size (
    type      text   COLLATE "C" PRIMARY KEY,
    resources bigint NOT NULL,
    bytes     bigint NOT NULL -- as NDJSON, newlines included
);

CREATE TABLE resource (
    last_updated timestamptz,             -- meta.lastUpdated; null when it has none
    born         int    NOT NULL,            -- load that brought this version
    ended        int,                        -- load that replaced or deleted it
    type         text   COLLATE "C" NOT NULL,
    id           text   COLLATE "C" NOT NULL,
    patient      text   COLLATE "C" NOT NULL, -- the smallest of the subjects; '' when there is none
    others       text[] COLLATE "C",      -- all subjects, ascending, when there are several
    head         bytea  NOT NULL,         -- what an export needs beside the body, in one column: pkg/source/postgres/head.go
    body         text   COMPRESSION lz4 COLLATE "C" NOT NULL
) PARTITION BY LIST (type);

-- A table for each type that an export can hold, in the physical order of patients as far as one load goes. Bodies of
-- usual size stay in the row, as they are: compressing and moving them aside costs more than it saves.
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
        -- One current version an id; and it finds every version by id.
        EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id, (coalesce(ended, 2147483647)))', leaf || '_id', leaf);
        -- For taking back a load that was not finished: rows of one load stand together.
        EXECUTE format('CREATE INDEX %I ON %I USING brin (born)', leaf || '_born', leaf);
        EXECUTE format('CREATE INDEX %I ON %I (ended) WHERE ended IS NOT NULL', leaf || '_ended', leaf);
    END LOOP;
END $$;
-- +goose StatementEnd

-- Finds the resources of several patients by each patient but the smallest. It only finds: whether a version that is
-- visible is about the patient is for the row to say.
CREATE TABLE also (
    type    text COLLATE "C" NOT NULL,
    patient text COLLATE "C" NOT NULL,
    id      text COLLATE "C" NOT NULL,
    PRIMARY KEY (type, patient, id)
);

-- What each version of a Provenance targets, for finding the Provenance by its targets.
CREATE TABLE target (
    born       int  NOT NULL,
    provenance text COLLATE "C" NOT NULL,
    type       text COLLATE "C" NOT NULL,
    id         text COLLATE "C" NOT NULL,
    PRIMARY KEY (type, id, provenance, born)
);
CREATE INDEX target_provenance ON target (provenance);

-- Deletions: whose resource went, and in which load.
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
