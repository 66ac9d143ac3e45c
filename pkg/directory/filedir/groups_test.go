package filedir_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/directorytest"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func now() time.Time { return time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC) }

func TestGroups(t *testing.T) {
	for _, name := range []string{"Group.ndjson", "Group.000.ndjson.gz"} {
		t.Run(name, func(t *testing.T) {
			directorytest.Groups(t, func(t *testing.T, now func() time.Time, groups []directorytest.Group) directory.Groups {
				return openGroups(t, folder(t, name, strings.Join(directorytest.NDJSON(t, groups), "\n")), now)
			})
		})
	}
}

func folder(t testing.TB, name, content string) string {
	t.Helper()
	dir := t.TempDir()
	put(t, dir, name, content)
	return dir
}

// put replaces a file by renaming.
func put(t testing.TB, dir, name, content string) {
	t.Helper()
	data := []byte(content)
	if strings.HasSuffix(name, ".gz") {
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		_, err := w.Write(data)
		must(t, errors.Join(err, w.Close()))
		data = zipped.Bytes()
	}
	path := filepath.Join(dir, name)
	must(t, errors.Join(os.WriteFile(path+".tmp", data, 0o600), os.Rename(path+".tmp", path)))
}

func openGroups(t testing.TB, dir string, now func() time.Time) *filedir.Groups {
	t.Helper()
	groups, err := filedir.OpenGroups(dir, now)
	must(t, err)
	return groups
}

func count(t testing.TB, groups directory.Groups, id string) int {
	t.Helper()
	n := 0
	must(t, groups.Members(t.Context(), id, func(string) error { n++; return nil }))
	return n
}

const line1 = `{"resourceType":"Group","id":"g1","active":true,"actual":true,` +
	`"member":[{"entity":{"reference":"Patient/p1"}}]}`

func TestOpenGroupsNamesTheMalformedLine(t *testing.T) {
	lines := maps.Clone(directorytest.Malformed)
	lines["the same id again"] = line1
	for name, line := range lines {
		t.Run(name, func(t *testing.T) {
			for _, file := range []string{"Group.ndjson", "Groups-of-may.ndjson.gz"} {
				_, err := filedir.OpenGroups(folder(t, file, line1+"\n\n"+line+"\n"), now)
				if err == nil {
					t.Fatal("opened")
				}
				if want := file + " line 3: "; !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %q", err, want)
				}
				if strings.Contains(err.Error(), "20391") {
					t.Errorf("error %q quotes the line", err)
				}
			}
		})
	}
	t.Run("cut gzip", func(t *testing.T) {
		dir := folder(t, "Group.ndjson.gz", line1)
		must(t, os.Truncate(filepath.Join(dir, "Group.ndjson.gz"), 60))
		if _, err := filedir.OpenGroups(dir, now); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v, want ErrUnexpectedEOF", err)
		}
	})
	t.Run("no folder", func(t *testing.T) {
		if _, err := filedir.OpenGroups(filepath.Join(t.TempDir(), "none"), now); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want ErrNotExist", err)
		}
	})
	t.Run("the same id in another file", func(t *testing.T) {
		dir := folder(t, "Group.1.ndjson", line1)
		put(t, dir, "Group.2.ndjson.gz", "\n"+strings.Replace(line1, "true", "false", 1))
		_, err := filedir.OpenGroups(dir, now)
		const want = "Group.2.ndjson.gz line 2: group g1 is also in Group.1.ndjson line 1"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOpenGroupsOpensOnlyFilesOfGroups(t *testing.T) {
	dir := folder(t, "Group.ndjson", line1+"\r\n   \r\n")
	for _, name := range []string{
		"Patient.ndjson", "group.ndjson", "Group.json", "Group.ndjson.bak", "Group", "Group.gz",
	} {
		put(t, dir, name, "not to be read")
	}
	// Opening a link to nowhere would fail.
	must(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "Observation.ndjson")))
	must(t, os.Mkdir(filepath.Join(dir, "Group.d.ndjson"), 0o700))
	if n := count(t, openGroups(t, dir, now), "g1"); n != 1 {
		t.Errorf("%d members, want 1", n)
	}
	empty := openGroups(t, t.TempDir(), now)
	if err := empty.Exists(t.Context(), "g1"); !errors.Is(err, directory.ErrNoGroup) {
		t.Errorf("in an empty folder: %v, want ErrNoGroup", err)
	}
}

func TestGroupsFollowTheirFiles(t *testing.T) {
	dir := folder(t, "Group.ndjson", line1)
	groups := openGroups(t, dir, now)
	exists := func(id string, want error) {
		t.Helper()
		// Check predicts the next calls (pitfall 34).
		if err := groups.Check(t.Context()); errors.Is(err, export.ErrUnavailable) != errors.Is(want, export.ErrUnavailable) {
			t.Errorf("check: %v, want as for %s: %v", err, id, want)
		}
		if err := groups.Exists(t.Context(), id); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", id, err, want)
		}
	}
	exists("g1", nil)
	put(t, dir, "Group.2.ndjson", strings.Replace(line1, "g1", "g2", 1))
	exists("g1", nil)
	exists("g2", nil)

	put(t, dir, "Group.2.ndjson", "garbage")
	exists("g2", export.ErrUnavailable)
	exists("g1", export.ErrUnavailable) // the malformed line may replace it
	err := groups.Members(t.Context(), "g1", func(string) error { return nil })
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("members: %v, want ErrUnavailable", err)
	}
	must(t, os.Remove(filepath.Join(dir, "Group.2.ndjson")))
	exists("g1", nil)
	exists("g2", directory.ErrNoGroup)

	must(t, os.Rename(dir, dir+".gone"))
	exists("g1", export.ErrUnavailable)
	must(t, os.Rename(dir+".gone", dir))
	// A restored backup may be older, or of the same time and size.
	sameTime := func() {
		t.Helper()
		must(t, os.Chtimes(filepath.Join(dir, "Group.ndjson"), now(), now()))
	}
	sameTime()
	exists("g1", nil)
	put(t, dir, "Group.ndjson", strings.Replace(line1, "g1", "g9", 1))
	sameTime()
	exists("g1", directory.ErrNoGroup)
	exists("g9", nil)

	// A stream of a file continues unchanged after the file is replaced.
	n := 0
	two := strings.Replace(line1, `"member":[`, `"member":[{"entity":{"reference":"Patient/p0"}},`, 1)
	put(t, dir, "Group.ndjson", two)
	err = groups.Members(t.Context(), "g1", func(string) error {
		if n++; n == 1 {
			put(t, dir, "Group.ndjson", line1)
		}
		return nil
	})
	if err != nil || n != 2 {
		t.Errorf("%d members, want 2, error %v", n, err)
	}
	if n := count(t, groups, "g1"); n != 1 {
		t.Errorf("%d members afterwards, want 1", n)
	}
}

// pitfall 6: memory does not grow with the member list of a group.
func TestManyMembersAreNotHeld(t *testing.T) {
	const many = 50_000
	var b strings.Builder
	b.WriteString(`{"resourceType":"Group","member":[`)
	for n := range many {
		if n > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"entity":{"reference":"Patient/00000000-0000-0000-0000-%012d"}}`, n)
	}
	b.WriteString(`],"id":"big","active":true,"actual":true}` + "\n" + line1 + "\n")
	size := uint64(b.Len())
	dir := folder(t, "Group.ndjson", b.String())
	b.Reset()
	groups := openGroups(t, dir, now)

	var most, before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	err := groups.Members(t.Context(), "big", func(string) error {
		if n++; n%(many/10) == 0 {
			runtime.GC()
			var stats runtime.MemStats
			if runtime.ReadMemStats(&stats); stats.HeapAlloc > most.HeapAlloc {
				most = stats
			}
		}
		return nil
	})
	if err != nil || n != many {
		t.Fatalf("%d members, want %d, error %v", n, many, err)
	}
	if most.HeapAlloc > before.HeapAlloc+size/5 {
		t.Errorf("heap grew from %d to %d while %d bytes were streamed", before.HeapAlloc, most.HeapAlloc, size)
	}
	if n := count(t, groups, "g1"); n != 1 {
		t.Errorf("%d members of the group after the large one, want 1", n)
	}
}

func TestSyntheaGroups(t *testing.T) {
	dir, there := testenv.Synthea(t)
	if !there {
		return // TestGroups covers the same forms
	}
	groups := openGroups(t, dir, now)
	if n := count(t, groups, "BMCHealthNet"); n != 10 {
		t.Errorf("BMCHealthNet has %d members, want 10", n)
	}
}

// FuzzGroups: any file is either refused as a whole, or every group in it streams members with valid ids.
func FuzzGroups(f *testing.F) {
	for _, seed := range []string{
		"", "\n", line1, line1 + "\n" + strings.Replace(line1, "g1", "g2", 1),
		`{"resourceType":"Group","id":"g1","member":[{}]}`, `{"resourceType":"Group","id":"g1"} {}`, "{", "null",
		`{"resourceType":"Group","id":"g1","member":[null,{"entity":null}]}`,
		`{"member":[{"entity":{"reference":"http://h/Patient/1/_history/2"},"period":{"end":"2026-03"}}],"id":"g1",` +
			`"resourceType":"Group"}`,
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(filepath.Join(dir, "Group.ndjson"), data, 0o600))
		groups, err := filedir.OpenGroups(dir, now)
		if err != nil {
			return
		}
		for line := range bytes.Lines(data) {
			var group struct{ ID string }
			if err := json.Unmarshal(line, &group); err != nil {
				continue // a blank line; all others are well-formed
			}
			err := groups.Members(t.Context(), group.ID, func(id string) error {
				if !fhir.IsID(id) {
					t.Errorf("member %q is not an id", id)
				}
				return nil
			})
			if err != nil && !errors.Is(err, directory.ErrNoGroup) {
				t.Errorf("group %q: %v", group.ID, err)
			}
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
