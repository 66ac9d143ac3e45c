// Package synth invents a FHIR R4 population, US Core shaped, for tests, benchmarks and demonstrations. No person in
// it exists: names carry digits, telephones are 555 numbers, mail goes to example.com.
//
// It promises: the same seed and number of patients give byte-identical files, on any number of processors and on any
// architecture (all arithmetic is on integers); patient i of a seed is the same in a population of any size; every
// reference inside the population resolves, except those into https://referrals.example.org, which are foreign on
// purpose; memory is bounded by the few patients in the works, not by the size of the population; a run that does
// not finish leaves no *.ndjson file behind.
//
// It refuses to write into a folder that holds *.ndjson files already: two populations are never mixed.
//
// Patients 0, 10, 20 and so on have at least one resource of every type about them, so that the smallest
// demonstration shows them all.
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
// population.go runs it all, write.go owns the files, json.go, random.go and codes.go are what the others write with.
package synth
