package synth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// goldenDigest is the SHA-256 of the population of 20 patients with seed 7. Update it only for an intended change of
// the generator, because such a change alters every existing population.
const goldenDigest = "d53180486daa16b9f7e2b5730c52059a7925559e09959f6f2c737b7d4225fb80"

func generated(t *testing.T, cfg Config) (string, Summary) {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "population")
	}
	summary, err := Generate(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Dir, summary
}

// digest covers the names and the contents of all files of a folder.
func digest(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	sum := sha256.New()
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(sum, "%s %d\n", filepath.Base(name), len(content))
		sum.Write(content)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// lines returns the lines of a type, over all its files in their order.
func lines(t *testing.T, dir, typ string) [][]byte {
	t.Helper()
	names := []string{filepath.Join(dir, typ+".ndjson")}
	rolled, err := filepath.Glob(filepath.Join(dir, typ+".[0-9][0-9][0-9].ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, name := range append(names, rolled...) {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(content, []byte("\n")) {
			t.Fatalf("%s does not end with a newline", filepath.Base(name))
		}
		all = append(all, bytes.Split(content[:len(content)-1], []byte("\n"))...)
	}
	return all
}

func TestTheSameSeedGivesTheSameBytesOnAnyNumberOfProcessors(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for _, processors := range []int{1, 2, 7} {
		runtime.GOMAXPROCS(processors)
		dir, _ := generated(t, Config{Patients: 20, Seed: 7})
		if got := digest(t, dir); got != goldenDigest {
			t.Errorf("on %d processors: digest %s, want %s", processors, got, goldenDigest)
		}
	}
	other, _ := generated(t, Config{Patients: 20, Seed: 8})
	if digest(t, other) == goldenDigest {
		t.Error("another seed gives the same population")
	}
}

func TestAPatientIsTheSameInPopulationsOfAnySize(t *testing.T) {
	small, _ := generated(t, Config{Patients: 50, Seed: 3})
	large, _ := generated(t, Config{Patients: 83, Seed: 3})
	for k := range kinds {
		if k == groupKind {
			continue // groups grow with the population
		}
		few, many := lines(t, small, k.String()), lines(t, large, k.String())
		if len(few) > len(many) {
			t.Fatalf("%s: %d lines for 50 patients, %d for 83", k, len(few), len(many))
		}
		for i := range few {
			if !bytes.Equal(few[i], many[i]) {
				t.Fatalf("%s line %d differs between populations of 50 and 83 patients", k, i+1)
			}
		}
	}
}

func TestFilesRollOverBetweenLines(t *testing.T) {
	const limit = 100_000
	whole, one := generated(t, Config{Patients: 30, Seed: 5})
	rolled, many := generated(t, Config{Patients: 30, Seed: 5, MaxFileBytes: limit})
	if many.Files <= one.Files {
		t.Fatalf("%d files with a limit of %d bytes, %d without", many.Files, limit, one.Files)
	}
	if many.Bytes != one.Bytes || many.Resources != one.Resources {
		t.Errorf("%d bytes, %d resources rolled; %d, %d whole", many.Bytes, many.Resources, one.Bytes, one.Resources)
	}
	for k := range kinds {
		if !slices.EqualFunc(lines(t, whole, k.String()), lines(t, rolled, k.String()), bytes.Equal) {
			t.Errorf("%s: rolling over changed the lines", k)
		}
	}
	names, err := filepath.Glob(filepath.Join(rolled, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != many.Files {
		t.Errorf("%d files, summary says %d", len(names), many.Files)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) > limit && bytes.Count(content, []byte("\n")) > 1 {
			t.Errorf("%s has %d bytes in several lines, limit %d", filepath.Base(name), len(content), limit)
		}
	}
}

func TestALineLongerThanTheLimitHasAFileOfItsOwn(t *testing.T) {
	whole, _ := generated(t, Config{Patients: 2, Seed: 5})
	rolled, summary := generated(t, Config{Patients: 2, Seed: 5, MaxFileBytes: 1})
	if int64(summary.Files) != summary.Resources {
		t.Errorf("%d files for %d resources", summary.Files, summary.Resources)
	}
	if !slices.EqualFunc(lines(t, whole, "Group"), lines(t, rolled, "Group"), bytes.Equal) {
		t.Error("the groups differ")
	}
}

func TestTheSummaryCountsWhatIsThere(t *testing.T) {
	progress := []int{}
	dir, summary := generated(t, Config{
		Patients: 9, Seed: 1, Progress: func(done int) { progress = append(progress, done) },
	})
	if want := []int{2, 4, 6, 8, 9}; !slices.Equal(progress, want) {
		t.Errorf("progress %v, want %v", progress, want)
	}
	var resources, size int64
	for k := range kinds {
		all := lines(t, dir, k.String())
		resources += int64(len(all))
		for _, one := range all {
			size += int64(len(one)) + 1
		}
		if summary.Types[k.String()] != int64(len(all)) {
			t.Errorf("%s: summary says %d, file holds %d", k, summary.Types[k.String()], len(all))
		}
	}
	if summary.Resources != resources || summary.Bytes != size {
		t.Errorf("summary says %d resources of %d bytes, files hold %d of %d",
			summary.Resources, summary.Bytes, resources, size)
	}
}

func TestTheShapeOfAPopulation(t *testing.T) {
	const patients = 400
	dir, summary := generated(t, Config{Patients: patients, Seed: 11})
	perPatient := summary.Resources / patients
	if perPatient < 250 || perPatient > 400 {
		t.Errorf("%d resources a patient, want 250 to 400", perPatient)
	}
	average := summary.Bytes / summary.Resources
	if average < 1000 || average > 1300 {
		t.Errorf("%d bytes a resource, want 1000 to 1300", average)
	}
	counts := map[string]int{}
	for _, encounter := range lines(t, dir, "Encounter") {
		_, subject, found := bytes.Cut(encounter, []byte(`"subject":{"reference":"`))
		if !found {
			t.Fatal("an Encounter without a subject")
		}
		counts[string(subject[:len("Patient/")+36])]++
	}
	perVisit := float64(summary.Resources) / float64(summary.Types["Encounter"])
	spread := slices.Sorted(maps.Values(counts))
	if fewest := perVisit * float64(spread[0]); fewest > 50 {
		t.Errorf("the smallest record has about %.0f resources, want a few", fewest)
	}
	if most := perVisit * float64(spread[len(spread)-1]); most < 2000 {
		t.Errorf("the largest record has about %.0f resources, want thousands", most)
	}
	t.Logf("%d resources a patient, %d bytes each; largest record about %.0f resources; %v",
		perPatient, average, perVisit*float64(spread[len(spread)-1]), summary.Types)
}

func TestABadConfigIsRefusedByName(t *testing.T) {
	good := Config{Patients: 1, Dir: "x"}
	for field, spoil := range map[string]func(*Config){
		"Patients":     func(c *Config) { c.Patients = 0 },
		"Dir":          func(c *Config) { c.Dir = "" },
		"Groups":       func(c *Config) { c.Groups = -1 },
		"MaxFileBytes": func(c *Config) { c.MaxFileBytes = -1 },
	} {
		cfg := good
		spoil(&cfg)
		_, err := Generate(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("bad %s: error %v does not name it", field, err)
		}
	}
	if _, err := Generate(t.Context(), Config{}); err == nil ||
		!strings.Contains(err.Error(), "Patients") || !strings.Contains(err.Error(), "Dir") {
		t.Errorf("two bad fields: error %v does not name both", err)
	}
}

func TestPopulationsAreNotMixed(t *testing.T) {
	for _, name := range []string{"Observation.ndjson", "Patient.001.ndjson", "Patient.ndjson.gz"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Generate(t.Context(), Config{Patients: 1, Dir: dir})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("folder with %s: error %v does not name the file", name, err)
		}
		if left := entries(t, dir); !slices.Equal(left, []string{name}) {
			t.Errorf("folder with %s holds %v afterwards", name, left)
		}
	}

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README.md"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	generated(t, Config{Patients: 1, Dir: dir}) // other files are allowed
}

func TestAnUnfinishedRunIsNotOverwritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, partialName), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Generate(t.Context(), Config{Patients: 1, Dir: dir})
	if err == nil || !strings.Contains(err.Error(), partialName) {
		t.Errorf("error %v does not name %s", err, partialName)
	}
	if left := entries(t, dir); !slices.Equal(left, []string{partialName}) {
		t.Errorf("folder holds %v afterwards", left)
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	_, err := Generate(ctx, Config{Patients: 1_000_000, Dir: dir, Progress: func(done int) {
		seen = done
		if left := entries(t, dir); !slices.Equal(left, []string{partialName}) {
			t.Errorf("during the run the folder has %v", left)
		}
		cancel()
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if seen > 100 {
		t.Errorf("%d patients were written after the cancel", seen)
	}
	if left := entries(t, dir); len(left) != 0 {
		t.Errorf("folder holds %v afterwards", left)
	}

	late, cancelLate := context.WithCancel(t.Context())
	defer cancelLate()
	_, err = Generate(late, Config{Patients: blockPatients, Dir: dir, Progress: func(int) { cancelLate() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled after the last patient: error %v, want context.Canceled", err)
	}
	if left := entries(t, dir); len(left) != 0 {
		t.Errorf("folder holds %v afterwards", left)
	}
}

func TestAFailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	out, err := newOutput(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.write(patientKind, []byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	if err := out.files[patientKind].handle.Close(); err != nil { // the disk is gone
		t.Fatal(err)
	}
	if err := out.publish(); err == nil {
		t.Error("publish did not report the failed write")
	}
	if left := entries(t, dir); len(left) != 0 {
		t.Errorf("folder holds %v afterwards", left)
	}
}

func TestPatientFilesAppearLast(t *testing.T) {
	dir := t.TempDir()
	out, err := newOutput(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []kind{patientKind, observationKind} {
		if err := out.write(k, []byte("{}\n")); err != nil {
			t.Fatal(err)
		}
	}
	// The move of Patient.ndjson cannot succeed: a folder has its name. The Observations have moved by then.
	if err := os.MkdirAll(filepath.Join(dir, "Patient.ndjson", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := out.publish(); err == nil {
		t.Error("publish did not report the failed move")
	}
	if left := entries(t, dir); !slices.Equal(left, []string{"Patient.ndjson"}) {
		t.Errorf("folder holds %v afterwards, want what was there before", left)
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(found))
	for _, entry := range found {
		names = append(names, entry.Name())
	}
	return names
}

func BenchmarkGenerate(b *testing.B) {
	const patients = 2000
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "population")
		summary, err := Generate(b.Context(), Config{Patients: patients, Seed: 1, Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(summary.Bytes)
		b.ReportMetric(float64(summary.Resources)/patients, "resources/patient")
		b.ReportMetric(float64(summary.Bytes)/float64(summary.Resources), "bytes/resource")
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFill measures a single worker without the disk, with the same patients in each round.
func BenchmarkFill(b *testing.B) {
	pool := newPool(1)
	work := &block{next: 64}
	for b.Loop() {
		size := 0
		work.fill(b.Context(), pool)
		for k := range kinds {
			size += len(work.lines[k].buf)
			work.lines[k].buf = work.lines[k].buf[:0]
		}
		b.SetBytes(int64(size))
	}
}
