package export

import (
	"fmt"
	"strconv"
	"strings"
)

// All objects of a job are below one prefix: a purge deletes a prefix, and an orphan is a prefix without a job record.
// Names have the fence of the attempt that wrote them, so two attempts never write the same key.

// JobsPrefix is the prefix of all jobs' objects.
const JobsPrefix = "jobs/"

// JobPrefix returns the prefix of all objects of the job.
func JobPrefix(job JobID) string { return JobsPrefix + string(job) + "/" }

// JobOf returns the job that the object key belongs to, and false for a key outside the layout.
func JobOf(key string) (JobID, bool) {
	rest, ours := strings.CutPrefix(key, JobsPrefix)
	id, _, below := strings.Cut(rest, "/")
	job, err := ParseJobID(id)
	return job, ours && below && err == nil
}

// FileName returns the name of the n'th file (from 0) of one type that an attempt at a unit writes, part of its URL.
func FileName(unit UnitID, fence int64, typ string, n int) string {
	return fmt.Sprintf("%s.%s.%d.%d.ndjson", typ, unit, fence, n)
}

// FileKey returns the object key of a file, which is stored gzipped.
func FileKey(job JobID, typ, name string) string { return JobPrefix(job) + typ + "/" + name + ".gz" }

// PackName returns the name of the n'th pack (from 0) of attachments that an attempt at a unit of a type writes. A pack has
// the content of many attachments, one after another.
func PackName(unit UnitID, fence int64, typ string, n int) string {
	return fmt.Sprintf("%s.%s.%d.%d", typ, unit, fence, n)
}

// PackKey returns the object key of a pack.
func PackKey(job JobID, pack string) string { return JobPrefix(job) + attachmentsFolder + "/" + pack }

const attachmentsFolder = "_attachments"

// AttachmentName returns the name of the attachment that begins at the offset of a pack, part of its URL.
func AttachmentName(pack string, offset int64) string { return fmt.Sprintf("%s.%d", pack, offset) }

// AttachmentPath returns the path of the URL of an attachment, below the public base URL.
func AttachmentPath(job JobID, name string) string {
	return "/exports/" + string(job) + "/attachments/" + name
}

// ParseAttachmentName returns the unit that wrote an attachment, and its pack and offset; false for any other text.
func ParseAttachmentName(name string) (unit UnitID, pack string, offset int64, ok bool) {
	parts := strings.Split(name, ".")
	if len(parts) != 5 {
		return "", "", 0, false
	}
	offset, err := strconv.ParseInt(parts[4], 10, 64)
	ok = err == nil && offset >= 0 && strconv.FormatInt(offset, 10) == parts[4]
	return UnitID(parts[1]), strings.Join(parts[:4], "."), offset, ok
}

// CohortPrefix returns the prefix of the cohort chunks that an attempt at the plan writes.
func CohortPrefix(job JobID, fence int64) string {
	return fmt.Sprintf("%s_cohort/%d/", JobPrefix(job), fence)
}

// AskedKey returns the object key of the list of patients that a kick-off names. It is deleted with the cohort.
func AskedKey(job JobID) string { return JobPrefix(job) + "_cohort/asked" }

// ReferencesPrefix returns the prefix of the reference lists that an attempt at a unit writes.
func ReferencesPrefix(job JobID, unit UnitID, fence int64) string {
	return fmt.Sprintf("%s_references/%s.%d/", JobPrefix(job), unit, fence)
}

// ManifestKey returns the object key of the sealed list of files that an attempt at the seal writes.
func ManifestKey(job JobID, fence int64) string {
	return fmt.Sprintf("%s%d.ndjson", ManifestPrefix(job), fence)
}

// ManifestPrefix returns the prefix of the manifests that attempts at the seal write.
func ManifestPrefix(job JobID) string { return JobPrefix(job) + "_manifest/" }

// Scaffolding returns the prefixes of objects that a job needs only while it runs. They contain patient ids and are deleted
// when the job ends.
func Scaffolding(job JobID) []string {
	return []string{JobPrefix(job) + "_cohort/", JobPrefix(job) + "_references/"}
}

// Origin is the attempt that wrote an object.
type Origin struct {
	Job         JobID
	Unit        UnitID
	Fence       int64 // 0: a kick-off
	Scaffolding bool
}

// ParseKey reads an object key of this layout. It returns false for any other key.
func ParseKey(key string) (Origin, bool) {
	job, ours := JobOf(key)
	folder, name, inFolder := strings.Cut(strings.TrimPrefix(key, JobPrefix(job)), "/")
	if !ours || !inFolder {
		return Origin{}, false
	}
	origin := Origin{Job: job}
	var fence string
	switch folder {
	case "_cohort":
		origin.Unit, origin.Scaffolding = PlanUnit, true
		if key == AskedKey(job) { // the kick-off wrote it, under no fence
			return origin, true
		}
		fence, _, _ = strings.Cut(name, "/")
	case "_references":
		origin.Scaffolding = true
		attempt, _, _ := strings.Cut(name, "/")
		var unit string
		unit, fence, _ = strings.Cut(attempt, ".")
		origin.Unit = UnitID(unit)
	case "_manifest":
		origin.Unit = SealUnit
		fence, _, _ = strings.Cut(name, ".")
	case attachmentsFolder:
		parts := strings.Split(name, ".") // <Type>.<unit>.<fence>.<n>
		if len(parts) != 4 || strings.Contains(name, "/") {
			return Origin{}, false
		}
		origin.Unit, fence = UnitID(parts[1]), parts[2]
	default:
		parts := strings.Split(name, ".") // <Type>.<unit>.<fence>.<n>.ndjson.gz
		if len(parts) != 6 || strings.Contains(name, "/") {
			return Origin{}, false
		}
		origin.Unit, fence = UnitID(parts[1]), parts[2]
	}
	// Refuse a sign and leading zeros: the layout never writes them.
	var err error
	origin.Fence, err = strconv.ParseInt(fence, 10, 64)
	if err != nil || origin.Fence < 1 || strconv.FormatInt(origin.Fence, 10) != fence || origin.Unit == "" {
		return Origin{}, false
	}
	return origin, true
}
