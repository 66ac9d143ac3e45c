-- Tables for the resource types of no patient compartment: an export of everything contains them. See docs/postgres.md.

-- +goose Up

-- As in migration 3: fail while a load runs. Readers lock only the tables of types, so this does not wait for them.
-- +goose StatementBegin
DO $$
DECLARE
    t text;
    leaf text;
    granted record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(32488873856820530) THEN
        RAISE EXCEPTION 'a load is running; migrate when it has ended';
    END IF;
    BEGIN
        SET LOCAL lock_timeout = '10s';
        LOCK TABLE ONLY resource IN ACCESS EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'the tables are in use; migrate again';
    END;
    FOREACH t IN ARRAY ARRAY[
        'ActivityDefinition', 'AuditEvent', 'Binary', 'BiologicallyDerivedProduct', 'CapabilityStatement',
        'CatalogEntry', 'ChargeItemDefinition', 'CodeSystem', 'CompartmentDefinition', 'ConceptMap',
        'Contract', 'DeviceDefinition', 'DeviceMetric', 'EffectEvidenceSynthesis', 'Endpoint',
        'EnrollmentResponse', 'EventDefinition', 'Evidence', 'EvidenceVariable', 'ExampleScenario',
        'GraphDefinition', 'Group', 'GuidanceResponse', 'HealthcareService', 'ImplementationGuide',
        'InsurancePlan', 'Library', 'Linkage', 'Measure', 'MedicationKnowledge', 'MedicinalProduct',
        'MedicinalProductAuthorization', 'MedicinalProductContraindication', 'MedicinalProductIndication',
        'MedicinalProductIngredient', 'MedicinalProductInteraction', 'MedicinalProductManufactured',
        'MedicinalProductPackaged', 'MedicinalProductPharmaceutical', 'MedicinalProductUndesirableEffect',
        'MessageDefinition', 'MessageHeader', 'NamingSystem', 'ObservationDefinition', 'OperationDefinition',
        'OrganizationAffiliation', 'PaymentNotice', 'PaymentReconciliation', 'Person', 'PlanDefinition',
        'Questionnaire', 'ResearchDefinition', 'ResearchElementDefinition', 'ResearchStudy',
        'RiskEvidenceSynthesis', 'Schedule', 'SearchParameter', 'Slot', 'SpecimenDefinition',
        'StructureDefinition', 'StructureMap', 'Subscription', 'Substance', 'SubstanceNucleicAcid',
        'SubstancePolymer', 'SubstanceProtein', 'SubstanceReferenceInformation', 'SubstanceSourceMaterial',
        'SubstanceSpecification', 'Task', 'TerminologyCapabilities', 'TestReport', 'TestScript', 'ValueSet',
        'VerificationResult'
    ] LOOP
        -- As in migration 1.
        leaf := 'resource_' || lower(t);
        EXECUTE format('CREATE TABLE %I PARTITION OF resource FOR VALUES IN (%L) WITH (toast_tuple_target = 8160)',
            leaf, t);
        EXECUTE format('CREATE INDEX %I ON %I (patient)', leaf || '_patient', leaf);
        EXECUTE format('CREATE UNIQUE INDEX %I ON %I (id, (coalesce(ended, 2147483647)))', leaf || '_id', leaf);
        EXECUTE format('CREATE INDEX %I ON %I USING brin (born)', leaf || '_born', leaf);
        EXECUTE format('CREATE INDEX %I ON %I (ended) WHERE ended IS NOT NULL', leaf || '_ended', leaf);
        -- Who may read the patients may read it.
        FOR granted IN
            SELECT a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
            FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a
            WHERE c.oid = 'resource_patient'::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON %I TO %s', granted.privilege_type, leaf, granted.role);
        END LOOP;
    END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY[
        'ActivityDefinition', 'AuditEvent', 'Binary', 'BiologicallyDerivedProduct', 'CapabilityStatement',
        'CatalogEntry', 'ChargeItemDefinition', 'CodeSystem', 'CompartmentDefinition', 'ConceptMap',
        'Contract', 'DeviceDefinition', 'DeviceMetric', 'EffectEvidenceSynthesis', 'Endpoint',
        'EnrollmentResponse', 'EventDefinition', 'Evidence', 'EvidenceVariable', 'ExampleScenario',
        'GraphDefinition', 'Group', 'GuidanceResponse', 'HealthcareService', 'ImplementationGuide',
        'InsurancePlan', 'Library', 'Linkage', 'Measure', 'MedicationKnowledge', 'MedicinalProduct',
        'MedicinalProductAuthorization', 'MedicinalProductContraindication', 'MedicinalProductIndication',
        'MedicinalProductIngredient', 'MedicinalProductInteraction', 'MedicinalProductManufactured',
        'MedicinalProductPackaged', 'MedicinalProductPharmaceutical', 'MedicinalProductUndesirableEffect',
        'MessageDefinition', 'MessageHeader', 'NamingSystem', 'ObservationDefinition', 'OperationDefinition',
        'OrganizationAffiliation', 'PaymentNotice', 'PaymentReconciliation', 'Person', 'PlanDefinition',
        'Questionnaire', 'ResearchDefinition', 'ResearchElementDefinition', 'ResearchStudy',
        'RiskEvidenceSynthesis', 'Schedule', 'SearchParameter', 'Slot', 'SpecimenDefinition',
        'StructureDefinition', 'StructureMap', 'Subscription', 'Substance', 'SubstanceNucleicAcid',
        'SubstancePolymer', 'SubstanceProtein', 'SubstanceReferenceInformation', 'SubstanceSourceMaterial',
        'SubstanceSpecification', 'Task', 'TerminologyCapabilities', 'TestReport', 'TestScript', 'ValueSet',
        'VerificationResult'
    ] LOOP
        EXECUTE format('DROP TABLE %I', 'resource_' || lower(t));
        DELETE FROM type_stats WHERE type = t;
        DELETE FROM tombstone WHERE type = t;
        DELETE FROM left_out WHERE type = t;
    END LOOP;
END $$;
-- +goose StatementEnd
