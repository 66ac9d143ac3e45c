package pipeline_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestFilesRollOver(t *testing.T) { // pitfalls 6, 13
	var all []string
	for i := range 100 {
		all = append(all, observation(fmt.Sprintf("%03d", i), 1+i%3), condition(i, 1))
	}
	size := int64(len(observation("000", 1))) + 1
	for name, row := range map[string]struct {
		fileBytes int64
		files     int // of Observation
	}{
		"a line a file":      {1, 100},
		"exactly one line":   {size, 100},
		"a byte more":        {size + 1, 50},
		"exactly ten lines":  {10 * size, 10},
		"exactly everything": {100 * size, 1},
		"no limit reached":   {1 << 30, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newFixture(t, holding(t, all...), members...)
			b.cfg.FileBytes = row.fileBytes
			got := b.export("Observation", "Condition", "Flag")
			got.wantLines(t, all...)
			files := 0
			for _, file := range got.files {
				if file.Type == "Observation" {
					files++
				}
				if file.Bytes >= row.fileBytes+size {
					t.Errorf("%s has %d bytes, more than a line beyond %d", file.Name, file.Bytes, row.fileBytes)
				}
				origin, ok := export.ParseKey(file.Key)
				if !ok || origin.Job != got.job.ID || !strings.HasPrefix(file.Name, file.Type+".") {
					t.Errorf("the key %s leads to %+v", file.Key, origin)
				}
			}
			if files != row.files {
				t.Errorf("%d files of Observation, want %d", files, row.files)
			}
			b.wantMetric(200, "sluice_worker_resources_total")
			b.wantMetric(float64(100*size), "sluice_worker_ndjson_bytes_total", "Observation")
		})
	}
}

func TestLinesAreWrittenAsTheyAre(t *testing.T) {
	odd := []string{
		observation("a", 1, `,"note":[{"text":"ü 😀 \u0000 \\ \/ <&>"}]`),
		`{ "id" : "obs-b" ,	"resourceType":"Observation","subject":{"reference":"Patient\/pat-1"},"valueDecimal":1.00 }`,
		observation("c", 1, `,"note":[{"text":"`+strings.Repeat("long ", 200_000)+`"}]`),
	}
	got := newFixture(t, holding(t, odd...), members...).export("Observation")
	got.wantLines(t, odd...)
}

func TestTheScaffoldingIsGoneWhenAJobIsSealed(t *testing.T) {
	all, _ := network(t)
	b := newFixture(t, all, members...)
	got := b.export(everyTravelling...)
	for _, prefix := range export.Scaffolding(got.job.ID) {
		if n, err := b.objects.DeletePrefix(t.Context(), prefix); err != nil || n != 0 {
			t.Errorf("%d objects with patient ids are left: %v", n, err)
		}
	}
}
