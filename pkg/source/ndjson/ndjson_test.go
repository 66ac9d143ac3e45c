package ndjson

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestContractPlain(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, files map[string][]byte) source.Source {
		return open(t, folder(t, files), Config{batchSize: 2})
	})
}

func TestContractGzipped(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, files map[string][]byte) source.Source {
		zipped := map[string][]byte{}
		for name, text := range files {
			zipped[name+".gz"] = zip(t, text)
		}
		spool := t.TempDir()
		src := open(t, folder(t, zipped), Config{SpoolDir: spool})
		if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
			t.Errorf("the spool still has %d names (%v)", len(left), err)
		}
		return src
	})
}

func TestSynthea(t *testing.T) {
	dir, ok := testenv.Synthea(t)
	if !ok {
		return // not part of the repository; required in CI
	}
	sourcetest.RunSynthea(t, dir, open(t, dir, Config{}))
}

func folder(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, text, 0o600))
	}
	return dir
}

func zip(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(text)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func open(t testing.TB, dir string, config Config) *Source {
	t.Helper()
	config.Dir = dir
	src, err := Open(t.Context(), config)
	must(t, err)
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

func observation(id, patient, more string) string {
	return fmt.Sprintf(`{"resourceType":"Observation","id":%q,"subject":{"reference":"Patient/%s"}%s}`,
		id, patient, more)
}

// read returns the ids of the observations of patient a and of patient b.
func read(t testing.TB, src *Source) ([]string, error) {
	var ids []string
	q := source.Query{Type: "Observation", Patients: []string{"a", "b"}}
	err := src.ForPatients(t.Context(), q, func(r source.Resource) error {
		ids = append(ids, r.ID)
		return nil
	})
	slices.Sort(ids)
	return ids, err
}

func problems(t testing.TB, src *Source) []source.Problem {
	t.Helper()
	var all []source.Problem
	err := src.Problems(t.Context(), []string{"Observation"}, func(p source.Problem) error {
		all = append(all, p)
		return nil
	})
	must(t, err)
	return all
}

func TestProblemsHaveTheirPlace(t *testing.T) {
	src := open(t, folder(t, map[string][]byte{
		"b/Observation.ndjson.gz": zip(t, []byte("\ufeff{\r\n\n"+observation("1", "a", "")+"\n"+
			observation("not/an/id", "a", "")+"\n{\"resourceType\":\"Nothing\",\"id\":\"1\"}\n")),
		"a.ndjson": []byte(strings.Repeat(" \n", blockSize) + "oops\n" + observation("2", "b", "") + "\n[]"),
	}), Config{})
	want := []source.Problem{
		{Type: "", Place: fmt.Sprintf("a.ndjson line %d", blockSize+1), What: "not a JSON object"},
		{Type: "", Place: fmt.Sprintf("a.ndjson line %d", blockSize+3), What: "not a JSON object"},
		{Type: "", Place: "b/Observation.ndjson.gz line 1", What: "not valid JSON at byte 1: a key is missing"},
		{Type: "Observation", Place: "b/Observation.ndjson.gz line 4", What: "no id, or not a FHIR id"},
		{Type: "", Place: "b/Observation.ndjson.gz line 5", What: "not a resource type of FHIR R4"},
	}
	if got := problems(t, src); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"1", "2"}) {
		t.Errorf("got %v (%v)", ids, err)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	src := open(t, folder(t, map[string][]byte{
		"a.ndjson": []byte(strings.Repeat("?\n", maxProblems+5) + observation("1", "a", "")),
	}), Config{})
	got := problems(t, src)
	if len(got) != maxProblems+1 || got[maxProblems].What != "5 more lines cannot be served" {
		t.Errorf("got %d problems, the last is %+v", len(got), got[len(got)-1])
	}
}

// TestTooLongLines: a line of any length needs bounded memory (pitfall 6).
func TestTooLongLines(t *testing.T) {
	long := strings.Repeat(" ", 3*blockSize)
	const limit = 2*blockSize + 100
	for name, zipped := range map[string]bool{"a.ndjson": false, "a.ndjson.gz": true} {
		text := []byte(observation("1", "a", "") + "\n" + observation("2", "a", `,"x":"`+long+`"`) + "\n" +
			observation("3", "a", `,"x":"`+long[:blockSize+10]+`"`) + "\n" + observation("4", "b", `,"x":"`+long+`"`) +
			"\n\n?\n" + observation("5", "b", `,"x":"`+long+long+`"`))
		if zipped {
			text = zip(t, text)
		}
		src := open(t, folder(t, map[string][]byte{name: text}), Config{maxLine: limit})
		if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"1", "3"}) {
			t.Errorf("%s: got %v (%v), want 1 and 3", name, ids, err)
		}
		var places []string
		for _, p := range problems(t, src) {
			places = append(places, strings.TrimPrefix(p.Place, name+" line "))
		}
		if !slices.Equal(places, []string{"2", "4", "6", "7"}) {
			t.Errorf("%s: problems at lines %v, want 2, 4, 6 and 7", name, places)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	whole := zip(t, []byte(observation("1", "a", "")))
	for name, files := range map[string]map[string][]byte{
		"gzip cut off": {"a.ndjson.gz": whole[:len(whole)-9]},
		"no gzip":      {"a.ndjson.gz": []byte(observation("1", "a", ""))},
	} {
		if src, err := Open(t.Context(), Config{Dir: folder(t, files)}); err == nil {
			t.Errorf("%s: no error (Close: %v)", name, src.Close())
		}
	}
	if _, err := Open(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	dir := folder(t, map[string][]byte{"a.ndjson.gz": whole})
	if _, err := Open(t.Context(), Config{Dir: dir, SpoolDir: filepath.Join(dir, "none")}); err == nil {
		t.Error("no spool folder: no error")
	}
}

// TestChangedFiles: a changed line is never served, and Check reports a changed file (pitfall 34).
func TestChangedFiles(t *testing.T) {
	first, second := observation("1", "a", ""), observation("2", "a", "")
	const unnoticed = "another patient, same size and time" // by Check
	for name, change := range map[string]func(path string) error{
		"appended": func(path string) error {
			return os.WriteFile(path, []byte(first+"\n"+second+"\n\n"), 0o600)
		},
		"cut": func(path string) error { return os.Truncate(path, 10) },
		unnoticed: func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			err = os.WriteFile(path, []byte(observation("1", "x", "")+"\n"+second+"\n"), 0o600)
			return errors.Join(err, os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, map[string][]byte{"a.ndjson": []byte(first + "\n" + second + "\n")})
			src := open(t, dir, Config{})
			must(t, errors.Join(src.Check(t.Context()), change(filepath.Join(dir, "a.ndjson"))))
			if err := src.Check(t.Context()); !errors.Is(err, export.ErrUnavailable) && name != unnoticed {
				t.Errorf("check: %v, want ErrUnavailable", err)
			}
			ids, err := read(t, src)
			if !errors.Is(err, export.ErrUnavailable) || len(ids) > 0 {
				t.Errorf("got %v and %v, want nothing and ErrUnavailable", ids, err)
			}
		})
	}
	t.Run("replaced", func(t *testing.T) {
		dir := folder(t, map[string][]byte{"a.ndjson": []byte(first), "b.ndjson.gz": zip(t, []byte(second))})
		src := open(t, dir, Config{})
		other := folder(t, map[string][]byte{"x": []byte(observation("3", "a", ""))})
		for _, name := range []string{"a.ndjson", "b.ndjson.gz"} {
			must(t, os.Remove(filepath.Join(dir, name)))
			must(t, os.Link(filepath.Join(other, "x"), filepath.Join(dir, name)))
		}
		if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"1", "2"}) {
			t.Errorf("got %v (%v), want the opened file", ids, err)
		}
	})
}

func TestClosed(t *testing.T) {
	dir := folder(t, map[string][]byte{"a.ndjson": []byte(observation("1", "a", ""))})
	src, err := Open(t.Context(), Config{Dir: dir})
	must(t, err)
	for range 2 {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
	if ids, err := read(t, src); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("closed: got %v and %v", ids, err)
	}
}

func TestUnsortedIsRefused(t *testing.T) {
	src := open(t, t.TempDir(), Config{})
	for _, ids := range [][]string{{"b", "a"}, {"a", "a"}} {
		if err := src.ForPatients(t.Context(), source.Query{Type: "Observation", Patients: ids}, nil); err == nil {
			t.Errorf("patients %v: no error", ids)
		}
		if err := src.ByID(t.Context(), source.ByIDQuery{Type: "Location", IDs: ids}, nil); err == nil {
			t.Errorf("ids %v: no error", ids)
		}
	}
}

// TestManyBatches reads more resources of one and two patients than fit into a batch, each with an older version, in
// slices, from several files with lines of all lengths.
func TestManyBatches(t *testing.T) {
	const people, many = 30, 12_000
	line := func(i, day, one, other int, more string) string {
		return fmt.Sprintf(`{"resourceType":"Appointment","id":"%d","meta":{"lastUpdated":"2024-01-0%dT00:00:00Z"},`+
			`"participant":[{"actor":{"reference":"Patient/p%03d"}},{"actor":{"reference":"Patient/p%03d"}}]%s}`+"\n", i, day, one, other, more)
	}
	pair := func(i int) []int { return []int{i % people, (i%people + i%7) % people} }
	texts := map[string][]byte{}
	for i := range many {
		name, more := fmt.Sprintf("%d.ndjson", i%3), ""
		if i%500 == 0 {
			more = `,"x":"` + strings.Repeat("y", i*300) + `"`
		}
		texts[name] = append(texts[name], line(i, 1, 900, pair(i)[1], "")...)
		texts[name] = append(texts[name], line(i, 2, pair(i)[1], pair(i)[0], more)...)
	}
	src := open(t, folder(t, texts), Config{batchSize: 1000})
	var ids []string
	for i := range people {
		ids = append(ids, fmt.Sprintf("p%03d", i))
	}
	for _, size := range []int{people, 7, 1} {
		for slice := range slices.Chunk(ids, size) {
			seen := map[string]bool{}
			err := src.ForPatients(t.Context(), source.Query{Type: "Appointment", Patients: slice}, func(r source.Resource) error {
				var i int
				if _, err := fmt.Sscan(r.ID, &i); err != nil {
					return err
				}
				want := []string{ids[pair(i)[0]], ids[pair(i)[1]]}
				slices.Sort(want)
				if seen[r.ID] || !slices.Equal(r.Subjects, slices.Compact(want)) {
					return fmt.Errorf("resource %s twice or about %v, want %v", r.ID, r.Subjects, want)
				}
				seen[r.ID] = true
				return nil
			})
			must(t, err)
			want := 0
			for i := range many {
				if slices.ContainsFunc(pair(i), func(p int) bool { return slices.Contains(slice, ids[p]) }) {
					want++
				}
			}
			if len(seen) != want {
				t.Errorf("slices of %d: %d of %d were yielded", size, len(seen), want)
			}
		}
	}
	if sizes, err := src.Sizes(t.Context()); err != nil || sizes.Types["Appointment"].Resources != many {
		t.Errorf("sizes %+v (%v), want %d", sizes, err, many)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
