package jobstore_test

import (
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// Commits count for their job and for all jobs, once for each unit.
func TestTotals(t *testing.T) {
	overBoth(t, func(t *testing.T, s *jobstore.Store, c *testenv.Clock, _ string) {
		ctx := t.Context()
		id, other := planned(t, s, c), planned(t, s, c)
		if _, err := s.Issue(ctx, id, 10); err != nil {
			t.Fatal(err)
		}
		large := claim(t, s, id, "Large-00000", export.KindExport, 1)
		result := export.Result{Files: []export.File{
			{Name: "a", Count: 3, Bytes: 300, Stored: 30}, {Name: "b", Count: 4, Bytes: 400, Stored: 40},
			{Name: "e", Error: true, Count: 1, Bytes: 100, Stored: 10},
		}, Attachments: []export.Pack{{Name: "p", Count: 5, Stored: 1000}}}
		must(t, s.Commit(ctx, large, jobstore.Commit{Result: result, Next: sealUnit}))
		must(t, s.Commit(ctx, large, jobstore.Commit{Result: result, Next: sealUnit})) // the first answer was lost
		small := claim(t, s, id, "Small-00000", export.KindExport, 1)
		must(t, s.Commit(ctx, small, jobstore.Commit{Result: export.Result{Failure: "gone"}, Next: sealUnit}))

		want := jobstore.Totals{Resources: 7, Bytes: 700, Stored: 1080}
		of, err := s.Totals(ctx, []export.JobID{other, id, export.NewJobID()})
		if err != nil || len(of) != 3 || of[1] != want || of[0] != (jobstore.Totals{}) || of[2] != (jobstore.Totals{}) {
			t.Errorf("totals of three jobs: %+v %v, want %+v in the middle", of, err, want)
		}
		must(t, s.Remove(ctx, id))
		if of, err = s.Totals(ctx, []export.JobID{id}); err != nil || of[0] != (jobstore.Totals{}) {
			t.Errorf("totals of a purged job: %+v %v", of, err)
		}
		if all, err := s.Committed(ctx); err != nil || all != want {
			t.Errorf("over all jobs: %+v %v, want %+v", all, err, want)
		}
	})
}
