// Package export is the domain: jobs, their states and units, the layout of objects, and the errors that callers branch
// on. It does no I/O.
package export
