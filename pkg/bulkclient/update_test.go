package bulkclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"

	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// store is what a server holds: lines by "Type/id".
type store map[string]string

// set sets a new version of a resource, with its members in a random order, and returns its line.
func (s store) set(random *rand.Rand, key string, version int) string {
	typ, id, _ := strings.Cut(key, "/")
	members := []string{
		`"resourceType":"` + typ + `"`, `"id":"` + id + `"`,
		fmt.Sprintf(`"meta":{"id":"r1","versionId":"%d"}`, version), // not the id of the resource
		`"text":"` + strings.Repeat("x", random.IntN(200)) + `"`,
	}
	if random.IntN(2) == 0 {
		random.Shuffle(len(members), func(a, b int) { members[a], members[b] = members[b], members[a] })
	}
	s[key] = "{" + strings.Join(members, ",") + "}"
	return s[key]
}

// serve makes the server export the lines, in files of one type each, and the deletions.
func (s *fakeServer) serve(random *rand.Rand, lines store, deleted []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.order = map[string]*stored{}, nil
	byType := map[string][]string{}
	for _, key := range slices.Sorted(maps.Keys(lines)) {
		typ, _, _ := strings.Cut(key, "/")
		byType[typ] = append(byType[typ], lines[key])
	}
	for _, typ := range slices.Sorted(maps.Keys(byType)) {
		for all, n := byType[typ], 0; len(all) > 0; n++ {
			size := 1 + random.IntN(len(all))
			text := strings.Join(all[:size], "\n")
			if all = all[size:]; random.IntN(3) > 0 {
				text += "\n"
			}
			if random.IntN(4) == 0 {
				text = "\xef\xbb\xbf" + strings.ReplaceAll(text, "\n", "\n \r\n\n")
			}
			file := s.addLines(ListOutput, typ, fmt.Sprintf("%s.%d", typ, n), []byte(text))
			file.identity, file.count = random.IntN(2) == 0, nil
			if file.digest = ""; random.IntN(3) == 0 {
				file.typ = ""
			}
		}
	}
	for n := 0; len(deleted) > 0; n++ {
		var entries []string
		for range 1 + random.IntN(len(deleted)) {
			url := []string{"", "/", s.base() + "/"}[random.IntN(3)] + deleted[0]
			entries, deleted = append(entries, `{"request":{"method":"DELETE","url":"`+url+`"}}`), deleted[1:]
		}
		line := `{"resourceType":"Bundle","type":"transaction","x":{"entry":[1]},"entry":[` + strings.Join(entries, ",") + "]}\n"
		s.addLines(ListDeleted, "Bundle", fmt.Sprintf("Bundle.%d", n), []byte(line))
	}
}

// copyOf reads the output of a folder, and fails if a resource is there twice.
func copyOf(t *testing.T, dir string) store {
	t.Helper()
	folder, err := openFolder(dir)
	must(t, err)
	defer func() { must(t, folder.Close()) }()
	done, err := folder.finished()
	must(t, err)
	found := store{}
	for _, item := range done.Output {
		text := content(t, dir, item.Local.File)
		if strings.HasSuffix(item.Local.File, ".gz") {
			text = unzip(t, text)
		}
		for line := range bytes.Lines(text) {
			line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("\xef\xbb\xbf")))
			if len(line) == 0 {
				continue
			}
			var r struct{ ResourceType, ID string }
			must(t, json.Unmarshal(line, &r))
			key := r.ResourceType + "/" + r.ID
			if _, twice := found[key]; twice {
				t.Errorf("%s is there twice", key)
			}
			found[key] = string(line)
		}
	}
	return found
}

// hashes returns the digest of every file below a folder.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		found[path] = sha(text)
		return err
	}))
	return found
}

// TestUpdateAgainstAMap: after random changes and deletions an updated copy equals the store, over a chain of exports that
// are interrupted in every phase. The folder before is not changed.
func TestUpdateAgainstAMap(t *testing.T) {
	seeds := uint64(testenv.Seeds(t, 8))
	types := []string{"Patient", "Observation", "Device"}
	request := Request{Group: "g", Elements: []string{"id"}}
	for seed := range seeds {
		random := rand.New(rand.NewPCG(seed, 14))
		s := newFakeServer(t)
		c, _ := newClient(t, s, nil)
		root, held := t.TempDir(), store{}
		key := func() string { return fmt.Sprintf("%s/r%d", types[random.IntN(len(types))], random.IntN(30)) }
		for range random.IntN(40) {
			held.set(random, key(), 0)
		}
		s.serve(random, held, nil)
		last := filepath.Join(root, "0")
		_, err := c.Export(t.Context(), request, Options{Dir: last, KeepGzip: random.IntN(2) == 0})
		must(t, err)
		for round := 1; round <= 4; round++ {
			before := maps.Clone(held)
			for n := random.IntN(30); n > 0; n-- {
				if one := key(); random.IntN(3) == 0 {
					delete(held, one)
				} else {
					held.set(random, one, round)
				}
			}
			changed, deleted := store{}, []string{"Basic/never-seen"}
			for one, line := range held {
				if before[one] != line {
					changed[one] = line
				}
			}
			for one := range before {
				if _, is := held[one]; !is {
					deleted = append(deleted, one)
				}
			}
			slices.Sort(deleted)
			s.serve(random, changed, deleted)
			untouched := hashes(t, last)
			opts := Options{Dir: filepath.Join(root, fmt.Sprint(round)), Last: last, KeepGzip: random.IntN(2) == 0}
			if random.IntN(2) == 0 {
				s.files["Bundle.0"].refuse = []int{500}
				if _, err := c.Export(t.Context(), request, opts); err == nil {
					t.Fatal("the failed download was no error")
				}
				if _, err := Verify(t.Context(), opts.Dir, nil); !errors.Is(err, ErrFolder) {
					t.Errorf("verify of an unfinished folder: %v", err)
				}
				if _, err := c.Export(t.Context(), request, opts); !errors.Is(err, ErrFolder) {
					t.Errorf("not resumed: %v", err)
				}
				opts.Resume = true
			}
			report, err := c.Export(t.Context(), request, opts)
			must(t, err)
			kickOffs := s.countOf("GET /fhir/Group/g/$export")
			if random.IntN(2) == 0 { // as if killed in the merge
				must(t, os.Remove(filepath.Join(opts.Dir, manifestFile)))
				for _, name := range names(t, opts.Dir) {
					if isData(name) && random.IntN(2) == 0 {
						must(t, os.Rename(filepath.Join(opts.Dir, name), filepath.Join(opts.Dir, name+newSuffix)))
						must(t, os.Truncate(filepath.Join(opts.Dir, name+newSuffix), 1))
					}
				}
			}
			opts.Resume = true
			again, err := c.Export(t.Context(), request, opts)
			must(t, err)
			removed := int64(0)
			for one := range before {
				if held[one] != before[one] {
					removed++
				}
			}
			want := Changes{Since: "2026-01-02T03:04:05Z", Resources: int64(len(changed)), Deletions: int64(len(deleted)), Removed: removed}
			for _, r := range []Report{report, again} {
				if *r.Changes != want || r.Total.Resources != int64(len(held)) || r.Request.Since != "" {
					t.Errorf("seed %d, round %d: report %+v of %+v, want %+v", seed, round, r, *r.Changes, want)
				}
			}
			if s.countOf("GET /fhir/Group/g/$export") != kickOffs {
				t.Errorf("seed %d: the merge was resumed with a kick-off", seed)
			}
			if got := copyOf(t, opts.Dir); !maps.Equal(got, held) {
				t.Fatalf("seed %d, round %d: the copy has\n%v, not\n%v", seed, round, got, held)
			}
			if !maps.Equal(hashes(t, last), untouched) {
				t.Errorf("seed %d: the last folder was changed", seed)
			}
			for _, name := range names(t, opts.Dir) {
				if !isData(name) && name != manifestFile && name != changesDir {
					t.Errorf("seed %d: %s was left in the folder", seed, name)
				}
			}
			verified, err := Verify(t.Context(), opts.Dir, nil)
			if err != nil || verified.Total.Resources != int64(len(held)) || !strings.Contains(fmt.Sprint(verified.Unchecked), changesDir) {
				t.Errorf("seed %d: verify: %+v, %v", seed, verified, err)
			}
			if _, err := Verify(t.Context(), filepath.Join(opts.Dir, changesDir), nil); err != nil {
				t.Errorf("seed %d: verify the changes: %v", seed, err)
			}
			last = opts.Dir
		}
	}
}

// updatable returns a server, a client and the folder of a finished export of two patients and a problem.
func updatable(t *testing.T) (s *fakeServer, c *Client, last string) {
	t.Helper()
	s = newFakeServer(t)
	s.add(ListOutput, "Patient", "p", 2)
	s.addLines(ListError, "OperationOutcome", "o", []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error",`+
		`"diagnostics":"old"}]}`+"\n"))
	c, _ = newClient(t, s, nil)
	last = filepath.Join(t.TempDir(), "last")
	mustExport(t, c, Options{Dir: last})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.order, s.seen = map[string]*stored{}, nil, nil
	return s, c, last
}

// The request is that of the last export and its transactionTime, and what was missing then is still missing.
func TestUpdate(t *testing.T) {
	s, c, last := updatable(t)
	s.addLines(ListError, "OperationOutcome", "o2", []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error",`+
		`"diagnostics":"new"}]}`+"\n"))
	report, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: filepath.Join(t.TempDir(), "new"), Last: last})
	must(t, err)
	if got := s.seen[0].URL.RawQuery; got != "_since=2026-01-02T03%3A04%3A05Z" {
		t.Errorf("kicked off with %s", got)
	}
	if report.Total.Resources != 2 || !slices.Equal(report.Problems, []string{"old", "new"}) || report.Incomplete != 2 {
		t.Errorf("report %+v", report)
	}
}

// A folder that is not the whole export of the same request is refused before a request, and no folder is made.
func TestUpdateRefuses(t *testing.T) {
	for name, change := range map[string]func(r *Request, o *Options) error{
		"another group":   func(r *Request, _ *Options) error { r.Group = "h"; return nil },
		"another level":   func(r *Request, _ *Options) error { r.Level, r.Group = export.PatientLevel, ""; return nil },
		"another type":    func(r *Request, _ *Options) error { r.Types = []string{"Patient"}; return nil },
		"patients":        func(r *Request, _ *Options) error { r.Patients = []string{"secret"}; return nil },
		"an until":        func(r *Request, _ *Options) error { r.Until = "2026-01-02T03:04:05Z"; return nil },
		"a since":         func(r *Request, _ *Options) error { r.Since = "2026-01-02T03:04:05Z"; return nil },
		"a job":           func(_ *Request, o *Options) error { o.StatusURL = "http://a.org/1"; return nil },
		"blocks":          func(r *Request, _ *Options) error { r.OrganizeBy = "Patient"; return nil },
		"latest":          func(r *Request, _ *Options) error { r.Associated = export.LatestProvenance; return nil },
		"no folder":       func(_ *Request, o *Options) error { o.Last += "x"; return nil },
		"the same folder": func(_ *Request, o *Options) error { o.Dir = o.Last; return nil },
		"not finished":    func(_ *Request, o *Options) error { return os.Remove(filepath.Join(o.Last, manifestFile)) },
		"damaged":         func(_ *Request, o *Options) error { return os.Truncate(filepath.Join(o.Last, manifestFile), 100) },
		"no instant":      func(_ *Request, o *Options) error { return replaceIn(o.Last, "T03:04:05Z", "") },
		"only the changes": func(_ *Request, o *Options) error {
			return replaceIn(o.Last, `"group"`, `"since":"2026-01-01T00:00:00Z","group"`)
		},
	} {
		s, c, last := updatable(t)
		request, opts := Request{Group: "g"}, Options{Dir: filepath.Join(t.TempDir(), "new"), Last: last}
		must(t, change(&request, &opts))
		_, err := c.Export(t.Context(), request, opts)
		if !errors.Is(err, ErrLast) || strings.Contains(err.Error(), "secret") || len(s.requests()) != 0 {
			t.Errorf("%s: %v, want ErrLast; %q", name, err, s.requests())
		}
		if _, err := os.Stat(opts.Dir); opts.Dir != opts.Last && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a folder was left: %v", name, err)
		}
	}
}

// A kick-off that is refused leaves no folder, and one that is interrupted can be resumed.
func TestUpdateWithoutAnExport(t *testing.T) {
	s, c, last := updatable(t)
	s.kickOffs = []int{403}
	opts := Options{Dir: filepath.Join(t.TempDir(), "new"), Last: last, Resume: true}
	if _, err := c.Export(t.Context(), Request{Group: "g"}, opts); err == nil {
		t.Error("the refused kick-off was no error")
	}
	if _, err := os.Stat(opts.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused kick-off left the folder: %v", err)
	}
	must(t, os.MkdirAll(filepath.Join(opts.Dir, changesDir), 0o750)) // killed before the kick-off
	report, err := c.Export(t.Context(), Request{Group: "g"}, opts)
	if err != nil || report.Total.Resources != 2 {
		t.Errorf("%+v, %v", report, err)
	}
}

func replaceIn(dir, old, now string) error {
	return change(dir, manifestFile, func(text []byte) []byte { return bytes.Replace(text, []byte(old), []byte(now), 1) })
}

// Changes that cannot be applied, and a last folder that was changed, leave the new folder unfinished.
func TestUpdateFailsClosed(t *testing.T) {
	patient := `{"resourceType":"Patient","id":"a"}` + "\n"
	cut := func(last string) error { return os.Truncate(filepath.Join(last, "Patient.ndjson"), 10) }
	lost := func(last string) error { return os.Remove(filepath.Join(last, "Patient.ndjson")) }
	bundle := func(entry string) string { return `{"resourceType":"Bundle","entry":[` + entry + "]}\n" }
	for name, test := range map[string]struct {
		list   List
		typ    string
		text   string
		damage func(last string) error
	}{
		"no id":            {ListOutput, "Patient", `{"resourceType":"Patient","x":{"id":"a"}}`, nil},
		"a number as id":   {ListOutput, "Patient", `{"resourceType":"Patient","id":1}`, nil},
		"twice":            {ListOutput, "Patient", patient + patient, nil},
		"a PUT":            {ListDeleted, "Bundle", bundle(`{"request":{"method":"PUT","url":"Patient/secret"}}`), nil},
		"a search":         {ListDeleted, "Bundle", bundle(`{"request":{"method":"DELETE","url":"Patient?name=secret"}}`), nil},
		"of a version":     {ListDeleted, "Bundle", bundle(`{"request":{"method":"DELETE","url":"Patient/secret/_history/1"}}`), nil},
		"elsewhere":        {ListDeleted, "Bundle", bundle(`{"request":{"method":"DELETE","url":"http://b.org/Patient/secret"}}`), nil},
		"no request":       {ListDeleted, "Bundle", bundle(`{"resource":{"id":"secret"}}`), nil},
		"an object":        {ListDeleted, "Bundle", `{"resourceType":"Bundle","entry":{"x":"secret"}}`, nil},
		"cut entries":      {ListDeleted, "Bundle", `{"resourceType":"Bundle","entry":["secret"}`, nil},
		"not a Bundle":     {ListDeleted, "Patient", patient, nil},
		"a changed file":   {ListOutput, "Patient", patient, cut},
		"a lost file":      {ListOutput, "Patient", patient, lost},
		"an untouched one": {ListOutput, "Device", `{"resourceType":"Device","id":"a"}`, lost},
	} {
		s, c, last := updatable(t)
		s.addLines(test.list, test.typ, "x", []byte(test.text)).count = nil
		if test.damage != nil {
			must(t, test.damage(last))
		}
		dir := filepath.Join(t.TempDir(), "new")
		_, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Last: last})
		if !errors.Is(err, ErrMismatch) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want ErrMismatch", name, err)
		}
		if _, err := Verify(t.Context(), dir, nil); !errors.Is(err, ErrFolder) {
			t.Errorf("%s: verify: %v, want ErrFolder", name, err)
		}
	}
}

// An update of another last folder does not continue the folder.
func TestUpdateOfAnotherFolder(t *testing.T) {
	s, c, last := updatable(t)
	dir := filepath.Join(t.TempDir(), "new")
	s.addLines(ListOutput, "Patient", "p", []byte(`{"resourceType":"Patient","id":"a"}`+"\n")).refuse = []int{500}
	if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Last: last}); err == nil {
		t.Fatal("the failed download was no error")
	}
	must(t, replaceIn(last, `"seconds"`, `"x":1,"seconds"`))
	if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Last: last, Resume: true}); !errors.Is(err, ErrFolder) {
		t.Errorf("error %v, want ErrFolder", err)
	}
	if _, err := c.Export(t.Context(), Request{Group: "g"}, Options{Dir: dir, Resume: true}); !errors.Is(err, ErrFolder) {
		t.Errorf("without the last folder: %v, want ErrFolder", err)
	}
}

// FuzzDeletions: a malformed Bundle is an error, and never a deletion of what is no resource.
func FuzzDeletions(f *testing.F) {
	for _, text := range []string{
		`{"entry":[{"request":{"method":"DELETE","url":"Patient/1"}}]}`, `{"entry":[{}]}`, `{"entry":[`, "[]", "\xef\xbb\xbf{}",
		`{"x":[[{"entry":[1]}]],"entry":[]} {"entry":[{"request":{"method":"DELETE","url":"https://a.org/fhir/A/b"}}]}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		err := deletions(strings.NewReader(text), "https://a.org/fhir", func(typ, id string) error {
			if !strings.Contains(text, "DELETE") && !strings.Contains(text, `\u`) || strings.Contains(typ+id, "/") {
				t.Errorf("deleted %s %s", typ, id)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrMismatch) {
			t.Errorf("error %v", err)
		}
		for values := json.NewDecoder(strings.NewReader(text)); err == nil; {
			var value map[string]any
			if wrong := values.Decode(&value); errors.Is(wrong, io.EOF) {
				break
			} else if wrong != nil {
				t.Fatalf("accepted %q: %v", text, wrong)
			}
		}
	})
}
