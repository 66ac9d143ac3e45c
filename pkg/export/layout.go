package export

import "fmt"

// The object store's layout. Everything of a job lies under one prefix, so that a purge is one prefix delete and an
// orphan is a prefix without a job record. Names below it carry the fence of the attempt that wrote them: two
// attempts never write the same key.

// JobsPrefix is the prefix of all jobs' objects.
const JobsPrefix = "jobs/"

// JobPrefix is the prefix of everything that belongs to the job.
func JobPrefix(job JobID) string { return JobsPrefix + string(job) + "/" }

// FileName is the name of the n'th file (from 0) of one type that an attempt at a unit writes. Clients see it in
// the file's URL.
func FileName(unit UnitID, fence int64, typ string, n int) string {
	return fmt.Sprintf("%s.%s.%d.%d.ndjson", typ, unit, fence, n)
}

// FileKey is the object key of a file, which is stored gzipped.
func FileKey(job JobID, typ, name string) string { return JobPrefix(job) + typ + "/" + name + ".gz" }

// CohortPrefix is the prefix of the cohort chunks that an attempt at the plan writes.
func CohortPrefix(job JobID, fence int64) string {
	return fmt.Sprintf("%s_cohort/%d/", JobPrefix(job), fence)
}

// ReferencesPrefix is the prefix of the reference lists that an attempt at a unit writes.
func ReferencesPrefix(job JobID, unit UnitID, fence int64) string {
	return fmt.Sprintf("%s_references/%s.%d/", JobPrefix(job), unit, fence)
}

// ManifestKey is the object key of the sealed list of files that an attempt at the seal writes.
func ManifestKey(job JobID, fence int64) string {
	return fmt.Sprintf("%s_manifest/%d.ndjson", JobPrefix(job), fence)
}
