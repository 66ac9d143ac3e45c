package fhir

// OperationOutcome is the FHIR resource that reports refusals and problems (spec 7).
type OperationOutcome struct {
	ResourceType string  `json:"resourceType"`
	Issue        []Issue `json:"issue"`
}

// Issue is one issue of an OperationOutcome. Diagnostics never contains a token, a secret or a patient id.
type Issue struct {
	Severity    string `json:"severity"` // fatal | error | warning | information
	Code        string `json:"code"`     // http://hl7.org/fhir/issue-type
	Diagnostics string `json:"diagnostics,omitempty"`
}

// Outcome builds an OperationOutcome with a single issue.
func Outcome(severity, code, diagnostics string) OperationOutcome {
	return OperationOutcome{
		ResourceType: "OperationOutcome",
		Issue:        []Issue{{Severity: severity, Code: code, Diagnostics: diagnostics}},
	}
}
