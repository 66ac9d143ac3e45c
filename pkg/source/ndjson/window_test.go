package ndjson

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
)

// start is later than the times of the files that the tests write: they set those of what changes.
var start = time.Now().Add(time.Hour).Truncate(time.Second)

func openAt(t testing.TB, dir string, at time.Time) *Source {
	t.Helper()
	return open(t, dir, Config{batchSize: 2, now: func() time.Time { return at }})
}

func touch(t testing.TB, at time.Time, elements ...string) {
	t.Helper()
	must(t, os.Chtimes(filepath.Join(elements...), at, at))
}

// changes returns the ids of the observations, of patients a and b and of all, the new patients and what was deleted.
func changes(t testing.TB, src *Source, w source.Window) string {
	t.Helper()
	var lists [3][]string
	add := func(list int) func(source.Resource) error {
		return func(r source.Resource) error { lists[list] = append(lists[list], r.ID); return nil }
	}
	must(t, src.ForPatients(t.Context(), source.Query{Type: "Observation", Patients: []string{"a", "b"}, Window: w}, add(0)))
	must(t, src.Everything(t.Context(), source.EverythingQuery{Type: "Observation", Window: w}, add(1)))
	if !w.After.IsZero() {
		must(t, src.NewPatients(t.Context(), w.After, time.Time{}, func(id string) error {
			lists[2] = append(lists[2], id)
			return nil
		}))
	}
	for _, list := range lists {
		slices.Sort(list)
	}
	return fmt.Sprintf("%v%v", lists, deleted(t, src, source.DeletedQuery{Type: "Observation", Window: w}))
}

// deleted returns what was deleted, such as "1 of a b" or "1 of a, now b".
func deleted(t testing.TB, src *Source, q source.DeletedQuery) []string {
	t.Helper()
	var all []string
	seen := map[string]bool{}
	must(t, src.Deleted(t.Context(), q, func(d source.Deletion) error {
		if seen[d.ID] || d.At.IsZero() || !d.Held && d.Now != nil || !slices.IsSorted(d.Before) {
			t.Errorf("%+v, or twice", d)
		}
		seen[d.ID] = true
		text := d.ID + " of " + strings.Join(d.Before, " ")
		if d.Held {
			text += ", now " + strings.Join(d.Now, " ")
		}
		all = append(all, text)
		return nil
	}))
	slices.Sort(all)
	return all
}

func deletion(typ, id string) string {
	return fmt.Sprintf(`{"resourceType":"Bundle","entry":[{"request":{"method":"DELETE","url":"%s/%s"}}]}`, typ, id)
}

func version(id, patient string, number int) string {
	return observation(id, patient, fmt.Sprintf(`,"meta":{"versionId":"%d"}`, number))
}

// TestSinceGoesByLastUpdated (P-07, P-12).
func TestSinceGoesByLastUpdated(t *testing.T) {
	t.Parallel()
	updated := func(id, at string) string { return observation(id, "a", fmt.Sprintf(`,"meta":{"lastUpdated":%q}`, at)) }
	dir := folder(t, oneFile(
		updated("before", "2024-01-01T00:00:00Z"), updated("same", "2024-01-02T00:00:00Z"), updated("zone", "2024-01-02T01:00:00+01:00"),
		updated("later", "2024-01-02T00:00:00.001Z"), updated("date", "2024-01-01"), observation("none", "a", ""),
		observation("gone", "a", ""), deletion("Observation", "gone"),
	))
	touch(t, start, dir, "all.ndjson")
	src := openAt(t, dir, start.Add(time.Hour))
	must(t, src.Deleted(t.Context(), source.DeletedQuery{Type: "Observation"}, func(d source.Deletion) error {
		if !d.At.Equal(start) {
			t.Errorf("deleted at %s, want the time of the file", d.At)
		}
		return nil
	}))
	since := time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC)
	const later = "[date later none]"
	for _, test := range []struct {
		since time.Time
		want  string
	}{
		{since, "[" + later + " " + later + " []][gone of a]"},
		{start.Add(-time.Second), "[[date none] [date none] []][gone of a]"},
		{start, "[[date none] [date none] []][]"}, // the file was changed then
	} {
		if got := changes(t, src, source.Window{Since: test.since}); got != test.want {
			t.Errorf("since %s: got %s, want %s", test.since, got, test.want)
		}
	}
}

// TestAfterGoesByTheTimesOfTheFolder: by what was loaded, whatever lastUpdated is (spec 9).
func TestAfterGoesByTheTimesOfTheFolder(t *testing.T) {
	t.Parallel()
	const all = "[[1 2 3] [1 2 3] [a]][gone of a]"
	const nothing = "[[] [] []][]"
	for name, test := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"nothing":       {func(*testing.T, string) {}, nothing},
		"a hidden file": {func(t *testing.T, dir string) { touch(t, start.Add(time.Minute), dir, ".x") }, nothing},
		"a file in a hidden folder": {func(t *testing.T, dir string) {
			touch(t, start.Add(time.Minute), dir, ".hidden/x.ndjson")
		}, nothing},
		"a change long before":    {func(t *testing.T, dir string) { touch(t, start.Add(-3*time.Second), dir, "a.ndjson") }, nothing},
		"a change shortly before": {func(t *testing.T, dir string) { touch(t, start.Add(-time.Second), dir, "a.ndjson") }, all},
		"a change":                {func(t *testing.T, dir string) { touch(t, start.Add(time.Minute), dir, "a.ndjson") }, all},
		"a file without resources, such as one that was emptied": {func(t *testing.T, dir string) {
			touch(t, start.Add(time.Minute), dir, "b/empty.ndjson")
		}, all},
		"a file was added or removed": {func(t *testing.T, dir string) { touch(t, start.Add(time.Minute), dir) }, all},
		"and in a subfolder":          {func(t *testing.T, dir string) { touch(t, start.Add(time.Minute), dir, "b") }, all},
		"the target of a link": {func(t *testing.T, dir string) {
			touch(t, start.Add(time.Minute), dir, ".hidden/linked.ndjson")
		}, all},
		"a file is in the future": {func(t *testing.T, dir string) { touch(t, start.Add(48*time.Hour), dir, "a.ndjson") }, all},
		"a file cannot be opened": {func(t *testing.T, dir string) {
			must(t, os.Symlink("nowhere", filepath.Join(dir, "c.ndjson")))
		}, all},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t, map[string][]byte{
				"a.ndjson":   []byte(`{"resourceType":"Patient","id":"a"}` + "\n" + observation("1", "a", `,"meta":{"lastUpdated":"2999-01-01T00:00:00Z"}`)),
				"b/b.ndjson": []byte(observation("2", "a", "") + "\n" + observation("gone", "a", "") + "\n" + deletion("Observation", "gone")),
				".x":         nil, ".hidden/x.ndjson": nil, ".hidden/linked.ndjson": []byte(observation("3", "a", "")), "b/empty.ndjson": nil,
			})
			must(t, os.Symlink(".hidden/linked.ndjson", filepath.Join(dir, "l.ndjson")))
			before := openAt(t, dir, start)
			after, err := before.Snapshot(t.Context(), start.Add(time.Minute))
			must(t, err)
			if got := changes(t, before, source.Window{After: after}); got != nothing || !after.Equal(start) {
				t.Errorf("the same process, snapshot %s: got %s", after, got)
			}
			test.change(t, dir)
			src := openAt(t, dir, start.Add(24*time.Hour))
			if got := changes(t, src, source.Window{After: after}); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			next, err := src.Snapshot(t.Context(), start.Add(48*time.Hour))
			must(t, err)
			want := nothing
			if src.history.unsure { // then the chain never skips anything
				want = all
			}
			if got := changes(t, src, source.Window{After: next}); got != want {
				t.Errorf("the next of the chain: got %s, want %s", got, want)
			}
		})
	}
}

// TestAfterTheSnapshotOfALaterProcess: several workers read one folder, each when it starts.
func TestAfterTheSnapshotOfALaterProcess(t *testing.T) {
	t.Parallel()
	dir := folder(t, oneFile(observation("1", "a", "")))
	now := start
	early := open(t, dir, Config{now: func() time.Time { return now }})
	late := openAt(t, dir, start.Add(time.Hour))
	after, err := late.Snapshot(t.Context(), start.Add(2*time.Hour))
	must(t, err)
	if next, err := late.Snapshot(t.Context(), start.Add(30*time.Minute)); err != nil || !next.Equal(start.Add(30*time.Minute)) {
		t.Errorf("an earlier now: snapshot %s (%v)", next, err)
	}
	const all, nothing = "[[1] [1] []][]", "[[] [] []][]"
	for _, step := range []struct {
		now    time.Time
		change bool
		after  time.Time
		want   string
	}{
		{start, false, after, all}, // its clock is an hour late: not known
		{start.Add(2 * time.Hour), false, after, nothing},
		{start.Add(3 * time.Hour), true, after, nothing}, // it has seen that it was the same then
		{start.Add(3 * time.Hour), true, after.Add(2 * time.Hour), all},
	} {
		now = step.now
		if step.change {
			touch(t, start.Add(150*time.Minute), dir)
		}
		if got := changes(t, early, source.Window{After: step.after}); got != step.want {
			t.Errorf("at %s: got %s, want %s", step.now, got, step.want)
		}
	}
	must(t, os.RemoveAll(dir))
	now = start.Add(5 * time.Hour)
	if got := changes(t, early, source.Window{After: start.Add(4 * time.Hour)}); got != all {
		t.Errorf("the folder is gone: got %s", got)
	}
	if at, err := early.Snapshot(t.Context(), now); err != nil || at.After(start.Add(2*time.Hour)) {
		t.Errorf("the folder is gone: snapshot %s (%v)", at, err)
	}
}

// TestAFileThatCannotBeOpened: a later process may have it, and no time shows that.
func TestAFileThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	dir := folder(t, oneFile(observation("1", "a", "")))
	must(t, os.Symlink("nowhere", filepath.Join(dir, "b.ndjson")))
	touch(t, start, dir)
	after, err := openAt(t, dir, start.Add(time.Hour)).Snapshot(t.Context(), start.Add(2*time.Hour))
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "b.ndjson")))
	touch(t, start, dir)
	if got := changes(t, openAt(t, dir, start.Add(3*time.Hour)), source.Window{After: after}); got != "[[1] [1] []][]" {
		t.Errorf("got %s", got)
	}
}

// TestAnOldTimeDoesNotHideAChange: copies keep the time of the original, also of a folder, and a link may lead elsewhere.
func TestAnOldTimeDoesNotHideAChange(t *testing.T) {
	t.Parallel()
	dir, old := folder(t, oneFile(observation("1", "a", ""))), time.Unix(1e9, 0)
	began := time.Now().Add(-margin)
	for range 2 {
		touch(t, old, dir, "all.ndjson")
		touch(t, old, dir)
		if last, err := lastChange(t.Context(), dir); err != nil || last.Before(began) {
			t.Errorf("changed %s (%v)", last, err)
		}
		link := filepath.Join(t.TempDir(), "link")
		must(t, os.Symlink(dir, link))
		dir = filepath.Join(link, ".")
	}
	var info fs.FileInfo
	info, err := os.Lstat(filepath.Clean(dir))
	must(t, err)
	if last, err := lastChange(t.Context(), dir); err != nil || last.Before(info.ModTime()) || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link was changed %s, the folder %s (%v)", info.ModTime(), last, err)
	}
}

// TestSnapshotIsTheLastInstantOfTheSameFolder: so that an export can continue soon after the folder was filled.
func TestSnapshotIsTheLastInstantOfTheSameFolder(t *testing.T) {
	t.Parallel()
	dir := folder(t, oneFile(observation("1", "a", "")))
	touch(t, start.Add(-time.Second), dir, "all.ndjson")
	now := start
	src := open(t, dir, Config{now: func() time.Time { return now }})
	for _, step := range []struct {
		after   time.Duration
		changed time.Duration
		want    time.Duration
		text    string
	}{
		{0, -1, 0, "[[1] [1] []][]"}, // perhaps changed after it
		{3*time.Second + 1, -1, 3 * time.Second, "[[] [] []][]"},
		{9 * time.Second, 8, 3 * time.Second, "[[] [] []][]"},
	} {
		now = start.Add(step.after)
		if step.changed > 0 {
			touch(t, start.Add(step.changed*time.Second), dir, "all.ndjson")
		}
		at, err := src.Snapshot(t.Context(), now.Add(time.Hour))
		if err != nil || !at.Equal(start.Add(step.want)) {
			t.Errorf("after %s: snapshot %s (%v)", step.after, at, err)
		}
		if step.changed > 0 {
			continue // the file was changed in place: reads fail
		}
		if got := changes(t, src, source.Window{After: at}); got != step.text {
			t.Errorf("after %s: got %s, want %s", step.after, got, step.text)
		}
	}
}

func TestLastChangeFails(t *testing.T) {
	t.Parallel()
	if _, err := lastChange(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dir := folder(t, oneFile(observation("1", "a", "")))
	src := openAt(t, dir, start)
	cancel()
	if _, err := lastChange(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := src.Snapshot(ctx, start); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: snapshot: %v", err)
	}
	later := source.Window{After: start.Add(time.Hour)}
	for name, err := range map[string]error{
		"by patient": src.ForPatients(ctx, source.Query{Type: "Goal", Patients: []string{"a"}, Window: later}, nil),
		"everything": src.Everything(ctx, source.EverythingQuery{Type: "Goal", Window: later}, nil),
		"deleted":    src.Deleted(ctx, source.DeletedQuery{Type: "Goal", Window: later}, nil),
		"patients":   src.NewPatients(ctx, later.After, start, nil),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %s: %v", name, err)
		}
	}
}

func TestDeletedIsWhatTheFilesTell(t *testing.T) {
	t.Parallel()
	const refused = `,"Subject":1`
	provenance := func(id string, targets ...string) string { return about("Provenance", id, "target", targets...) }
	src := open(t, folder(t, map[string][]byte{
		"1/a.ndjson": []byte(strings.Join([]string{
			`{"resourceType":"Patient","id":"a"}`, `{"resourceType":"Patient","id":"b"}`, `{"resourceType":"Patient","id":"gone"}`,
			observation("kept", "a", ""), observation("deleted", "a", ""), observation("restored", "a", ""),
			observation("restored-of-b", "a", ""), version("moved", "a", 1), version("moved-back", "a", 1), version("moved-early", "a", 1),
			version("moved-early", "b", 2), version("updated", "a", 1),
			version("newest-first", "b", 2), version("newest-first", "a", 1), version("refused", "a", 1),
			version("between", "c", 3), version("between", "a", 1), version("between", "b", 2),
			version("twice", "a", 5), deletion("Observation", "twice"), version("twice", "b", 1),
			version("lower", "a", 5), deletion("Observation", "lower"), version("lower", "b", 1), version("lower", "c", 2),
			deletion("Observation", "only-refused"), observation("only-refused", "a", refused),
			observation("of-none", "a", `,"subject":{}`), `{"resourceType":"Observation","id":"homeless"}`,
			strings.Replace(observation("urn", "a", ""), "Patient/a", "urn:uuid:b", 1),
			strings.Replace(observation("urn-same", "a", ""), "Patient/a", "urn:uuid:b", 1),
			about("Appointment", "both", "participant.actor", "Patient/b", "Patient/a", "urn:uuid:x"),
			about("Appointment", "fewer", "participant.actor", "Patient/b", "Patient/a"),
			provenance("of-a", "Patient/a"), provenance("of-deleted", "Observation/deleted", "Observation/kept", "Appointment/both"),
			provenance("of-unknown", "Observation/none"), provenance("of-org", "Organization/o"), provenance("moved", "Observation/kept"),
			provenance("same", "Observation/kept", "Patient/b"), provenance("of-kept-provenance", "Provenance/same"),
			provenance("of-deleted-provenance", "Provenance/of-a"),
			`{"resourceType":"Organization","id":"o"}`, about("Task", "t", "for", "Patient/a"),
		}, "\n")),
		"2/b.json": []byte(`{"resourceType":"Bundle","type":"transaction","entry":[` +
			`{"request":{"method":"DELETE","url":"Observation/deleted"}},{"request":{"method":"DELETE","url":"Organization/o"}},` +
			`{"request":{"method":"DELETE","url":"Task/t"}},{"request":{"method":"DELETE","url":"Nothing/t"}},` +
			`{"request":{"method":"DELETE","url":"Observation/never-held"}},{"request":{"method":"DELETE","url":"Patient/gone"}}]}`),
		"3/c.ndjson.gz": zip(t, []byte(strings.Join([]string{
			deletion("Observation", "restored"), deletion("Observation", "restored-of-b"), deletion("Observation", "twice"),
			deletion("Observation", "homeless"), deletion("Observation", "urn"), deletion("Appointment", "both"),
			deletion("Provenance", "of-a"), deletion("Provenance", "of-deleted"), deletion("Provenance", "of-unknown"),
			deletion("Provenance", "of-org"), deletion("Provenance", "of-kept-provenance"), deletion("Provenance", "of-deleted-provenance"),
			observation("restored", "a", ""), observation("restored-of-b", "b", ""),
			version("moved", "b", 2), version("moved-back", "b", 2), version("moved-back", "a", 3), version("updated", "a", 2), version("moved-early", "b", 3),
			strings.Replace(version("refused", "b", 2), `"id"`, `"Subject":1,"id"`, 1), observation("urn-same", "b", ""),
			about("Appointment", "fewer", "participant.actor", "Patient/b"), provenance("moved", "Patient/b"),
			provenance("same", "Patient/b", "Patient/a"),
		}, "\n"))),
	}), Config{batchSize: 2})
	all := map[string][]string{
		"Observation": {"between of b, now c", "deleted of a", "homeless of ", "lower of b, now c", "moved of a, now b",
			"moved-back of b, now a", "moved-early of a, now b", "never-held of ", "newest-first of a, now b", "only-refused of ", "refused of a",
			"restored-of-b of a, now b", "twice of b", "urn of b"},
		"Appointment": {"both of a b ~", "fewer of a b, now b"},
		"Provenance": {"moved of a, now b", "of-a of a", "of-deleted of a b ~", "of-deleted-provenance of ~", "of-kept-provenance of a b",
			"of-org of ", "of-unknown of ~"},
		"Organization": {"o of "}, "Task": {"t of "}, "Patient": {"gone of gone"}, "Goal": nil, "Group": nil,
	}
	for typ, want := range all {
		if got := deleted(t, src, source.DeletedQuery{Type: typ}); !slices.Equal(got, want) {
			t.Errorf("%s: got %q\nwant %q", typ, got, want)
		}
		if got := deleted(t, src, source.DeletedQuery{Type: typ, Patients: []string{}}); len(got) > 0 {
			t.Errorf("%s of no patient: got %q", typ, got)
		}
		for _, patients := range [][]string{{"a"}, {"b"}, {"a", "b"}, {"", source.NoPatient, "x", source.Somebody}} {
			if got, want := deleted(t, src, source.DeletedQuery{Type: typ, Patients: patients}), of(want, patients); !slices.Equal(got, want) {
				t.Errorf("%s of %q: got %q\nwant %q", typ, patients, got, want)
			}
		}
	}
	for _, q := range []source.DeletedQuery{{Type: "Nothing"}, {Type: "Task", Patients: []string{"b", "a"}}} {
		if err := src.Deleted(t.Context(), q, nil); err == nil {
			t.Errorf("%+v: no error", q)
		}
	}
}

// of returns those of what deleted returns that were about one of the patients.
func of(all, patients []string) []string {
	var some []string
	for _, text := range all {
		before, _, _ := strings.Cut(strings.SplitN(text, " of ", 2)[1], ",")
		if slices.ContainsFunc(strings.Fields(before), func(id string) bool { return id != source.Somebody && slices.Contains(patients, id) }) {
			some = append(some, text)
		}
	}
	return some
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	sourcetest.Refusals(t, func(t *testing.T) (source.Source, func(lines ...string)) {
		dir, s, loads := t.TempDir(), &struct{ *Source }{}, 0
		load := func(lines ...string) {
			loads++
			name := filepath.Join(dir, fmt.Sprintf("%d.ndjson", loads))
			must(t, os.WriteFile(name, []byte(strings.Join(lines, "\n")), 0o600))
			s.Source = open(t, dir, Config{})
		}
		load()
		return s, load
	})
}

// TestDeletedAgainstAModel: random versions and deletions in several files, in ranges and by patients.
func TestDeletedAgainstAModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	patients := []string{"Z", "a", "b", "c"}
	for range 100 {
		shown, before := map[string][]string{}, map[string][]string{} // patients by id
		gone := map[string]bool{}
		files := map[string][]byte{}
		for n := range random.IntN(60) {
			id, name := fmt.Sprint(random.IntN(8)), fmt.Sprintf("%02d.ndjson", n/10)
			held, is := shown[id]
			if random.IntN(3) == 0 {
				if is {
					before[id] = held
				}
				delete(shown, id)
				gone[id] = true
				files[name] = append(files[name], deletion("Appointment", id)+"\n"...)
				continue
			}
			var of, actors []string
			for _, patient := range patients {
				if random.IntN(3) == 0 {
					of, actors = append(of, patient), append(actors, "Patient/"+patient)
				}
			}
			if is && !slices.Equal(held, of) {
				before[id] = held
			}
			shown[id] = of
			files[name] = append(files[name], about("Appointment", id, "participant.actor", actors...)+"\n"...)
		}
		want := map[string]string{} // by text: the smallest patient
		for id := range maps.Keys(merged(gone, before)) {
			was, known := before[id]
			now, held := shown[id]
			if held && (!known || slices.Equal(was, now)) {
				continue
			}
			text := id + " of " + strings.Join(was, " ")
			if held {
				text += ", now " + strings.Join(now, " ")
			}
			want[text] = append(slices.Clone(was), "")[0]
		}
		src := open(t, folder(t, files), Config{batchSize: 1 + random.IntN(4)})
		if got := deleted(t, src, source.DeletedQuery{Type: "Appointment"}); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("got %q\nwant %q\nof %s", got, want, bytes.Join(slices.Collect(maps.Values(files)), []byte("--\n")))
		}
		cuts := append([]string{"", source.NoPatient}, patients[random.IntN(3):]...)
		for n, from := range cuts {
			to := append(cuts, "")[n+1]
			var some []string
			for text, smallest := range want {
				if smallest >= from && (to == "" || smallest < to) {
					some = append(some, text)
				}
			}
			slices.Sort(some)
			if got := deleted(t, src, source.DeletedQuery{Type: "Appointment", From: from, To: to}); !slices.Equal(got, some) {
				t.Errorf("from %q to %q: got %q, want %q", from, to, got, some)
			}
		}
		asked := patients[random.IntN(4):]
		if got, want := deleted(t, src, source.DeletedQuery{Type: "Appointment", Patients: asked}),
			of(slices.Sorted(maps.Keys(want)), asked); !slices.Equal(got, want) {
			t.Errorf("of %q: got %q, want %q", asked, got, want)
		}
	}
}

func merged(gone map[string]bool, before map[string][]string) map[string]bool {
	all := maps.Clone(gone)
	for id := range before {
		all[id] = true
	}
	return all
}
