// Package fhir knows the parts of FHIR R4 that an export needs: the resource types, which elements say whom a
// resource is about, the OperationOutcome, and how to read those facts from one line of NDJSON without building a
// tree of it. It holds no state and does no I/O.
package fhir
