// Package synth generates a synthetic FHIR R4 population in the shape of US Core, for tests, benchmarks and
// demonstrations. No person in it is real: names have digits, telephone numbers begin with 555, mail addresses are at
// example.com.
//
// It promises: the same seed and number of patients give byte-identical files, on any number of processors and on any
// architecture (all arithmetic is on integers); patient i of a seed is the same in a population of any size; every
// reference inside the population resolves, except those to https://referrals.example.org, which are external on
// purpose; memory is bounded by the few patients being generated, not by the size of the population; a run that does
// not finish leaves no *.ndjson files.
//
// It refuses to write into a folder that already has *.ndjson files, so that populations are never mixed.
//
// Patients 0, 10, 20 and so on have at least one resource of every type about them, so that even the
// smallest population has every type.
//
// Where to find a resource type:
//
//	shared.go         Organization, Location, Practitioner, PractitionerRole, Medication
//	patient.go        Patient, Coverage, RelatedPerson
//	encounters.go     Encounter, Appointment
//	conditions.go     Condition, AllergyIntolerance
//	observations.go   Observation (vital signs and social history)
//	diagnostics.go    ServiceRequest, Specimen, DiagnosticReport, Observation (laboratory)
//	medications.go    MedicationRequest, MedicationDispense
//	immunizations.go  Immunization
//	procedures.go     Procedure, Device
//	care.go           CareTeam, CarePlan, Goal
//	documents.go      DocumentReference, QuestionnaireResponse
//	provenance.go     Provenance
//	groups.go         Group
//
// population.go runs the generator, write.go writes the files; the other files use json.go, random.go and codes.go.
package synth
