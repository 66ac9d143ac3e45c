// Package export is the domain: what a job is, which states it passes through, what a unit of its work is, and the
// errors that callers branch on. It does no I/O; the adapters (jobstore, queue, objects, source, directory) and the
// services are written in its terms.
package export
