package export_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// FuzzParseKey: a parsed key has the prefix of its job, and a unit and a fence that the layout can write. It is
// scaffolding exactly if it is below a scaffolding prefix.
func FuzzParseKey(f *testing.F) {
	job := export.NewJobID()
	for _, key := range []string{
		export.FileKey(job, "Patient", export.FileName("Patient-00000", 7, "Patient", 2)), export.ManifestKey(job, 4),
		export.CohortPrefix(job, 2) + "chunk-000001", export.ReferencesPrefix(job, "Claim-00000", 3) + "round-0/contents",
		export.AskedKey(job), export.JobPrefix(job), "jobs//", "jobs/../_cohort/1/x", export.JobPrefix(job) + "_manifest/+1.ndjson",
		export.JobPrefix(job) + "_cohort/-1/x", export.JobPrefix(job) + "Patient/a/b.c/d.007.0.ndjson.gz",
		export.PackKey(job, export.PackName("Media-00000", 1, "Media", 3)), export.JobPrefix(job) + "_references/.1/x", export.JobPrefix(job) + "_manifest/99999999999999999999.ndjson",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		origin, ours := export.ParseKey(key)
		if !ours {
			return
		}
		if _, err := export.ParseJobID(string(origin.Job)); err != nil || !strings.HasPrefix(key, export.JobPrefix(origin.Job)) {
			t.Fatalf("%q: job %q", key, origin.Job)
		}
		if key == export.AskedKey(origin.Job) {
			if origin != (export.Origin{Job: origin.Job, Unit: export.PlanUnit, Scaffolding: true}) {
				t.Errorf("%q: %+v", key, origin)
			}
			return
		}
		if origin.Unit == "" || strings.ContainsAny(string(origin.Unit), "/.") || origin.Fence < 1 {
			t.Errorf("%q: unit %q, fence %d", key, origin.Unit, origin.Fence)
		}
		scaffolding := false
		for _, prefix := range export.Scaffolding(origin.Job) {
			scaffolding = scaffolding || strings.HasPrefix(key, prefix)
		}
		if origin.Scaffolding != scaffolding {
			t.Errorf("%q: scaffolding %t", key, origin.Scaffolding)
		}
		_, name, _ := strings.Cut(strings.TrimPrefix(key, export.JobPrefix(origin.Job)), "/")
		if strings.Contains(name, fmt.Sprintf(".%s.%d.", origin.Unit, origin.Fence)) {
			return // a file
		}
		for _, prefix := range []string{
			export.CohortPrefix(origin.Job, origin.Fence), export.ReferencesPrefix(origin.Job, origin.Unit, origin.Fence),
			strings.TrimSuffix(export.ManifestKey(origin.Job, origin.Fence), ".ndjson"),
		} {
			if strings.HasPrefix(key, strings.TrimSuffix(prefix, "/")) {
				return
			}
		}
		t.Errorf("the layout does not write %q, parsed as %+v", key, origin)
	})
}

// FuzzParseJobID compares the result with the definition: exactly 26 characters of a to z and 2 to 7.
func FuzzParseJobID(f *testing.F) {
	good := string(export.NewJobID())
	for _, text := range []string{
		"", "x", good, good + "\n", " " + good, good + "a", good[1:], strings.ToUpper(good), good[:25] + "1", "../" + good[3:],
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		want := len(text) == 26 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyz234567") == ""
		for _, char := range []byte(text) {
			want = want && (char >= 'a' && char <= 'z' || char >= '2' && char <= '7')
		}
		id, err := export.ParseJobID(text)
		if (err == nil) != want || err == nil && string(id) != text || err != nil && id != "" {
			t.Errorf("%q: %q, %v", text, id, err)
		}
		if err != nil && len(text) > len("job id: not found") && strings.Contains(err.Error(), text) {
			t.Errorf("the error contains %q", text)
		}
	})
}
