package fhir

import "slices"

// subjectPaths are the types of the patient compartment, each with the elements that name its patients (spec 10;
// conformance 14.1, the subject-like column). A path goes through arrays.
//
// Role-like links (recorder, author, payee, performer...) are absent on purpose: following them would disclose
// patients outside the cohort. Group, AuditEvent, Schedule and Person are absent because they are never exported
// with patients. Patient has no path: a Patient is about itself, and link.other is not followed.
var subjectPaths = map[string][]string{
	"Account":                     {"subject"},
	"AdverseEvent":                {"subject"},
	"AllergyIntolerance":          {"patient"},
	"Appointment":                 {"participant.actor"},
	"AppointmentResponse":         {"actor"},
	"Basic":                       {"subject"},
	"BodyStructure":               {"patient"},
	"CarePlan":                    {"subject"},
	"CareTeam":                    {"subject"},
	"ChargeItem":                  {"subject"},
	"Claim":                       {"patient"},
	"ClaimResponse":               {"patient"},
	"ClinicalImpression":          {"subject"},
	"Communication":               {"subject"},
	"CommunicationRequest":        {"subject"},
	"Composition":                 {"subject"},
	"Condition":                   {"subject"},
	"Consent":                     {"patient"},
	"Coverage":                    {"beneficiary"},
	"CoverageEligibilityRequest":  {"patient"},
	"CoverageEligibilityResponse": {"patient"},
	"DetectedIssue":               {"patient"},
	"Device":                      {"patient"}, // not in the R4 compartment; added by spec 10
	"DeviceRequest":               {"subject"},
	"DeviceUseStatement":          {"subject"},
	"DiagnosticReport":            {"subject"},
	"DocumentManifest":            {"subject"},
	"DocumentReference":           {"subject"},
	"Encounter":                   {"subject"},
	"EnrollmentRequest":           {"candidate"},
	"EpisodeOfCare":               {"patient"},
	"ExplanationOfBenefit":        {"patient"},
	"FamilyMemberHistory":         {"patient"},
	"Flag":                        {"subject"},
	"Goal":                        {"subject"},
	"ImagingStudy":                {"subject"},
	"Immunization":                {"patient"},
	"ImmunizationEvaluation":      {"patient"},
	"ImmunizationRecommendation":  {"patient"},
	"Invoice":                     {"subject"},
	"List":                        {"subject"},
	"MeasureReport":               {"subject"},
	"Media":                       {"subject"},
	"MedicationAdministration":    {"subject"},
	"MedicationDispense":          {"subject"},
	"MedicationRequest":           {"subject"},
	"MedicationStatement":         {"subject"},
	"MolecularSequence":           {"patient"},
	"NutritionOrder":              {"patient"},
	"Observation":                 {"subject"},
	"Patient":                     nil,
	"Procedure":                   {"subject"},
	"Provenance":                  {"target"}, // one hop: the patients of its targets
	"QuestionnaireResponse":       {"subject"},
	"RelatedPerson":               {"patient"},
	"RequestGroup":                {"subject"},
	"ResearchSubject":             {"individual"},
	"RiskAssessment":              {"subject"},
	"ServiceRequest":              {"subject"},
	"Specimen":                    {"subject"},
	"SupplyDelivery":              {"patient"},
	"SupplyRequest":               {"deliverTo"},
	"VisionPrescription":          {"patient"},
}

// referencedTypes are exported when exported resources reference them, transitively among these types only (spec 10).
var referencedTypes = []string{"Location", "Medication", "Organization", "Practitioner", "PractitionerRole"}

// namingPatients are the types outside the compartment of which R4 allows a resource to be about a patient, or of anything:
// by reference, or by what it is, such as a slot of a patient's schedule.
var namingPatients = []string{
	"AuditEvent", "Binary", "BiologicallyDerivedProduct", "Contract", "EnrollmentResponse", "Group", "GuidanceResponse",
	"Linkage", "MessageHeader", "PaymentNotice", "PaymentReconciliation", "Person", "Schedule", "Slot", "Subscription", "Task",
	"VerificationResult",
}

// MayNamePatients reports whether a resource of a type outside the compartment may be about a patient nevertheless. Who may
// not see every patient gets none of them.
func MayNamePatients(typ string) bool { return slices.Contains(namingPatients, typ) }

// onlyPatients reports whether R4 allows nothing but patients as subjects of resources of the type.
func onlyPatients(typ string) bool {
	for _, path := range subjectPaths[typ] {
		switch path {
		case "patient", "beneficiary", "candidate", "individual":
		default:
			return false
		}
	}
	return InCompartment(typ)
}

// InCompartment reports whether resources of the type are exported because they are about a patient: the R4
// patient compartment by subject-like links, plus Device and Provenance, less the four types that name several
// patients by nature (spec 10).
func InCompartment(typ string) bool {
	_, ok := subjectPaths[typ]
	return ok
}

// SubjectPaths returns the dotted element paths whose references name the patients of a resource of the type. It is
// empty for Patient, which is about itself, and for every type outside the compartment. Do not modify it.
func SubjectPaths(typ string) []string { return subjectPaths[typ] }

// IsReferenced reports whether resources of the type are exported only when an exported resource references them (spec 10).
func IsReferenced(typ string) bool { return slices.Contains(referencedTypes, typ) }

// IsExportable reports whether an export of a group or of patients can contain the type.
func IsExportable(typ string) bool { return InCompartment(typ) || IsReferenced(typ) }

// ExportableTypes returns every type that an export of a group or of patients can contain, sorted by name.
func ExportableTypes() []string {
	types := slices.Clone(referencedTypes)
	for typ := range subjectPaths {
		types = append(types, typ)
	}
	slices.Sort(types)
	return types
}
