// Package fhir has the parts of FHIR R4 that an export needs: the resource types, the elements that name the patients of
// a resource, the OperationOutcome, and a scanner that reads these facts from a line of NDJSON without building a tree. It
// has no state and does no I/O.
//
// The scanner is written by hand because go-json-experiment/json/jsontext takes 30 to 70 % more CPU time to read only the
// top-level members, without the facts in them (Patient and ExplanationOfBenefit lines of Synthea).
package fhir
