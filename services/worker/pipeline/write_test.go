package pipeline_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/gzipblocks"
)

func TestFilesRollOver(t *testing.T) { // pitfalls 6, 13
	t.Parallel()
	var all []string
	for i := range 8 {
		all = append(all, observation(i, 1+i%3), condition(i, 1))
	}
	size := int64(len(observation(0, 1))) + 1
	for name, row := range map[string]struct {
		fileBytes int64
		files     int // of Observation
	}{
		"a line a file":      {1, 8},
		"exactly one line":   {size, 8},
		"a byte more":        {size + 1, 4},
		"exactly four lines": {4 * size, 2},
		"exactly everything": {8 * size, 1},
		"no limit reached":   {1 << 30, 1},
	} {
		t.Run(name, func(t *testing.T) {
			fx := newFixture(t, holding(t, all...), members...)
			fx.cfg.FileBytes = row.fileBytes
			got := fx.export("Observation", "Condition", "Flag")
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
			fx.wantMetric(16, "sluice_worker_resources_total")
			fx.wantMetric(float64(8*size), "sluice_worker_ndjson_bytes_total", "Observation")
		})
	}
}

func TestLinesAreWrittenAsTheyAre(t *testing.T) {
	t.Parallel()
	odd := []string{
		observation("a", 1, `,"note":[{"text":"ü 😀 \u0000 \\ \/ <&>"}]`),
		`{ "id" : "obs-b" ,	"resourceType":"Observation","subject":{"reference":"Patient\/pat-1"},"valueDecimal":1.00 }`,
		observation("c", 1, `,"note":[{"text":"`+strings.Repeat("long ", 200_000)+`"}]`),
	}
	got := newFixture(t, holding(t, odd...), members...).export("Observation")
	got.wantLines(t, odd...)
}

// A range of a file is read from its own blocks (R11): the index leads to them, and a file of one block has none.
func TestAFileIsReadFromItsMiddle(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 3 {
		all = append(all, observation(i, 1, `,"note":[{"text":"`+strings.Repeat("long ", 200_000)+`"}]`))
	}
	fx := newFixture(t, holding(t, append(all, condition(1, 1))...), members...)
	got := fx.export("Observation", "Condition")
	got.wantLines(t, append(all, condition(1, 1))...)
	for _, file := range got.files {
		if file.Type == "Condition" {
			if file.Blocks != "" {
				t.Errorf("a file of %d bytes has the index %s", file.Bytes, file.Blocks)
			}
			continue
		}
		whole := strings.Join(fx.readFile(file), "\n") + "\n"
		for _, start := range []int64{0, file.Bytes / 2, file.Bytes - 1} {
			place, err := gzipblocks.Find(file.Blocks, start, 1, file.Stored)
			if err != nil {
				t.Fatal(err)
			}
			object, err := fx.objects.Open(t.Context(), file.Key, place.Offset, place.Length)
			if err != nil {
				t.Fatal(err)
			}
			part, err := io.ReadAll(io.LimitReader(gzipblocks.NewReader(object), place.Skip+1))
			if err := errors.Join(err, object.Close()); err != nil || part[place.Skip] != whole[start] {
				t.Errorf("byte %d: %v", start, err)
			}
		}
	}
}

func TestTheScaffoldingIsGoneWhenAJobIsSealed(t *testing.T) {
	t.Parallel()
	all, _ := network(t)
	fx := newFixture(t, all, members...)
	got := fx.export(everyTravelling...)
	for _, prefix := range export.Scaffolding(got.job.ID) {
		if n, err := fx.objects.DeletePrefix(t.Context(), prefix); err != nil || n != 0 {
			t.Errorf("%d objects with patient ids are left: %v", n, err)
		}
	}
}
