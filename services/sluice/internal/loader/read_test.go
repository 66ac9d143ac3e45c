package loader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/lines"
	"github.com/sluice-fhir/sluice/pkg/references"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// received records the calls of a sink.
type received struct {
	mu       sync.Mutex
	bodies   map[int64]string // by place
	subjects map[int64][]fhir.Ref
	types    map[string]int64
	groups   []string
	said     []string
	refused  []string
	deleted  map[fhir.Ref]int64 // places
	read     int64
}

// none are limits that nothing in the tests exceeds.
var none = Config{Limits: source.Limits{MaxLine: 1 << 20, MaxReferences: 1000}}

func (k *received) sink() Sink {
	k.bodies, k.subjects, k.types = map[int64]string{}, map[int64][]fhir.Ref{}, map[string]int64{}
	k.deleted = map[fhir.Ref]int64{}
	return Sink{
		Resources: func(_ context.Context, typ string, lines []postgres.Line) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			for _, line := range lines {
				if line.Facts.Type != typ {
					return fmt.Errorf("a %s among %s", line.Facts.Type, typ)
				}
				if line.Body == nil {
					k.refused = append(k.refused, fmt.Sprintf("%s/%s %d", typ, line.Facts.ID, line.Facts.Version))
					continue
				}
				if _, twice := k.bodies[line.Place]; twice {
					return fmt.Errorf("two lines have the place %d", line.Place)
				}
				k.bodies[line.Place], k.subjects[line.Place] = string(line.Body), line.Facts.Subjects
				k.types[typ]++
			}
			return nil
		},
		Group: func(_ context.Context, _ int64, line []byte) (pgdir.Added, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			group, err := pgdir.Examine(line)
			if err == nil {
				k.groups = append(k.groups, string(line))
			}
			return group, err
		},
		Delete: func(_ context.Context, list []postgres.Deletion) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			for _, deletion := range list {
				k.deleted[deletion.Ref] = deletion.Place
			}
			return nil
		},
		Resolve: func(context.Context, *references.Table) error { return nil },
		Say: func(text string) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.said = append(k.said, text)
		},
		Progress: func(bytes int64) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.read += bytes
		},
	}
}

// matches compares the summary and the reported progress with the received lines.
func (k *received) matches(t *testing.T, files []lines.File, sum Summary) {
	t.Helper()
	var size, bytes int64
	for _, file := range files {
		size += file.Size
	}
	for _, body := range k.bodies {
		bytes += int64(len(body)) + 1
	}
	if k.read != size {
		t.Errorf("%d bytes of %d were reported", k.read, size)
	}
	if !maps.Equal(sum.Resources, k.types) || sum.Groups != int64(len(k.groups)) || sum.Bytes != bytes {
		t.Errorf("summary %+v; want %v, %d groups, %d bytes", sum, k.types, len(k.groups), bytes)
	}
	for _, problem := range k.said {
		for _, file := range files {
			problem = strings.ReplaceAll(problem, file.Path, "") // it has a random number
		}
		if strings.Contains(problem, "20391") {
			t.Errorf("%q quotes the line", problem)
		}
	}
}

func patient(id string) string { return fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, id) }

// long returns a patient of exactly this many bytes.
func long(id string, length int) string {
	text := fmt.Sprintf(`{"resourceType":"Patient","id":%q,"language":""}`, id)
	return strings.Replace(text, `""`, `"`+strings.Repeat("x", length-len(text))+`"`, 1)
}

// numbered maps line numbers to texts.
type numbered = map[int64]string

// Every text is read in blocks of several sizes, plain and compressed.
func TestRead(t *testing.T) {
	const maxLine = 100
	const tooLong = "longer than 99 bytes"
	type reading struct {
		text           string
		want, problems numbered
		ignored        map[string]int64
	}
	a, b, c, secret := patient("a"), patient("b"), patient("c"), patient("20391")
	tests := map[string]reading{
		"nothing":            {},
		"lines":              {text: a + "\n" + b + "\n", want: numbered{1: a, 2: b}},
		"no last newline":    {text: a + "\n" + b, want: numbered{1: a, 2: b}},
		"CRLF":               {text: a + "\r\n" + b + "\r\n", want: numbered{1: a, 2: b}},
		"blank lines":        {text: "\n\n" + a + "\n \t\r\n  " + b + "\t\n\n", want: numbered{3: a, 5: b}},
		"nothing but blanks": {text: "\n\r\n "},
		"a byte order mark":  {text: "\ufeff" + a + "\n" + b, want: numbered{1: a, 2: b}},
		"nothing but a mark": {text: "\ufeff"},
		"a mark further on":  {text: a + "\n\ufeff" + b, want: numbered{1: a, 2: b}},
		"types of no compartment": {
			text: `{"resourceType":"Task","id":"1"}` + "\n" + a + "\n" + `{"resourceType":"Slot"}`,
			want: numbered{1: `{"resourceType":"Task","id":"1"}`, 2: a}, problems: numbered{3: "no id"},
		},
		"types that are never exported": {
			text: `{"resourceType":"Parameters","id":"1"}` + "\n" + a + "\n" + `{"resourceType":"OperationOutcome"}` + "\n" +
				`{"resourceType":"Parameters"}`,
			want: numbered{2: a}, ignored: map[string]int64{"Parameters": 2, "OperationOutcome": 1},
		},
		"the longest lines": {
			text: a + "\n" + long("l", maxLine-1) + "\n" + b + "\n" + long("m", maxLine-1),
			want: numbered{1: a, 2: long("l", maxLine-1), 3: b, 4: long("m", maxLine-1)},
		},
		"too long": {
			text: a + "\n" + long("20391", maxLine) + "\n\n" + b + "\n" + long("20391", 7*maxLine) + "\n{\n" + c,
			want: numbered{1: a, 4: b, 7: c}, problems: numbered{2: tooLong, 5: tooLong, 6: "not valid JSON"},
		},
	}
	for name, bad := range map[string]struct{ line, what string }{
		"half a line":       {secret[:30], "not valid JSON"},
		"no JSON at all":    {"20391x", "not a JSON object"},
		"a mark in a line":  {"{\ufeff" + secret, "not valid JSON"},
		"not UTF-8":         {"{\"20391\":\"\xff\"}", "not valid UTF-8"},
		"a NUL":             {"\x00", "not a JSON object"},
		"two in a line":     {secret + secret, "more than one JSON value"},
		"no id":             {`{"resourceType":"Patient","name":"20391"}`, "no id"},
		"an id that is not": {`{"resourceType":"Patient","id":"20391\u0000"}`, "no id"},
		"no type":           {`{"id":"20391"}`, "no resourceType"},
		"no type of R4":     {`{"resourceType":"X20391","id":"a"}`, "not a resource type"},
	} {
		tests[name] = reading{
			text: a + "\n" + bad.line + "\n" + b, want: numbered{1: a, 3: b}, problems: numbered{2: bad.what},
		}
		tests[name+" at the end"] = reading{
			text: a + "\r\n\n" + bad.line, want: numbered{1: a}, problems: numbered{3: bad.what},
		}
	}
	for name, test := range tests {
		for _, size := range []int{1, 7, 64, 99, maxLine} {
			for _, ending := range []string{".ndjson", ".ndjson.gz"} {
				t.Run(fmt.Sprintf("%s/%d%s", name, size, ending), func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "in"+ending)
					write(t, path, test.text)
					files, err := Find([]string{path})
					if err != nil {
						t.Fatal(err)
					}
					var got received
					sum, err := read(t.Context(), files, Config{Limits: source.Limits{MaxLine: maxLine - 1, MaxReferences: 10}}, got.sink(), size)
					if err != nil {
						t.Fatal(err)
					}
					if !maps.Equal(got.bodies, test.want) {
						t.Errorf("received %v, want %v", got.bodies, test.want)
					}
					if !maps.Equal(sum.Ignored, test.ignored) {
						t.Errorf("ignored %v, want %v", sum.Ignored, test.ignored)
					}
					for line, what := range test.problems {
						text := fmt.Sprintf("%s line %d: %s", path, line, what)
						matches := func(problem string) bool { return strings.HasPrefix(problem, text) }
						if !slices.ContainsFunc(got.said, matches) {
							t.Errorf("said %q, want %q", got.said, text)
						}
					}
					if len(got.said) != len(test.problems) {
						t.Errorf("said %q, want %d", got.said, len(test.problems))
					}
					counted := int64(0)
					for _, left := range sum.LeftOut {
						counted += left.Count
					}
					if counted != int64(len(test.problems)) {
						t.Errorf("left out %+v, want %d", sum.LeftOut, len(test.problems))
					}
					got.matches(t, files.Files, sum)
				})
			}
		}
	}
}

// TestReadRanks: the version in the later line of the later file wins, regardless of the order of reading.
func TestReadRanks(t *testing.T) {
	dir := t.TempDir()
	var files Found
	var want []string
	for n, count := range []int{5, 100, 1, 40} {
		var text []string
		for i := range count {
			text = append(text, fmt.Sprintf(
				`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/%d-%d"}}`, n, i))
		}
		// Files rank in the given order, not in the order of their names.
		path := filepath.Join(dir, fmt.Sprintf("%d.ndjson", 9-n))
		write(t, path, strings.Join(text, "\n"))
		found, err := Find([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		files.Files, want = append(files.Files, found.Files...), append(want, text...)
	}
	var got received
	sum, err := read(t.Context(), files, none, got.sink(), 300)
	if err != nil {
		t.Fatal(err)
	}
	got.matches(t, files.Files, sum)
	places := slices.Sorted(maps.Keys(got.bodies))
	if len(places) != len(want) {
		t.Fatalf("%d lines, want %d", len(places), len(want))
	}
	for i, place := range places {
		if got.bodies[place] != want[i] {
			t.Fatalf("number %d in rank is %s, want %s", i, got.bodies[place], want[i])
		}
		// The scanner has not overwritten the subjects of this line.
		if refs := got.subjects[place]; len(refs) != 1 || !strings.Contains(want[i], `"Patient/`+refs[0].ID+`"`) {
			t.Errorf("%s is about %v", want[i], refs)
		}
	}
}

// TestReadSeveralMembers: concatenated gzip files are one file.
func TestReadSeveralMembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in.ndjson.gz")
	text := zipped(t, patient("a")+"\n") + zipped(t, "") + zipped(t, patient("b")+"\n")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	files := []lines.File{{Path: path, Size: int64(len(text))}}
	var got received
	sum, err := Read(t.Context(), Found{Files: files}, none, got.sink())
	if err != nil || sum.Resources["Patient"] != 2 {
		t.Errorf("%+v, %v", sum, err)
	}
	got.matches(t, files, sum)
}

func TestReadGroups(t *testing.T) {
	dir := t.TempDir()
	group := func(id string) string { return fmt.Sprintf(`{"resourceType":"Group","id":%q}`, id) }
	few := strings.Replace(group("few"), "{", `{"member":[{"entity":{"identifier":{"value":"20391"}}},`+
		`{"entity":{"reference":"https://other.example/Patient/20391"}},{"entity":{"identifier":{"value":"20391"}},"inactive":true}],`, 1)
	write(t, filepath.Join(dir, "in.ndjson"), strings.Join([]string{
		group("g1"), patient("a"), "", strings.Replace(group("odd"), "}", `,"member":5}`, 1), group("g2") + "\r", `{"resourceType":"Group"}`,
		strings.Replace(group("twice"), "{", `{"id":"g",`, 1), few,
	}, "\n"))
	files, err := Find([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	var got received
	sum, err := Read(t.Context(), files, none, got.sink())
	if err != nil {
		t.Fatal(err)
	}
	got.matches(t, files.Files, sum)
	if want := []string{group("g1"), group("g2"), few}; !slices.Equal(got.groups, want) {
		t.Errorf("groups %q, want %q", got.groups, want)
	}
	if want := map[string]int64{"Group": 3, "Patient": 1}; !maps.Equal(sum.Resources, want) {
		t.Errorf("%v, want %v", sum.Resources, want)
	}
	place := files.Files[0].Path + " line "
	want := []string{
		place + "4: group odd: member is not an array", place + "6: id is missing or not a FHIR id", place + "7: group g: id is duplicate",
		place + "8: group few: 1 left out: members of the group that are named by an identifier only",
		place + "8: group few: 1 left out: members of the group that are patients of another server",
	}
	if !slices.Equal(got.said, want) {
		t.Errorf("said %q, want %q", got.said, want)
	}
}

// The rest of a file that cannot be decompressed is left out, and the other files are read.
func TestReadBrokenFiles(t *testing.T) {
	whole := zipped(t, strings.Repeat(patient("20391")+"\n", 1000))
	for name, test := range map[string]struct {
		text   string
		broken bool
	}{
		"empty":              {text: ""},
		"not gzip":           {text: patient("b")},
		"half a header":      {text: whole[:5], broken: true},
		"half of it":         {text: whole[:len(whole)/2], broken: true},
		"no checksum":        {text: whole[:len(whole)-8], broken: true},
		"half a checksum":    {text: whole[:len(whole)-1], broken: true},
		"the wrong checksum": {text: whole[:len(whole)-8] + "\x00\x00\x00\x00" + whole[len(whole)-4:], broken: true},
		"more behind it":     {text: whole + "20391", broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "good.ndjson"), patient("a"))
			path := filepath.Join(dir, "in.ndjson.gz")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			files, err := Find([]string{dir})
			if err != nil {
				t.Fatal(err)
			}
			var got received
			sum, err := Read(t.Context(), files, none, got.sink())
			if err != nil || !slices.Contains(slices.Collect(maps.Values(got.bodies)), patient("a")) {
				t.Fatalf("%v, %v", got.bodies, err)
			}
			if !test.broken {
				if len(sum.LeftOut) > 0 || len(got.said) > 0 {
					t.Errorf("left out %+v, said %q", sum.LeftOut, got.said)
				}
				return
			}
			want := []LeftOut{{export.LeftOut{Reason: export.UnreadableFile, Count: 1}, path}}
			if !slices.Equal(sum.LeftOut, want) || len(got.said) != 1 || !strings.HasPrefix(got.said[0], path+": ") ||
				strings.Contains(got.said[0], "20391") {
				t.Errorf("left out %+v, said %q", sum.LeftOut, got.said)
			}
		})
	}
}

func TestReadWarnsOfBundlesOfSeveralServers(t *testing.T) {
	bundle := func(base string) string {
		return `{"resourceType":"Bundle","entry":[{"fullUrl":"` + base + `/Patient/1","resource":` + patient("1") + `}]}`
	}
	own, err := fhir.NewBases("https://c.example/fhir")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		content string
		warned  bool
	}{
		"one":             {bundle("https://a.example/fhir") + "\n" + bundle("https://a.example/fhir"), false},
		"two":             {bundle("https://a.example/fhir") + "\n" + bundle("https://b.example/fhir"), true},
		"one and its own": {bundle("https://a.example/fhir") + "\n" + bundle("https://c.example/fhir"), true},
		"its own":         {bundle("https://c.example/fhir"), false},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "in.ndjson"), test.content)
		files, err := Find([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		cfg := none
		cfg.Bases = own
		var got received
		if _, err := Read(t.Context(), files, cfg, got.sink()); err != nil {
			t.Fatal(err)
		}
		if (len(got.said) == 1) != test.warned {
			t.Errorf("%s: said %q", name, got.said)
		}
	}
}

// many returns a file with more lines than a stopped read reaches.
func many(t *testing.T, line string) Found {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in.ndjson")
	write(t, path, strings.Repeat(line+"\n", 10_000))
	files, err := Find([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestReadStopsAtAnErrorOfASink(t *testing.T) {
	broken := errors.New("broken")
	most := runtime.GOMAXPROCS(0) + 4 // the third fails, and each parser may have one more in progress
	for name, line := range map[string]string{"Resources": patient("a"), "Group": `{"resourceType":"Group","id":"g"}`} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			calls := 0
			take := func(ctx context.Context) error {
				mu.Lock()
				calls++
				n := calls
				mu.Unlock()
				if n > 3 { // blocks until the read is stopped
					<-ctx.Done()
					return ctx.Err()
				}
				if n == 3 {
					return broken
				}
				return nil
			}
			var got received
			sink := got.sink()
			sink.Resources = func(ctx context.Context, _ string, _ []postgres.Line) error { return take(ctx) }
			sink.Group = func(ctx context.Context, _ int64, _ []byte) (pgdir.Added, error) { return pgdir.Added{}, take(ctx) }
			_, err := read(t.Context(), many(t, line), none, sink, 1)
			if !errors.Is(err, broken) || calls > most {
				t.Errorf("%v after %d calls, want %v after %d at most", err, calls, broken, most)
			}
			if len(got.said) > 0 {
				t.Errorf("said %q", got.said)
			}
		})
	}
}

func TestReadStopsWithItsContext(t *testing.T) {
	files := many(t, patient("a"))
	ctx, cancel := context.WithCancel(t.Context())
	var got received
	sink := got.sink()
	keep := sink.Resources
	sink.Resources = func(within context.Context, typ string, lines []postgres.Line) error {
		cancel()
		<-within.Done()
		return keep(within, typ, lines)
	}
	if _, err := read(ctx, files, none, sink, 1); !errors.Is(err, context.Canceled) || len(got.bodies) == 10_000 {
		t.Errorf("%v after %d lines", err, len(got.bodies))
	}
	got = received{}
	if _, err := read(ctx, files, none, got.sink(), 1); !errors.Is(err, context.Canceled) || len(got.bodies) > 0 {
		t.Errorf("with a cancelled context: %v after %d lines", err, len(got.bodies))
	}
}

// TestWhatCannotBeOpenedIsCounted: files and subfolders without permission, and a file that is gone, even if it is back when
// the files are read again.
func TestWhatCannotBeOpenedIsCounted(t *testing.T) {
	if !testenv.AsNobody(t) {
		return
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.ndjson": patient("a"), "b.ndjson": patient("b"), "c/c.ndjson": patient("c"), "d.ndjson": patient("d"), "e/e.ndjson": patient("e"),
		"f.ndjson": `{"resourceType":"Condition","id":"f","subject":{"reference":"urn:uuid:d"}}`,
	} {
		write(t, filepath.Join(dir, name), text)
	}
	for name, mode := range map[string]os.FileMode{"b.ndjson": 0, "c": 0, "e": 0o600} {
		path := filepath.Join(dir, name)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(path, 0o700) })
	}
	files, err := Find([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	gone := filepath.Join(dir, "d.ndjson")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	var got received
	sink := got.sink()
	sink.Resolve = func(context.Context, *references.Table) error { write(t, gone, patient("d")); return nil }
	sum, err := Read(t.Context(), files, none, sink)
	if err != nil {
		t.Fatal(err)
	}
	if got.types["Patient"] != 1 || got.types["Condition"] != 1 || sum.Unreadable() != 4 {
		t.Errorf("took %v, left out %v", got.types, sum.LeftOut)
	}
	for _, file := range []string{"b.ndjson: open: permission denied", "c: the rest", "d.ndjson: open: no such file", "e: the rest"} {
		if !slices.ContainsFunc(got.said, func(said string) bool { return strings.Contains(said, "/"+file) }) {
			t.Errorf("no %q in %q", file, got.said)
		}
	}
}
