package ndjson

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
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
	config.MaxLine, config.MaxReferences = cmp.Or(config.MaxLine, 1<<28), cmp.Or(config.MaxReferences, 1000)
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

// leftOut returns what the source left out, such as "Observation malformed 2".
func leftOut(t testing.TB, src *Source) []string {
	t.Helper()
	list, err := src.LeftOut(t.Context())
	must(t, err)
	var all []string
	for _, l := range list {
		all = append(all, fmt.Sprint(l.Type, " ", l.Reason, " ", l.Count))
	}
	return all
}

// logged is a log of warnings: their message, place and count.
type logged struct{ bytes.Buffer }

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&l.Buffer, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestWhatIsLeftOutIsCountedAndLoggedWithItsPlace(t *testing.T) {
	var log logged
	src := open(t, folder(t, map[string][]byte{
		"b/Observation.ndjson.gz": zip(t, []byte("\ufeff{\"resourceType\"\r\n\n"+observation("1", "a", "")+"\n"+
			observation("not/an/id", "a", "")+"\n{\"resourceType\":\"Nothing\",\"id\":\"1\"}\n"+
			observation("3", "a", `,"x":[`+strings.Repeat(`{"reference":"#x"},`, 1000)+`{}]`))),
		"a.ndjson":   []byte(strings.Repeat(" \n", blockSize) + "oops\n" + observation("2", "b", "") + "\n[]"),
		"cut.ndjson": zip(t, []byte(observation("4", "a", "")+"\n"+random(1<<20)))[:300_000],
		"log.ndjson": []byte("{\"exportId\":\"e1\"}\n{}\n"), "notes.txt": nil,
		"x1.csv": nil, "x2.csv": nil, "x3.csv": nil, "x4.csv": nil, "x5.csv": nil, "x6.csv": nil,
		"o.ndjson": []byte("{\"resourceType\":\"OperationOutcome\",\"issue\":[]}"),
		"b.json":   []byte(`{"resourceType":"Bundle","entry":[{"request":{"method":"PATCH","url":"Patient/a"},"resource":{}}]}`),
	}), Config{Logger: log.logger()})
	want := []string{" malformed 2", " unknown_type 1", " unreadable_file 1", " unsupported_entry 1",
		"Observation malformed 1", "Observation too_many_references 1"}
	want[0] = " malformed 3"
	if got := leftOut(t, src); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, text := range []string{
		`file=log.ndjson lines=2`, `passed by" files=7 first="notes.txt, x1.csv, x2.csv, x3.csv, x4.csv"`, fmt.Sprintf(`reason=malformed count=3 what="not readable as a FHIR resource" first="a.ndjson line %d"`, blockSize+1),
		`type=Observation reason=malformed count=1 what="not readable as a FHIR resource" first="b/Observation.ndjson.gz line 4"`,
		`first="cut.ndjson: decompress: unexpected EOF"`, `first="b.json entry 1"`,
	} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log has no %s:\n%s", text, log.String())
		}
	}
	if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"1", "2", "4"}) {
		t.Errorf("got %v (%v)", ids, err)
	}
}

// TestWhatCannotBeOpenedIsCounted: files and subfolders without permission, and a file that is gone.
func TestWhatCannotBeOpenedIsCounted(t *testing.T) {
	if !testenv.AsNobody(t) {
		return
	}
	dir := folder(t, map[string][]byte{
		"a.ndjson": []byte(observation("1", "a", "")), "b.ndjson": []byte(observation("2", "a", "")),
		"c/c.ndjson": []byte(observation("3", "a", "")), "d.ndjson": []byte(observation("4", "a", "")),
		"e/e.ndjson": []byte(observation("5", "a", "")),
	})
	for name, mode := range map[string]os.FileMode{"b.ndjson": 0, "c": 0, "e": 0o600} {
		path := filepath.Join(dir, name)
		must(t, os.Chmod(path, mode))
		t.Cleanup(func() { must(t, os.Chmod(path, 0o700)) })
	}
	found, err := lines.InFolder(dir)
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "d.ndjson")))
	var log logged
	src, err := index(t.Context(), Config{Logger: log.logger(), Limits: source.Limits{MaxLine: 1000, MaxReferences: 10}}, found, nil)
	must(t, err)
	defer src.Close()
	if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"1"}) {
		t.Errorf("got %v (%v)", ids, err)
	}
	if got := leftOut(t, src); !slices.Equal(got, []string{" unreadable_file 4"}) {
		t.Errorf("left out %q", got)
	}
	if !strings.Contains(log.String(), "permission denied") {
		t.Errorf("logged %s", log.String())
	}
}

// random returns text that does not compress well, on one line.
func random(n int) string {
	var text strings.Builder
	for seed := uint32(1); text.Len() < n; seed = seed*1664525 + 1013904223 {
		fmt.Fprintf(&text, "%08x", seed)
	}
	return text.String()
}

// TestReferencesAreResolved: a folder with the two outputs of Synthea and a foreign base.
func TestReferencesAreResolved(t *testing.T) {
	bases, err := fhir.NewBases("https://ehr.example.org/fhir")
	must(t, err)
	src := open(t, folder(t, map[string][]byte{
		"Practitioner.ndjson": []byte(`{"resourceType":"Practitioner","id":"d","identifier":[{"system":"npi","value":"1"}]}`),
		"Patient.ndjson":      []byte(`{"resourceType":"Patient","id":"a"}` + "\n" + `{"resourceType":"Patient","id":"b","identifier":[{"value":"B"}]}`),
		"Observation.ndjson": []byte(observation("1", "a", `,"performer":[{"reference":"Practitioner?identifier=npi|1"}]`) + "\n" +
			strings.ReplaceAll(observation("2", "a", ""), "Patient/a", "urn:uuid:a") + "\n" +
			strings.ReplaceAll(observation("3", "a", ""), "Patient/a", "Patient?identifier=B") + "\n" +
			strings.ReplaceAll(observation("4", "a", ""), "Patient/a", "https://ehr.example.org/fhir/Patient/b") + "\n" +
			strings.ReplaceAll(observation("5", "a", ""), "Patient/a", "urn:uuid:gone") + "\n" +
			observation("6", "a", `,"performer":[{"reference":"Practitioner?identifier=npi|9"},{"reference":"https://x.example/Organization/o"}]`)),
		"Provenance.ndjson": []byte(`{"resourceType":"Provenance","id":"v","target":[{"reference":"urn:uuid:2"}]}`),
		"bundle.json": []byte(`{ "resourceType": "Bundle", "type": "transaction", "entry": [
			{ "fullUrl": "urn:uuid:x", "resource": { "resourceType": "Observation", "id": "7", "subject": { "reference": "urn:uuid:y" } } },
			{ "fullUrl": "urn:uuid:y", "resource": { "resourceType": "Patient", "id": "c" } } ] }`),
	}), Config{Bases: bases})
	bodies := map[string]string{}
	for typ, patients := range map[string][]string{"Observation": {"a", "b", "c"}, "Provenance": {"a"}} {
		must(t, src.ForPatients(t.Context(), source.Query{Type: typ, Patients: patients}, func(r source.Resource) error {
			bodies[r.Type+"/"+r.ID+" of "+strings.Join(r.Subjects, " ")] = string(r.Body)
			return nil
		}))
	}
	want := map[string]string{
		"Observation/1 of a": observation("1", "a", `,"performer":[{"reference":"Practitioner/d"}]`), "Observation/2 of a": observation("2", "a", ""),
		"Observation/3 of b": observation("3", "b", ""), "Observation/4 of b": observation("4", "b", ""),
		"Observation/6 of a": observation("6", "a", `,"performer":[{"reference":"Practitioner?identifier=npi|9"},{"reference":"https://x.example/Organization/o"}]`),
		"Observation/7 of c": `{"resourceType":"Observation","id":"7","subject":{"reference":"Patient/c"}}`,
		"Provenance/v of a":  `{"resourceType":"Provenance","id":"v","target":[{"reference":"Observation/2"}]}`,
	}
	if !maps.Equal(bodies, want) {
		t.Errorf("got %v\nwant %v", bodies, want)
	}
	if got := leftOut(t, src); !slices.Equal(got, []string{
		"Observation unresolved_patient 1", "Organization foreign_reference 1", "Practitioner unresolved_reference 1",
	}) {
		t.Errorf("left out %q", got)
	}
}

// TestDeletionsApplyToWhatPrecedesThem: the deleted folder of an export, and Bundles among other lines.
func TestDeletionsApplyToWhatPrecedesThem(t *testing.T) {
	deletion := func(id string) string {
		return `{"resourceType":"Bundle","id":"x","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Observation/` + id + `"}}]}` + "\n"
	}
	src := open(t, folder(t, map[string][]byte{
		"output/Observation.ndjson":    []byte(observation("1", "a", "") + "\n" + observation("2", "a", "") + "\n"),
		"deleted/1.Bundle.ndjson":      []byte(deletion("1") + deletion("gone")),
		"mixed.ndjson":                 []byte(deletion("3") + observation("3", "a", "") + "\n" + observation("4", "b", "") + "\n" + deletion("4") + strings.Replace(deletion("5"), "[{", `[{"resource":`+observation("6", "a", "")+`},{`, 1)),
		"later/Observation.ndjson":     []byte(observation("7", "a", "")),
		"later/deleted/Bundle.ndjson":  []byte(deletion("7")),
		"output/deleted/Bundle.ndjson": []byte(deletion("8")),
		"z.ndjson":                     []byte(observation("8", "a", "")),
		"zz.json": []byte(`{"resourceType":"Bundle","type":"searchset","entry":[{"resource":` +
			strings.TrimSpace(deletion("2")) + `}]}`), // data, not a deletion
	}), Config{})
	if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"2", "3", "6", "8"}) {
		t.Errorf("got %v (%v)", ids, err)
	}
	if got := leftOut(t, src); !slices.Equal(got, []string{" unsupported_entry 1"}) {
		t.Errorf("left out %q", got)
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
		src := open(t, folder(t, map[string][]byte{name: text}), Config{Limits: source.Limits{MaxLine: limit}})
		if ids, err := read(t, src); err != nil || !slices.Equal(ids, []string{"1", "3"}) {
			t.Errorf("%s: got %v (%v), want 1 and 3", name, ids, err)
		}
		if got := leftOut(t, src); !slices.Equal(got, []string{" malformed 1", "Observation too_long 3"}) {
			t.Errorf("%s: left out %q", name, got)
		}
	}
}

// TestBlankAndTooLongLinesTakeNoSpace: a small compressed file may be a long text.
func TestBlankAndTooLongLinesTakeNoSpace(t *testing.T) {
	for name, gap := range map[string]string{
		"newlines": strings.Repeat("\n", 1<<20), "CRLF": strings.Repeat("\r\n", 512<<10), "blanks": strings.Repeat(strings.Repeat(" ", 500)+"\n", 2<<10),
		"a line that is too long": strings.Repeat("x", 1<<20) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			for n := range 4 {
				text.WriteString(gap + observation(fmt.Sprint(n), "a", "") + "\n" + observation(fmt.Sprint(n+4), "a", "") + "\n")
			}
			src := open(t, folder(t, map[string][]byte{"a.ndjson.gz": zip(t, []byte(text.String()+gap))}), Config{Limits: source.Limits{MaxLine: 1000}})
			if ids, err := read(t, src); err != nil || len(ids) != 8 {
				t.Errorf("got %v (%v)", ids, err)
			}
			info, err := src.files[0].spool.Stat()
			must(t, err)
			// A long line is written up to the end of the piece in which it is too long.
			if space := info.Sys().(*syscall.Stat_t).Blocks * 512; space > 2<<20 {
				t.Errorf("%d bytes on disk", space)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	dir := folder(t, map[string][]byte{"a.ndjson.gz": zip(t, []byte(observation("1", "a", "")))})
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
	src := open(t, dir, Config{})
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

// TestProvenanceTakesMemoryOfItsTargetsOnly: the patients of all targets, with repetitions, would be 64 million numbers.
func TestProvenanceTakesMemoryOfItsTargetsOnly(t *testing.T) {
	const n = 8000
	var actors, targets []string
	for i := range n {
		actors = append(actors, fmt.Sprintf(`{"actor":{"reference":"Patient/%d"}}`, i))
		targets = append(targets, `{"reference":"Appointment/a"}`)
	}
	dir := folder(t, map[string][]byte{"a.ndjson": []byte(
		`{"resourceType":"Appointment","id":"a","participant":[` + strings.Join(actors, ",") + "]}\n" +
			`{"resourceType":"Provenance","id":"v","target":[` + strings.Join(targets, ",") + "]}\n")})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	src := open(t, dir, Config{Limits: source.Limits{MaxReferences: n}})
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 50<<20 {
		t.Errorf("%d MB were allocated", took>>20)
	}
	if got := leftOut(t, src); !slices.Equal(got, []string{"Provenance too_many_references 1"}) {
		t.Errorf("left out %q", got)
	}
}

// TestFilesWithoutResourcesMayChange: a log beside the data, of which some have lines like resources.
// TestJSONWithoutFHIRIsPassedBy: unlike what is no JSON, and what may have resources.
func TestJSONWithoutFHIRIsPassedBy(t *testing.T) {
	for text, want := range map[string][]string{
		`{"entry":"x"}`: nil, `[1,{"a":2}]`: nil, `[`: {" unreadable_file 1"}, `oops`: {" unreadable_file 1"},
		`[[` + observation("2", "a", "") + `]]`: {"Observation malformed 1"}, `{"entry":"x","resourceType":"Bundle"}`: {" unreadable_file 1"},
	} {
		src := open(t, folder(t, map[string][]byte{"a.ndjson": []byte(observation("1", "a", "")), "x.json": []byte(text)}), Config{})
		if got := leftOut(t, src); !slices.Equal(got, want) {
			t.Errorf("%s: left out %q, want %q", text, got, want)
		}
	}
}

func TestFilesWithoutResourcesMayChange(t *testing.T) {
	deletion := `{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"Observation/2"}}]}`
	for text, noticed := range map[string]bool{
		`{"exportId":"e1"}`: false, `{"resourceType":"OperationOutcome"}`: false, "": false, "oops": false,
		`{"resourceType":"Group","id":"g"}`: true, deletion: true, observation("2", "a", ""): true,
	} {
		dir := folder(t, map[string][]byte{"a.ndjson": []byte(observation("1", "a", "")), "log.ndjson": []byte(text + "\n")})
		src := open(t, dir, Config{})
		must(t, os.WriteFile(filepath.Join(dir, "log.ndjson"), []byte(text+"\n"+text+"\n"), 0o600))
		if err := src.Check(t.Context()); errors.Is(err, export.ErrUnavailable) != noticed {
			t.Errorf("%s: check: %v", text, err)
		}
		if ids, err := read(t, src); err != nil && !noticed || !slices.Contains(ids, "1") && !noticed {
			t.Errorf("%s: got %v (%v)", text, ids, err)
		}
	}
}

// TestLogGrowsWhileItIsRead: files are opened before they are read.
func TestLogGrowsWhileItIsRead(t *testing.T) {
	dir := folder(t, map[string][]byte{"a.ndjson": []byte(observation("1", "a", "")), "log.ndjson": []byte("{}\n")})
	found, err := lines.InFolder(dir)
	must(t, err)
	files, _, err := openFiles(found.Files)
	must(t, err)
	for _, name := range []string{"log.ndjson", "a.ndjson"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(observation("1", "a", "")+"\n\n"), 0o600))
		b := newBuilder(files, maphash.MakeSeed(), Config{Limits: source.Limits{MaxLine: 1000, MaxReferences: 10}})
		if err := b.read(t.Context(), t.TempDir()); errors.Is(err, export.ErrUnavailable) != (name == "a.ndjson") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, f := range files {
		must(t, f.close())
	}
}

// TestWhatMayBeOfAnyTypeIsCountedWithoutOne: an export reports what is of its types or of none.
func TestWhatMayBeOfAnyTypeIsCountedWithoutOne(t *testing.T) {
	long := strings.Repeat("x", 2000)
	src := open(t, folder(t, map[string][]byte{"a.ndjson": []byte(strings.Join([]string{
		observation("1", "a", ""),
		`{"resourceType":"Bundle","entry":[{"resource":` + observation("2", "a", `,"x":"`+long+`"`) + `}]}`,
		`{"contained":[{"resourceType":"Binary","data":"` + long + `"}],"resourceType":"DocumentReference","id":"1"}`,
		`{"resourceType":"DocumentReference","id":"1","contained":[{"resourceType":"Binary","data":"` + long + `"}]}`,
		`{"resourceType":"Task","id":"1"}` + observation("3", "a", ""),
		`{"resourceType":"Condition","id":"1"}` + observation("4", "a", ""),
		`{"resourceType":"Task","resourceType":"Observation","id":"5","subject":{"reference":"Patient/a"}}`,
		observation("6", "a", `,"x":"`+long+`"`), observation("7", "a", `,"id":"8"`),
	}, "\n"))}), Config{Limits: source.Limits{MaxLine: 1000}})
	want := []string{" malformed 3", " too_long 3", "Observation malformed 1", "Observation too_long 1"}
	if got := leftOut(t, src); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestBundlesAmongLinesAreFoundInOneReading: however many files have them, the folder is read twice.
func TestBundlesAmongLinesAreFoundInOneReading(t *testing.T) {
	texts := map[string][]byte{}
	for i := range 20 {
		texts[fmt.Sprint(i, ".ndjson")] = []byte(observation(fmt.Sprint(i), "a", "") + "\n" +
			`{"resourceType":"Bundle","entry":[{"resource":` + observation(fmt.Sprint(i+20), "a", "") + "}]}\n")
	}
	dir := folder(t, texts)
	found, err := lines.InFolder(dir)
	must(t, err)
	_, err = index(t.Context(), Config{Dir: dir, Limits: source.Limits{MaxLine: 1000, MaxReferences: 10}}, found, nil)
	if inside := (bundlesInside)(nil); !errors.As(err, &inside) || len(inside) != len(texts) {
		t.Errorf("the first reading: %v", err)
	}
	if ids, err := read(t, open(t, dir, Config{})); err != nil || len(ids) != 40 {
		t.Errorf("got %v (%v)", ids, err)
	}
}

// TestTheIdentityIsThatOfWhatIsServed: it tells apart what serves other versions.
func TestTheIdentityIsThatOfWhatIsServed(t *testing.T) {
	t.Parallel()
	const one, two = `{"resourceType":"Patient","id":"1"}`, `{"resourceType":"Patient","id":"2"}`
	const again, refused = `{"resourceType":"Patient","id":"2","active":true}`, `{"resourceType":"Patient","id":"2","Subject":{}}`
	identity := func(files map[string]string) string {
		content := map[string][]byte{}
		for name, text := range files {
			content[name] = []byte(text)
		}
		sizes, err := open(t, folder(t, content), Config{}).Sizes(t.Context())
		must(t, err)
		return sizes.Identity
	}
	of := identity(map[string]string{"a.ndjson": one + "\n" + two + "\n"})
	for name, same := range map[string]map[string]string{
		"the same":        {"a.ndjson": one + "\n" + two + "\n"},
		"a log":           {"a.ndjson": one + "\n" + two + "\n", "log.ndjson": `{"eventId":"x"}` + "\n"},
		"a log before it": {"a.ndjson": one + "\n" + two + "\n", "0.ndjson": `{"eventId":"x"}` + "\n"},
		"an outcome":      {"a.ndjson": one + "\n" + two + "\n", "0.ndjson": `{"resourceType":"OperationOutcome"}` + "\n"},
	} {
		if identity(same) != of {
			t.Errorf("%s: another identity", name)
		}
	}
	for name, other := range map[string]map[string]string{
		"one less":              {"a.ndjson": one + "\n"},
		"a change":              {"a.ndjson": one + "\n" + `{"resourceType":"Patient","id":"3"}` + "\n"},
		"a delete":              {"a.ndjson": one + "\n" + two + "\n" + deletionOfTwo + "\n"},
		"no files":              {},
		"one more type":         {"a.ndjson": one + "\n" + two + "\n", "0.ndjson": `{"resourceType":"Task","id":"x"}` + "\n"},
		"one without a patient": {"a.ndjson": one + "\n" + two + "\n", "0.ndjson": `{"resourceType":"Device","id":"x"}` + "\n"},
		"one twice":             {"a.ndjson": one + "\n" + two + "\n" + two + "\n"},
	} {
		if identity(other) == of {
			t.Errorf("%s: the same identity", name)
		}
	}
	all := map[string]string{} // identity -> name
	for name, files := range map[string]map[string]string{
		"the later line":   {"a.ndjson": two + "\n" + again + "\n"},
		"the other line":   {"a.ndjson": again + "\n" + two + "\n"},
		"the later file":   {"a.ndjson": two + "\n", "b.ndjson": again + "\n"},
		"the other file":   {"a.ndjson": again + "\n", "b.ndjson": two + "\n"},
		"other names":      {"c.ndjson": two + "\n", "b.ndjson": again + "\n"},
		"one":              {"a.ndjson": two + "\n"},
		"a refused one":    {"a.ndjson": two + "\n" + refused + "\n"},
		"a refused before": {"a.ndjson": refused + "\n" + two + "\n"},
		"a deletion":       {"a.ndjson": two + "\n" + deletionOfTwo + "\n"},
		"deleted before":   {"a.ndjson": deletionOfTwo + "\n" + two + "\n"},
	} {
		if other, twice := all[identity(files)]; twice {
			t.Errorf("%s and %s: the same identity", name, other)
		}
		all[identity(files)] = name
	}
}

const deletionOfTwo = `{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/2"}}]}`
