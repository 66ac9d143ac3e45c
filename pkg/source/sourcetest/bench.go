package sourcetest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// BenchmarkSubjects reads one line about n patients, all of them requested. The cost for a subject must not grow with n.
func BenchmarkSubjects(b *testing.B, load func(b *testing.B, files map[string][]byte) source.Source) {
	for _, form := range []string{"Patient/", "urn:uuid:"} {
		for _, n := range []int{100, 1_000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", strings.Trim(form, "/:"), n), func(b *testing.B) {
				var ids, text, actors []string
				for i := range n {
					ids = append(ids, fmt.Sprintf("p%05d", i))
					text = append(text, resource("Patient", ids[i]))
					actors = append(actors, `{"actor":{"reference":"`+form+ids[i]+`"}}`)
				}
				participants := `"participant":[` + strings.Join(actors, ",") + `]`
				src := load(b, lines(append(text, resource("Appointment", "a", participants))...))
				for b.Loop() {
					yielded := 0
					q := source.Query{Type: "Appointment", Patients: ids}
					must(b, src.ForPatients(b.Context(), q, func(source.Resource) error { yielded++; return nil }))
					if yielded != 1 {
						b.Fatalf("%d resources were yielded", yielded)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/subject")
			})
		}
	}
}
