package pgdir_test

import (
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
)

// manyPatients is the number of patients in the grant of the benchmarks.
const manyPatients = 1_000_000

// grantOfMany returns a grant that lists the patients.
func grantOfMany(b *testing.B) (access *pgdir.Access, patients []string) {
	b.Helper()
	access, patients = pgdir.NewAccess(open(b)), numbered(manyPatients)
	must(b, access.Set(b.Context(), everything(owner), these(patients...)))
	b.ReportAllocs()
	return access, patients
}

// BenchmarkGrant measures what a kick-off reads.
func BenchmarkGrant(b *testing.B) {
	access, _ := grantOfMany(b)
	for b.Loop() {
		_, err := access.Grant(b.Context(), owner)
		must(b, err)
	}
}

// BenchmarkPatients measures what the plan of a group with as many members reads.
func BenchmarkPatients(b *testing.B) {
	access, patients := grantOfMany(b)
	before, most := heap(), uint64(0)
	for b.Loop() {
		must(b, access.Patients(b.Context(), owner, func(_ directory.Grant, filter *directory.PatientFilter) error {
			for n, patient := range patients {
				_, err := filter.Includes(patient)
				must(b, err)
				if n == manyPatients/2 {
					b.StopTimer()
					most = max(most, heap())
					b.StartTimer()
				}
			}
			return nil
		}))
	}
	b.ReportMetric(float64(most-min(before, most)), "heap-B")
}

// BenchmarkUnknown measures what a kick-off reads that names 3000 of a million members, half of them unknown.
func BenchmarkUnknown(b *testing.B) {
	pool := open(b)
	exec(b, pool, "INSERT INTO directory_group (id, exportable) VALUES ('g', true)")
	exec(b, pool, "INSERT INTO directory_member (group_id, patient) SELECT 'g', unnest($1::text[])", numbered(manyPatients))
	exec(b, pool, "ANALYZE directory_member")
	var asked []string
	for n, patient := range numbered(manyPatients) {
		if n%(manyPatients/1500) == 0 {
			asked = append(asked, patient, patient+"x")
		}
	}
	groups := pgdir.NewGroups(pool, now)
	for b.Loop() {
		unknown, err := groups.Unknown(b.Context(), "g", asked)
		if err != nil || 2*len(unknown) != len(asked) {
			b.Fatalf("%d of %d are unknown, error %v", len(unknown), len(asked), err)
		}
	}
}
