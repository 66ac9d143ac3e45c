// Package typefilter evaluates searches of FHIR R4 on single lines of NDJSON, for the parameter _typeFilter of an export
// (P-31 to P-35). The parameters come from the definitions of R4, not from a hand list. It does no I/O.
//
// It promises: a line is kept only if it matches; a query that it cannot evaluate as R4 describes is refused, never
// ignored in part; refusals name the type and the parameter, never a value; a filter is the same on every source.
//
// A query goes through table.go (the parameters of R4), query.go (its text), escape.go (lists of values) and path.go (where
// the values of a parameter are). filter.go evaluates a line; token.go, date.go, text.go, reference.go, quantity.go and
// decimal.go compare values. docs/type-filter.md describes it for clients.
package typefilter
