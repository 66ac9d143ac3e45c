package filedir_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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

func TestFind(t *testing.T) {
	directorytest.Find(t, func(t *testing.T, now func() time.Time, groups []directorytest.Group) directory.Groups {
		lines := append(directorytest.NDJSON(t, groups), `{"resourceType":"Group","id":"unreadable","name":"x","member":7}`)
		return openGroups(t, folder(t, "Group.ndjson", strings.Join(lines, "\n")), now)
	})
}

func TestJoined(t *testing.T) {
	directorytest.Joined(t, func(t *testing.T, now func() time.Time, groups []directorytest.Group) directory.Groups {
		return openGroups(t, folder(t, "Group.ndjson", strings.Join(directorytest.NDJSON(t, groups), "\n")), now)
	})
}

func TestPatients(t *testing.T) {
	directorytest.Patients(t, func(t *testing.T, patients []string) directory.Groups {
		groups := openGroups(t, t.TempDir(), now)
		groups.Held = func(_ context.Context, yield func(string) error) error {
			for _, id := range patients {
				if err := yield(id); err != nil {
					return err
				}
			}
			return nil
		}
		return groups
	})
	t.Run("without a source", func(t *testing.T) {
		if ids, err := openGroups(t, t.TempDir(), now).Unknown(t.Context(), "", []string{"p"}); err != nil || ids != nil {
			t.Errorf("%q are unknown, error %v, want none", ids, err)
		}
	})
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
	groups, err := filedir.OpenGroups(t.Context(), dir, nil, now, slog.New(slog.DiscardHandler))
	must(t, err)
	return groups
}

func count(t testing.TB, groups directory.Groups, id string) int {
	t.Helper()
	n := 0
	_, err := groups.Members(t.Context(), id, func(string) error { n++; return nil })
	must(t, err)
	return n
}

const line1 = `{"resourceType":"Group","id":"g1","active":true,"actual":true,` +
	`"member":[{"entity":{"reference":"Patient/p1"}}]}`

// logged returns the groups of the folder and their log.
func logged(t *testing.T, dir string) (*filedir.Groups, *testenv.Buffer) {
	t.Helper()
	var log testenv.Buffer
	groups, err := filedir.OpenGroups(t.Context(), dir, nil, now, slog.New(slog.NewJSONHandler(&log, nil)))
	must(t, err)
	return groups, &log
}

// exists checks the error of Exists and of Members, and that Check has none.
func exists(t *testing.T, groups *filedir.Groups, id string, want error) {
	t.Helper()
	err := groups.Exists(t.Context(), id)
	_, readErr := groups.Members(t.Context(), id, func(string) error { return nil })
	if !errors.Is(err, want) || !errors.Is(readErr, want) {
		t.Errorf("%s: %v and %v, want %v", id, err, readErr, want)
	}
	must(t, groups.Check(t.Context()))
}

// pitfall 40: one line takes nothing else down.
func TestALineThatCannotBeRead(t *testing.T) {
	for name, line := range directorytest.Malformed {
		t.Run(name, func(t *testing.T) {
			g2 := strings.Replace(line1, "g1", "g2", 1) // the version before
			g2 = strings.Replace(g2, `"id"`, `"meta":{"lastUpdated":"2026-01-01T00:00:00Z"},"id"`, 1)
			for _, file := range []string{"Group.ndjson", "Groups-of-may.ndjson.gz"} {
				dir := folder(t, file, line1+"\n\n"+line+"\n"+strings.Replace(line1, "g1", "g9", 1))
				put(t, dir, "1.Group.ndjson", g2)
				groups, log := logged(t, dir)
				exists(t, groups, "g1", nil)
				exists(t, groups, "g9", nil)
				// The older version of a group does not replace a newer one that cannot be read.
				var want error
				if toldG2(name) {
					want = directory.ErrUnreadable
				}
				exists(t, groups, "g2", want)
				if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, file) || strings.Contains(text, "20391") {
					t.Errorf("logged %s", text)
				}
				if name == "another type" {
					return
				}
				if !strings.Contains(log.String(), "line 3: ") {
					t.Errorf("the log does not name the line: %s", log)
				}
				if left := groups.LeftOut(); len(left) != 1 || left[0] != (export.LeftOut{Type: "Group", Reason: export.Malformed, Count: 1}) {
					t.Errorf("left out %+v", left)
				}
			}
		})
	}
}

// toldG2 reports whether the malformed line is one of the group g2.
func toldG2(name string) bool {
	switch name {
	case "no JSON", "an array", "null", "another type", "no id", "id empty", "id not FHIR", "id too long", "id a number":
		return false
	}
	return true
}

// pitfall 40: one file takes nothing else down, and is reported.
func TestAFileThatCannotBeRead(t *testing.T) {
	g2, g3 := strings.Replace(line1, "g1", "g2", 1), strings.Replace(line1, "g1", "g3", 1)
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"cut gzip": func(t *testing.T, dir string) {
			random := make([]byte, 300_000)
			for i := range random {
				random[i] = byte('a' + rand.IntN(26))
			}
			put(t, dir, "Group.2.ndjson.gz", g2+"\n"+strings.Replace(g3, "{", `{"text":"`+string(random)+`",`, 1))
			info, err := os.Stat(filepath.Join(dir, "Group.2.ndjson.gz"))
			must(t, err)
			must(t, os.Truncate(filepath.Join(dir, "Group.2.ndjson.gz"), info.Size()-100))
		},
		"spoiled gzip": func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "Group.2.ndjson"), []byte("\x1f\x8bspoiled"), 0o600))
		},
		"a link to nowhere": func(t *testing.T, dir string) {
			must(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "Group.2.ndjson")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, "Group.1.ndjson", line1)
			spoil(t, dir)
			put(t, dir, "Group.3.ndjson", strings.Replace(line1, "g1", "g9", 1))
			groups, log := logged(t, dir)
			for range 2 {
				exists(t, groups, "g1", nil)
				exists(t, groups, "g9", nil)
			}
			if groups.Exists(t.Context(), "g3") == nil {
				t.Error("a group of the unreadable part exists")
			}
			if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "Group.2.ndjson") {
				t.Errorf("logged %s", text)
			}
			if left := groups.LeftOut(); len(left) != 1 || left[0].Reason != export.UnreadableFile || left[0].Count != 1 {
				t.Errorf("left out %+v", left)
			}
		})
	}
	t.Run("no folder", func(t *testing.T) {
		_, err := filedir.OpenGroups(t.Context(), filepath.Join(t.TempDir(), "none"), nil, now, slog.New(slog.DiscardHandler))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want ErrNotExist", err)
		}
	})
}

// TestADamagedGzipDecidesAboutNobody: whichever bit of a compressed file is wrong, and wherever it is cut off, a group has its
// members or is not available. An older version does not replace it.
func TestADamagedGzipDecidesAboutNobody(t *testing.T) {
	text := strings.Replace(line1, `"id"`, `"meta":{"versionId":"5"},"id"`, 1) + "\n"
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, text)
	must(t, errors.Join(err, w.Close()))
	damaged := map[string][]byte{}
	for bit := range 8 * b.Len() {
		wrong := bytes.Clone(b.Bytes())
		wrong[bit/8] ^= 1 << (bit % 8)
		damaged[fmt.Sprintf("bit %d", bit)] = wrong
	}
	for n := 1; n < b.Len(); n++ {
		damaged[fmt.Sprintf("%d bytes", n)] = b.Bytes()[:n]
	}
	unavailable := 0
	for name, content := range damaged {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "Group.ndjson.gz"), content, 0o600))
		groups := openGroups(t, dir, now)
		var got []string
		_, err := groups.Members(t.Context(), "g1", func(id string) error { got = append(got, id); return nil })
		if err == nil && !slices.Equal(got, []string{"p1"}) || err != nil && len(got) > 0 {
			t.Errorf("%s: members %q, error %v", name, got, err)
		}
		if err != nil && len(groups.LeftOut()) != 1 {
			t.Errorf("%s: left out %+v", name, groups.LeftOut())
		}
		if !errors.Is(err, directory.ErrUnreadable) {
			continue
		}
		unavailable++
		put(t, dir, "2.Group.ndjson", strings.Replace(line1, `"id"`, `"meta":{"versionId":"4","lastUpdated":"2026-01-01T00:00:00Z"},"id"`, 1))
		if err := groups.Exists(t.Context(), "g1"); !errors.Is(err, directory.ErrUnreadable) {
			t.Errorf("%s: an older version replaces it: %v", name, err)
		}
	}
	if unavailable == 0 {
		t.Error("the group was told in no damaged file")
	}
}

// A member group that cannot be read contributes nothing and is counted.
func TestAMemberGroupThatCannotBeRead(t *testing.T) {
	dir := folder(t, "Group.ndjson", strings.Replace(line1, `[{`, `[{"entity":{"reference":"Group/g2"}},{`, 1)+"\n"+
		`{"resourceType":"Group","id":"g2","member":[{"entity":{"reference":"Patient/p2"},"period":{"end":"2030-01-01T00:00:00"}}]}`)
	var got []string
	left, err := openGroups(t, dir, now).Members(t.Context(), "g1", func(id string) error { got = append(got, id); return nil })
	want := export.LeftOut{Reason: export.MemberGroup, Count: 1}
	if err != nil || !slices.Equal(got, []string{"p1"}) || len(left) != 1 || left[0] != want {
		t.Errorf("members %q, left out %+v, error %v", got, left, err)
	}
}

func TestTheNewestVersionOfAGroup(t *testing.T) {
	for name, test := range directorytest.Versions {
		t.Run(name, func(t *testing.T) {
			for _, second := range []string{"Group.1.ndjson", "Group.2.ndjson"} { // in one file, and in two
				dir := t.TempDir()
				files := map[string]string{}
				for n, line := range test.Lines {
					file := "Group.1.ndjson"
					if n > 0 {
						file = second
					}
					files[file] += line + "\n"
				}
				for file, text := range files {
					put(t, dir, file, text)
				}
				var got []string
				_, err := openGroups(t, dir, now).Members(t.Context(), "g", func(id string) error { got = append(got, id); return nil })
				if test.Member == "" && !errors.Is(err, export.ErrUnavailable) || test.Member != "" && (err != nil || !slices.Equal(got, []string{test.Member})) {
					t.Errorf("members %q, error %v, want %q", got, err, test.Member)
				}
			}
		})
	}
}

// Names and forms of files that clients write.
func TestFilesAreToldByTheirContent(t *testing.T) {
	const mark = "\xef\xbb\xbf"
	zipped := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, err := io.WriteString(w, text)
		must(t, errors.Join(err, w.Close()))
		return b.String()
	}
	two := line1 + "\n" + strings.Replace(line1, "g1", "g2", 1)
	for name, content := range map[string]string{
		"Group.ndjson": mark + two, "Group.2.ndjson": strings.ReplaceAll(two, "\n", "\r\n"+mark) + "\n",
		"1.Group.ndjson": two, "Group.000.ndjson": two, "2026-Group-may.jsonl": two, "GROUP.NDJSON": two, "my_groups.JSONL": two,
		"a/b/Group.ndjson": two, "Group.3.ndjson": zipped(mark + two), "Group.ndjson.gz": two, "1.Group.NDJSON.GZ": zipped(two),
		"Group.4.ndjson.gz": zipped(line1+"\n") + zipped(strings.Replace(line1, "g1", "g2", 1)),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600),
				os.WriteFile(filepath.Join(dir, "Group.empty.ndjson.gz"), nil, 0o600)))
			groups, log := logged(t, dir)
			if a, b := count(t, groups, "g1"), count(t, groups, "g2"); a != 1 || b != 1 || log.String() != "" {
				t.Errorf("%d and %d members, logged %s", a, b, log)
			}
		})
	}
}

// References that only this driver resolves: below an own base, and urns.
func TestReferencesOfMembers(t *testing.T) {
	bases, err := fhir.NewBases("https://Sluice.example/fhir", "http://old.example/r4/")
	must(t, err)
	for reference, want := range map[string]string{ // a patient id or a reason
		"https://sluice.EXAMPLE/fhir/Patient/p": "p", "HTTP://old.example/r4/Patient/p/_history/3": "p",
		"http://old.example/r4/Patient/p#x":       "p",
		"urn:uuid:11111111-2222-3333-4444-555555": "11111111-2222-3333-4444-555555", "URN:OID:1.2.3": "1.2.3",
		"https://sluice.example/Patient/p": "member_foreign", "https://sluice.example/fhirx/Patient/p": "member_foreign",
		"https://sluice.example/FHIR/Patient/p": "member_foreign", "https://sluice.example/fhir/x/Patient/p": "member_foreign",
		"http://sluice.example/fhir/Patient/p": "member_foreign", "https://sluice.example/fhir/Device/p": "member_type",
		"http://old.example/r4/Patient?identifier=x": "member_foreign", "urn:uuid:a b": "member_unresolved", "urn:uuid:": "member_unresolved",
	} {
		t.Run(reference, func(t *testing.T) {
			dir := folder(t, "Group.ndjson", strings.Replace(line1, "Patient/p1", reference, 1))
			groups, err := filedir.OpenGroups(t.Context(), dir, bases, now, slog.New(slog.DiscardHandler))
			must(t, err)
			var got []string
			left, err := groups.Members(t.Context(), "g1", func(id string) error { got = append(got, id); return nil })
			must(t, err)
			for _, l := range left {
				got = append(got, string(l.Reason))
			}
			if !slices.Equal(got, []string{want}) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestOpenGroupsOpensOnlyFilesOfGroups(t *testing.T) {
	dir := folder(t, "Group.ndjson", line1+"\r\n   \r\n")
	for _, name := range []string{
		"Patient.ndjson", "subgroup.ndjson", "Group.json", "Group.ndjson.bak", "Group", "Group.gz", ".Group.ndjson", "..data/Group.ndjson",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		put(t, dir, name, "not to be read")
	}
	must(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "Observation.ndjson")))
	must(t, os.Mkdir(filepath.Join(dir, "Group.d.ndjson"), 0o700))
	groups, log := logged(t, dir)
	if n := count(t, groups, "g1"); n != 1 || log.String() != "" {
		t.Errorf("%d members, want 1; logged %s", n, log)
	}
	for _, others := range []int{0, 2} {
		empty := t.TempDir()
		for n := range others {
			put(t, empty, fmt.Sprintf("Patient.%d.ndjson", n), "")
		}
		groups, log := logged(t, empty)
		exists(t, groups, "g1", directory.ErrNoGroup)
		text := log.String()
		if strings.Count(text, "\n") != 1 || !strings.Contains(text, "no file named *Group*.ndjson") ||
			!strings.Contains(text, fmt.Sprintf(`"files":%d`, others)) {
			t.Errorf("logged %s", text)
		}
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
	exists("g2", directory.ErrNoGroup)
	exists("g1", nil)
	put(t, dir, "Group.2.ndjson", line1[:70])
	if err := groups.Exists(t.Context(), "g1"); !errors.Is(err, directory.ErrUnreadable) { // it may have fewer members
		t.Errorf("a newer version that cannot be read: %v", err)
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
	_, err := groups.Members(t.Context(), "g1", func(string) error {
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

// The folder "deleted" of an export applies to its neighbours, as in a load.
func TestDeletedGroups(t *testing.T) {
	entry := func(method, url string) string {
		return `{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"` + method + `","url":"` + url + `"}}]}`
	}
	patient := `{"resourceType":"Patient","id":"g1"}`
	for name, test := range map[string]struct {
		file, content string
		want          error
		left          int
	}{
		"a line":                {"deleted/1.Bundle.ndjson", patient + "\n" + entry("DELETE", "Group/g1"), directory.ErrNoGroup, 0},
		"a document":            {"deleted/x/Group.json", strings.ReplaceAll(entry("DELETE", "Group/g1"), ",", ",\n"), directory.ErrNoGroup, 0},
		"compressed":            {"deleted/Group.ndjson.gz", entry("DELETE", "Group/g1"), directory.ErrNoGroup, 0},
		"a folder beside":       {"A/deleted/1.ndjson", entry("DELETE", "Group/g1"), nil, 0}, // Group.ndjson follows it
		"another group":         {"deleted/1.ndjson", entry("DELETE", "Group/g2"), nil, 0},
		"another type":          {"deleted/1.ndjson", entry("DELETE", "Patient/g1"), nil, 0},
		"another method":        {"deleted/1.ndjson", entry("GET", "Group/g1"), nil, 0},
		"another folder":        {"deletions/1.ndjson", entry("DELETE", "Group/g1"), nil, 0},
		"a group":               {"deleted/Group.ndjson", line1, nil, 1},
		"half a document":       {"deleted/1.json", "{\n" + entry("DELETE", "Group/g1")[1:60], nil, 1},
		"a line that is longer": {"deleted/1.ndjson.gz", strings.Repeat(" ", 33<<20) + entry("DELETE", "Group/g1"), nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, "Group.ndjson", line1)
			groups := openGroups(t, dir, now)
			exists(t, groups, "g1", nil)
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, test.file)), 0o700))
			put(t, dir, test.file, test.content)
			exists(t, groups, "g1", test.want)
			exists(t, openGroups(t, dir, now), "g1", test.want)
			if left := groups.LeftOut(); len(left) != test.left {
				t.Errorf("left out %+v", left)
			}
			must(t, os.Remove(filepath.Join(dir, test.file)))
			exists(t, groups, "g1", nil)
		})
	}
}

// TestTheNewestVersionAfterADeletion: the versions before a deletion are forgotten.
func TestTheNewestVersionAfterADeletion(t *testing.T) {
	for name, test := range directorytest.Recreated {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for n, line := range test.Lines {
				file := fmt.Sprintf("%d/Group.ndjson", n)
				if strings.Contains(line, "DELETE") {
					file = fmt.Sprintf("%d/deleted/1.ndjson", n)
				}
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o700))
				put(t, dir, file, line)
			}
			var got []string
			_, err := openGroups(t, dir, now).Members(t.Context(), "g", func(id string) error { got = append(got, id); return nil })
			if !errors.Is(err, test.Err) || !slices.Equal(got, test.Members) {
				t.Errorf("members %q, error %v, want %q, %v", got, err, test.Members, test.Err)
			}
		})
	}
}

// TestCallsEndAtTheirDeadline: a file that takes long is read once, by whichever calls.
func TestCallsEndAtTheirDeadline(t *testing.T) {
	dir := folder(t, "Group.1.ndjson", line1)
	groups := openGroups(t, dir, now)
	large := `{"resourceType":"Group","id":"g2","member":[` + strings.Repeat(`{"entity":{"reference":"Patient/1"}},`, 500_000) + "{}]}"
	put(t, dir, "Group.2.ndjson.gz", large)
	for range 3 {
		ctx, stop := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := groups.Members(ctx, "g2", func(string) error { return nil })
		for _, err := range []error{groups.Exists(ctx, "g1"), groups.Check(ctx), err} {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}
		stop()
	}
	must(t, groups.Exists(t.Context(), "g2"))
}

// TestAFileThatIsWrittenInPlace: Members fails, because what it has read may be of two versions.
func TestAFileThatIsWrittenInPlace(t *testing.T) {
	const many = 20_000 // more than what is read ahead
	text := func(version string) []byte {
		return []byte(strings.Replace(line1, `{"entity"`, strings.Repeat(`{"entity":{"reference":"Patient/`+version+`"}},`, many)+`{"entity"`, 1))
	}
	dir := folder(t, "Group.ndjson", string(text("old")))
	must(t, os.Chtimes(filepath.Join(dir, "Group.ndjson"), now(), now())) // times of files are coarse
	groups := openGroups(t, dir, now)
	n := 0
	_, err := groups.Members(t.Context(), "g1", func(string) error {
		if n++; n == 1 {
			must(t, os.WriteFile(filepath.Join(dir, "Group.ndjson"), text("new"), 0o600))
		}
		return nil
	})
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("%d members of two versions, error %v", n, err)
	}
	if n := count(t, groups, "g1"); n != many+1 {
		t.Errorf("%d members afterwards", n)
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
	_, err := groups.Members(t.Context(), "big", func(string) error {
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

// TestLongElementsAreNotHeld: no line of a file takes much memory, whatever is in it.
func TestLongElementsAreNotHeld(t *testing.T) {
	const long = 32 << 20
	text := strings.Repeat("a", long)
	for name, line := range map[string]string{
		"a narrative":  `{"resourceType":"Group","id":"g2","text":{"div":"` + text + `"}}`,
		"a member":     `{"resourceType":"Group","id":"g2","member":[{"entity":{"display":"` + text + `"}}]}`,
		"a key":        `{"resourceType":"Group","id":"g2","` + text + `":1}`,
		"brackets":     `{"resourceType":"Group","id":"g2","x":` + strings.Repeat("[", long),
		"another type": `{"text":"` + text + `","resourceType":"Patient"}`,
		"no JSON":      text,
	} {
		dir := folder(t, "Group.ndjson.gz", line+"\n"+line1)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		groups := openGroups(t, dir, now)
		exists(t, groups, "g1", nil)
		if runtime.ReadMemStats(&after); after.TotalAlloc > before.TotalAlloc+long/4 {
			t.Errorf("%s: %d bytes allocated", name, after.TotalAlloc-before.TotalAlloc)
		}
	}
}

// chain returns a file of groups, each of which is a member of the next one and has a patient; the last is "g0".
func chain(t testing.TB, name string, n int) *filedir.Groups {
	t.Helper()
	var b strings.Builder
	for i := n - 1; i >= 0; i-- {
		fmt.Fprintf(&b, `{"resourceType":"Group","id":"g%d","text":%q,"member":[{"entity":{"reference":"Group/g%d"}},`+
			`{"entity":{"reference":"Patient/p%d"}}]}`+"\n", i, strings.Repeat("x", 1000), (i+1)%n, i)
	}
	return openGroups(t, folder(t, name, b.String()), now)
}

// TestNestedGroupsCostOneReading: a file is opened once, however many member groups it has, in whatever order.
func TestNestedGroupsCostOneReading(t *testing.T) {
	for _, name := range []string{"Group.ndjson", "Group.ndjson.gz"} {
		for _, n := range []int{10, 100, 1000} {
			groups := chain(t, name, n)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			members := count(t, groups, "g0")
			runtime.ReadMemStats(&after)
			// An open file takes 64 KiB and more for its buffer.
			if used := after.TotalAlloc - before.TotalAlloc; members != n || used > 300_000+uint64(n)*20_000 {
				t.Errorf("%s: %d of %d members, %d bytes allocated", name, members, n, used)
			}
		}
	}
}

func BenchmarkNestedGroups(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			groups := chain(b, "Group.ndjson.gz", n)
			for b.Loop() {
				count(b, groups, "g0")
			}
		})
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

// FuzzGroups: every group in any file streams members with valid ids, or is unavailable.
func FuzzGroups(f *testing.F) {
	for _, seed := range []string{
		"", "\n", line1, line1 + "\n" + strings.Replace(line1, "g1", "g2", 1),
		`{"resourceType":"Group","id":"g1","member":[{}]}`, `{"resourceType":"Group","id":"g1","member":[{"inactive":true,"inactive":false}]}`,
		`{"resourceType":"Group","id":"g1","member" : [ {} , {"Inactive":1 2}]}`, `{"resourceType":"Group","id":"g1","member":[{]}`, `{"resourceType":"Group","id":"g1"} {}`, "{", "null",
		`{"resourceType":"Group","id":"g1","member":[null,{"entity":null}]}`,
		`{"member":[{"entity":{"reference":"http://h/Patient/1/_history/2"},"period":{"end":"2026-03"}}],"id":"g1",` +
			`"resourceType":"Group"}`,
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(filepath.Join(dir, "Group.ndjson"), data, 0o600))
		groups := openGroups(t, dir, now)
		for line := range bytes.Lines(data) {
			var group struct{ ID string }
			if err := json.Unmarshal(line, &group); err != nil {
				continue
			}
			_, err := groups.Members(t.Context(), group.ID, func(id string) error {
				if !fhir.IsID(id) {
					t.Errorf("member %q is not an id", id)
				}
				return nil
			})
			if err != nil && !errors.Is(err, directory.ErrNoGroup) && !errors.Is(err, export.ErrUnavailable) {
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
