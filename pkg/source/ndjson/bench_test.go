package ndjson

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
)

// population writes observations of the patients in the given order and returns the folder and the sorted ids.
func population(b *testing.B, people, each, size int, byPatient bool) (dir string, ids []string) {
	b.Helper()
	dir = b.TempDir()
	file, err := os.Create(filepath.Join(dir, "Observation.ndjson"))
	must(b, err)
	w := bufio.NewWriterSize(file, 1<<20)
	for i := range people {
		ids = append(ids, fmt.Sprintf("%08x-0000-4000-8000-%012x", i*2654435761%(1<<32), i))
	}
	order := rand.New(rand.NewPCG(1, 2)).Perm(people * each)
	if byPatient {
		slices.Sort(order)
	}
	filler := strings.Repeat(`{"system":"http://loinc.org","code":"8480-6","display":"Systolic"},`, max(size-200, 0)/68)
	for _, n := range order {
		fmt.Fprintf(w, `{"resourceType":"Observation","id":"%08x-0000-4000-9000-%012x","meta":{"lastUpdated":`+
			`"2024-01-01T00:00:00Z"},"subject":{"reference":"Patient/%s"},"code":[%s{}]}`+"\n", n, n, ids[n/each], filler)
	}
	must(b, errors.Join(w.Flush(), file.Close()))
	slices.Sort(ids)
	return dir, ids
}

// BenchmarkOpen measures the speed of indexing and the memory of the index in B/resource: at the end, and at the peak
// while it was built, garbage included.
func BenchmarkOpen(b *testing.B) {
	for name, size := range map[string]int{"lines of 200 B": 200, "lines of 1300 B": 1300} {
		b.Run(name, func(b *testing.B) {
			const people, each = 2500, 400
			dir, _ := population(b, people, each, size, true)
			for b.Loop() {
				runtime.GC()
				before := heap()
				stop, most := make(chan struct{}), make(chan uint64)
				go func() {
					var peak uint64
					tick := time.NewTicker(time.Millisecond)
					defer tick.Stop()
					for {
						peak = max(peak, heap())
						select {
						case <-stop:
							most <- peak
							return
						case <-tick.C:
						}
					}
				}()
				src, err := Open(b.Context(), Config{Dir: dir, Limits: source.Limits{MaxLine: 1 << 28, MaxReferences: 1000}})
				close(stop)
				peak := <-most
				must(b, err)
				runtime.GC()
				runtime.GC() // a sync.Pool is empty after the second
				b.ReportMetric(float64(heap()-before)/(people*each), "index-B/resource")
				b.ReportMetric(float64(peak-before)/(people*each), "peak-B/resource")
				sizes, err := src.Sizes(b.Context())
				must(b, errors.Join(err, src.Close()))
				b.SetBytes(sizes.Types["Observation"].Bytes)
			}
		})
	}
}

func heap() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// BenchmarkForPatients reads all patients, and 100 of many (pitfall 24: the cost follows the cohort), from a file
// sorted by patient and from a shuffled one.
func BenchmarkForPatients(b *testing.B) {
	const people, each = 4000, 100
	for name, byPatient := range map[string]bool{"by patient": true, "shuffled": false} {
		dir, ids := population(b, people, each, 1300, byPatient)
		src := open(b, dir, Config{})
		var sparse []string
		for i := 0; i < people; i += people / 100 {
			sparse = append(sparse, ids[i])
		}
		for slice, patients := range map[string][]string{"all": ids, "100": sparse} {
			b.Run(name+"/"+slice, func(b *testing.B) {
				var resources, bytes int64
				for b.Loop() {
					q := source.Query{Type: "Observation", Patients: patients}
					err := src.ForPatients(b.Context(), q, func(r source.Resource) error {
						resources++
						bytes += int64(len(r.Body))
						return nil
					})
					must(b, err)
				}
				if resources != int64(b.N*len(patients)*each) {
					b.Fatalf("%d resources were yielded", resources)
				}
				b.SetBytes(bytes / int64(b.N))
				b.ReportMetric(float64(resources)/b.Elapsed().Seconds(), "resources/s")
			})
		}
	}
}

func BenchmarkSubjects(b *testing.B) {
	sourcetest.BenchmarkSubjects(b, func(b *testing.B, files map[string][]byte) source.Source {
		return open(b, folder(b, files), Config{Limits: source.Limits{MaxReferences: 100_000}})
	})
}
