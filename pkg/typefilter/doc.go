// Package typefilter evaluates searches of FHIR R4 on single lines of NDJSON, for the parameter _typeFilter of an export
// (P-31 to P-35). The parameters come from the definitions of R4, not from a hand list. It does no I/O.
//
// It promises: a line is kept only if it matches; a query that it cannot evaluate as R4 describes is refused, never
// ignored in part; refusals name the type and the parameter, never a value; a filter is the same on every source.
//
// Files: table.go has the parameters, path.go their paths, query.go reads queries, filter.go evaluates lines, and
// token.go, date.go, text.go, reference.go, number.go and quantity.go compare values.
package typefilter
