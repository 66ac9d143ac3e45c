package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
)

// keeping returns a configuration that trims nothing during a test.
func keeping() postgres.LoadConfig { return postgres.LoadConfig{Parallel: 2, History: 24 * time.Hour} }

func ndjson(lines ...string) map[string][]byte {
	return map[string][]byte{"all.ndjson": []byte(strings.Join(lines, "\n"))}
}

// observation returns a line; updated is the day of its lastUpdated in January, or 0 for none.
func observation(id, patient string, updated int, more ...string) string {
	meta := ""
	if updated > 0 {
		meta = fmt.Sprintf(`"meta":{"lastUpdated":"2024-01-%02dT00:00:00Z"},`, updated)
	}
	return fmt.Sprintf(`{"resourceType":"Observation","id":%q,%s"subject":{"reference":"Patient/%s"}%s}`,
		id, meta, patient, strings.Join(append([]string{""}, more...), ","))
}

func provenance(id string, targets ...string) string {
	var list []string
	for _, target := range targets {
		list = append(list, fmt.Sprintf(`{"reference":%q}`, target))
	}
	return fmt.Sprintf(`{"resourceType":"Provenance","id":%q,"target":[%s]}`, id, strings.Join(list, ","))
}

// snapshot takes a snapshot. It includes all loads: Seal waits for the next second.
func (s *store) snapshot() time.Time {
	s.t.Helper()
	at, err := s.src.Snapshot(s.t.Context(), time.Time{})
	must(s.t, err)
	return at
}

// read returns the bodies of a type of the patients as of an instant, by id.
func (s *store) read(at time.Time, typ string, patients ...string) map[string]string {
	s.t.Helper()
	got := map[string]string{}
	q := source.Query{Type: typ, Patients: patients, AsOf: at}
	err := s.src.ForPatients(s.t.Context(), q, func(r source.Resource) error {
		if _, twice := got[r.ID]; twice {
			return fmt.Errorf("%s was yielded twice", r.ID)
		}
		got[r.ID] = strings.Join(r.Subjects, "+") + " " + string(r.Body)
		return nil
	})
	must(s.t, err)
	return got
}

// everything returns the bodies of a type as of an instant, by id.
func (s *store) everything(at time.Time, typ string) map[string]string {
	s.t.Helper()
	got := map[string]string{}
	q := source.EverythingQuery{Type: typ, AsOf: at}
	must(s.t, s.src.Everything(s.t.Context(), q, func(r source.Resource) error {
		if _, twice := got[r.ID]; twice {
			return fmt.Errorf("%s was yielded twice", r.ID)
		}
		got[r.ID] = strings.Join(r.Subjects, "+") + " " + string(r.Body)
		return nil
	}))
	return got
}

func ids(got map[string]string) string { return strings.Join(slices.Sorted(maps.Keys(got)), " ") }

func (s *store) expect(at time.Time, typ, want string, patients ...string) {
	s.t.Helper()
	if got := ids(s.read(at, typ, patients...)); got != want {
		s.t.Errorf("%s of %v: got %q, want %q", typ, patients, got, want)
	}
}

func (s *store) exec(text string, args ...any) {
	s.t.Helper()
	if _, err := s.in.Exec(s.t.Context(), text, args...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) count(text string, args ...any) (n int64) {
	s.t.Helper()
	must(s.t, s.in.QueryRow(s.t.Context(), text, args...).Scan(&n))
	return n
}

// sizesHold compares the stored sizes with the rows.
func (s *store) sizesHold() {
	s.t.Helper()
	sizes, err := s.src.Sizes(s.t.Context())
	must(s.t, err)
	rows, err := s.in.Query(s.t.Context(), `SELECT type, count(*) FILTER (WHERE ended IS NULL),
		coalesce(sum(octet_length(body) + 1) FILTER (WHERE ended IS NULL), 0) FROM resource GROUP BY type`)
	must(s.t, err)
	want := map[string]source.TypeSize{}
	var typ string
	var size source.TypeSize
	if _, err := pgx.ForEachRow(rows, []any{&typ, &size.Resources, &size.Bytes}, func() error {
		want[typ] = size
		return nil
	}); err != nil {
		s.t.Fatal(err)
	}
	if !maps.Equal(sizes.Types, want) {
		s.t.Errorf("stored sizes %v, want %v", sizes.Types, want)
	}
}

func TestLoadKeepsOlderSnapshots(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	first := s.loadWith(ndjson(observation("kept", "a", 5), observation("newer", "a", 5), observation("older", "a", 5),
		observation("undated", "a", 0), observation("tie", "a", 5), observation("moved", "a", 5)), keeping())
	before := s.snapshot()
	second := s.loadWith(ndjson(observation("kept", "a", 5), observation("newer", "a", 6, `"status":"new"`),
		observation("older", "a", 4, `"status":"old"`), observation("undated", "a", 0, `"status":"new"`),
		observation("tie", "a", 5, `"status":"new"`), observation("moved", "b", 6), observation("added", "a", 1)), keeping())
	after := s.snapshot()

	if first != (postgres.Merged{Added: 6}) || second != (postgres.Merged{Added: 1, Replaced: 4, Unchanged: 2}) {
		t.Errorf("merged %+v and %+v", first, second)
	}
	s.expect(before, "Observation", "kept moved newer older tie undated", "a")
	s.expect(before, "Observation", "", "b")
	for id, body := range s.read(before, "Observation", "a") {
		if strings.Contains(body, "status") {
			t.Errorf("the snapshot shows %s of a later load", id)
		}
	}
	s.expect(after, "Observation", "added kept newer older tie undated", "a")
	s.expect(after, "Observation", "moved", "b")
	for id, body := range s.read(after, "Observation", "a") {
		if updated := slices.Contains([]string{"newer", "undated", "tie"}, id); updated != strings.Contains(body, `"new"`) ||
			strings.Contains(body, `"old"`) {
			t.Errorf("%s: %s", id, body)
		}
	}
	s.expect(time.Time{}, "Observation", "moved", "b")
	s.expect(before.Add(-time.Hour), "Observation", "", "a", "b")
	s.sizesHold()
}

func TestDeleteMissing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.loadWith(ndjson(`{"resourceType":"Patient","id":"a"}`, observation("stays", "a", 1), observation("goes", "a", 1),
		`{"resourceType":"Appointment","id":"both","participant":[{"actor":{"reference":"Patient/b"}},{"actor":{"reference":"Patient/a"}}]}`,
		`{"resourceType":"Condition","id":"untouched","subject":{"reference":"Patient/a"}}`), keeping())
	before := s.snapshot()
	cfg := keeping()
	cfg.DeleteMissing = true
	merged := s.loadWith(ndjson(observation("stays", "a", 1), `{"resourceType":"Patient","id":"a"}`,
		`{"resourceType":"Appointment","id":"other","participant":[{"actor":{"reference":"Patient/a"}}]}`), cfg)
	if merged != (postgres.Merged{Added: 1, Unchanged: 2, Deleted: 2}) {
		t.Errorf("merged %+v", merged)
	}
	s.expect(before, "Observation", "goes stays", "a")
	s.expect(before, "Appointment", "both", "b")
	s.expect(time.Time{}, "Observation", "stays", "a")
	s.expect(time.Time{}, "Appointment", "other", "a", "b")
	s.expect(time.Time{}, "Condition", "untouched", "a") // the load has none of the type
	if n := s.count(`SELECT count(*) FROM tombstone WHERE (type, id, patient, others) IN
		(VALUES ('Observation', 'goes', 'a', NULL::text[]), ('Appointment', 'both', 'a', ARRAY['a', 'b']))
		OR type = 'Observation' AND id = 'goes' AND patient = 'a'`); n != 2 {
		t.Errorf("%d tombstones, want 2", n)
	}
	s.sizesHold()

	s.loadWith(ndjson(observation("goes", "a", 1)), keeping()) // loading it again restores it
	s.expect(time.Time{}, "Observation", "goes stays", "a")
	s.sizesHold()
}

// TestProvenanceFollowsItsTargets: the patients of a Provenance change with its targets, also transitively.
func TestProvenanceFollowsItsTargets(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.loadWith(ndjson(observation("o", "a", 1), provenance("p", "Observation/o"), provenance("q", "Provenance/p"),
		provenance("early", "Observation/late"), provenance("r", "Patient/c", "Provenance/q"), provenance("fixed", "Patient/a")),
		keeping())
	before := s.snapshot()
	s.expect(before, "Provenance", "fixed p q r", "a")
	s.expect(before, "Provenance", "r", "c")
	s.loadWith(ndjson(observation("o", "b", 2), observation("late", "b", 1)), keeping())
	moved := s.snapshot()
	s.expect(moved, "Provenance", "fixed", "a")
	s.expect(moved, "Provenance", "early p q r", "b")
	s.expect(moved, "Provenance", "r", "c")
	s.expect(before, "Provenance", "fixed p q r", "a")
	s.expect(before, "Provenance", "", "b")
	s.sizesHold()

	s.loadWith(ndjson(provenance("p", "Observation/late", "Patient/d"), provenance("fixed", "Practitioner/x")), keeping())
	s.expect(time.Time{}, "Provenance", "p q r", "d")
	s.expect(time.Time{}, "Provenance", "early p q r", "b")
	s.expect(time.Time{}, "Provenance", "", "a")
	cfg := keeping()
	cfg.DeleteMissing = true
	s.loadWith(ndjson(observation("late", "b", 1)), cfg) // deletes o
	s.expect(time.Time{}, "Provenance", "early p q r", "b")
	s.loadWith(ndjson(provenance("q", "Provenance/p"), provenance("r", "Patient/c", "Provenance/q")), cfg) // deletes p
	s.expect(time.Time{}, "Provenance", "", "b", "d")
	s.expect(time.Time{}, "Provenance", "r", "c")
	s.expect(before, "Provenance", "fixed p q r", "a")
	s.sizesHold()

	about := func(at time.Time, want string) {
		t.Helper()
		var got []string
		q := source.AboutQuery{Refs: []source.Ref{{Type: "Practitioner", ID: "x"}}, AsOf: at}
		if err := s.src.About(t.Context(), q, func(r source.Resource) error {
			got = append(got, r.ID)
			return nil
		}); err != nil || strings.Join(got, " ") != want {
			t.Errorf("about the practitioner: %v (%v), want %q", got, err, want)
		}
	}
	about(before, "")
	about(time.Time{}, "") // fixed was deleted with p
	s.loadWith(ndjson(provenance("fixed", "Practitioner/x")), keeping())
	about(time.Time{}, "") // the practitioner is not held
	s.loadWith(ndjson(`{"resourceType":"Practitioner","id":"x"}`), keeping())
	about(time.Time{}, "fixed")
}

// TestUnfinishedLoadIsUndone: an unsealed load is invisible, at whichever step it ended, and the next one undoes it.
func TestUnfinishedLoadIsUndone(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.loadWith(ndjson(observation("o", "a", 1), observation("gone", "a", 1), provenance("p", "Observation/o")), keeping())
	broken := errors.New("broken")
	for name, end := range map[string]func(*postgres.Load){
		"staged": func(*postgres.Load) {},
		"merged": func(load *postgres.Load) {
			_, err := load.Seal(t.Context(), nil, func(context.Context, pgx.Tx) error { return broken })
			if !errors.Is(err, broken) {
				t.Fatalf("the load was sealed: %v", err)
			}
		},
		"cancelled": func(load *postgres.Load) {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := load.Seal(ctx, nil, func(context.Context, pgx.Tx) error { cancel(); return nil })
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("the load was sealed: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := keeping()
			cfg.DeleteMissing = true
			load := s.begin(cfg)
			s.stage(load, ndjson(observation("o", "b", 2), observation("new", "a", 1), provenance("p", "Patient/c"),
				provenance("n", "Observation/new")))
			end(load)
			s.expect(time.Time{}, "Observation", "gone o", "a")
			s.expect(time.Time{}, "Provenance", "p", "a")
			must(t, load.Close(context.WithoutCancel(t.Context())))
			s.expect(time.Time{}, "Observation", "gone o", "a")
			s.expect(time.Time{}, "Observation", "", "b")

			s.loadWith(ndjson(observation("o", "a", 1)), keeping()) // nothing new
			s.expect(time.Time{}, "Observation", "gone o", "a")
			s.expect(time.Time{}, "Provenance", "p", "a")
			if n := s.count("SELECT count(*) FROM resource"); n != 3 {
				t.Errorf("%d versions are stored, want 3", n)
			}
			if n := s.count(`SELECT (SELECT count(*) FROM tombstone) + (SELECT count(*) FROM target)
				+ (SELECT count(*) FROM pg_namespace WHERE nspname = 'sluice_stage')`); n != 1 {
				t.Errorf("%d tombstones, targets and stages are left, want one target", n)
			}
			s.sizesHold()
		})
	}
}

// TestLostTurn: after the session of a load has ended and another load has begun, the first one has no further effect.
func TestLostTurn(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.load(ndjson(observation("o", "a", 1)))
	lost := s.begin(keeping())
	s.stage(lost, ndjson(observation("o", "b", 2)))
	if _, err := postgres.BeginLoad(t.Context(), s.in, keeping()); !errors.Is(err, pgdb.ErrBusy) {
		t.Fatalf("a second load: %v, want ErrBusy", err)
	}
	s.exec(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	// The server releases the turn some time after the session has ended.
	var mine *postgres.Load
	for deadline := time.Now().Add(time.Minute); mine == nil; {
		var err error
		if mine, err = postgres.BeginLoad(t.Context(), s.in, keeping()); err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	s.stage(mine, ndjson(observation("p", "a", 1)))
	if err := lost.Stage(t.Context(), "Observation", []postgres.Line{{
		Facts: fhir.Facts{Type: "Observation", ID: "q"}, Body: []byte(`{"resourceType":"Observation","id":"q"}`),
	}}); err == nil {
		t.Error("a load without turn staged into the tables of the next one")
	}
	if _, err := lost.Seal(t.Context(), nil, nil); err == nil {
		t.Error("a load without turn was sealed")
	}
	if err := lost.Close(t.Context()); err == nil {
		t.Error("Close without turn: no error")
	}
	if _, err := mine.Seal(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	must(t, mine.Close(t.Context()))
	s.expect(time.Time{}, "Observation", "o p", "a")
	s.expect(time.Time{}, "Observation", "", "b")
	s.sizesHold()
}

// TestLostStage: a crash of the server empties the stage, which new connections do not report.
func TestLostStage(t *testing.T) {
	t.Parallel()
	shared := newStore(t)
	for name, table := range map[string]string{"resources": "observation", "targets": `"a target"`} {
		t.Run(name, func(t *testing.T) {
			s := shared.cleared(t)
			s.load(ndjson(observation("o", "a", 1), provenance("p", "Observation/o")))
			cfg := keeping()
			cfg.DeleteMissing = true
			load := s.begin(cfg)
			s.stage(load, ndjson(observation("o", "a", 1), observation("n", "b", 1), provenance("q", "Observation/n")))
			s.exec("TRUNCATE sluice_stage." + table)
			if _, err := load.Seal(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "staged rows are left") {
				t.Errorf("sealed: %v", err)
			}
			must(t, load.Close(t.Context()))
			s.expect(time.Time{}, "Observation", "o", "a")
			s.expect(time.Time{}, "Provenance", "p", "a")
		})
	}
}

// TestEverythingAsOf: types of no compartment have versions, deletions and tombstones too, and Patients has the held ones.
func TestEverythingAsOf(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	line := func(typ, id, status string) string {
		return fmt.Sprintf(`{"resourceType":%q,"id":%q,"status":%q}`, typ, id, status)
	}
	gone := func(ref string) string {
		return `{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"` + ref + `"}}]}`
	}
	s.loadWith(ndjson(line("Patient", "a", "1"), line("Patient", "b", "1"), line("Group", "g", "1"), line("Group", "gone", "1"),
		line("Questionnaire", "q", "1"), line("Questionnaire", "missing", "1"), provenance("p", "Group/g"),
		observation("o", "c", 1)), keeping())
	before := s.snapshot()
	cfg := keeping()
	cfg.DeleteMissing = true
	merged := s.loadWith(ndjson(line("Group", "g", "2"), line("Group", "new", "2"), line("Questionnaire", "q", "2"),
		gone("Patient/a"), line("Patient", "c", "2"), line("Patient", "b", "1")), cfg)
	if merged != (postgres.Merged{Added: 2, Replaced: 2, Unchanged: 1, Deleted: 3}) {
		t.Errorf("merged %+v", merged)
	}
	merged = s.loadWith(ndjson(gone("Group/new")), keeping())
	if merged != (postgres.Merged{Deleted: 1}) {
		t.Errorf("merged %+v", merged)
	}
	for _, test := range []struct {
		at                               time.Time
		patients, groups, questionnaires string
		status                           string
	}{
		{before.Add(-time.Hour), "", "", "", ""}, {before, "a b", "g gone", "missing q", "1"}, {s.snapshot(), "b c", "g", "q", "2"},
	} {
		var patients []string
		must(t, s.src.Patients(t.Context(), test.at, func(id string) error { patients = append(patients, id); return nil }))
		groups, questionnaires := s.everything(test.at, "Group"), s.everything(test.at, "Questionnaire")
		if got := strings.Join(patients, " "); got != test.patients || ids(groups) != test.groups ||
			ids(questionnaires) != test.questionnaires {
			t.Errorf("as of %s: %q, %v, %v; want %+v", test.at, got, groups, questionnaires, test)
		}
		for _, body := range []string{groups["g"], questionnaires["q"]} {
			if !strings.Contains(body, `"status":"`+test.status) && test.status != "" {
				t.Errorf("as of %s: %s", test.at, body)
			}
		}
	}
	if n := s.count(`SELECT count(*) FROM tombstone WHERE (type, id, patient) IN
		(('Group', 'gone', ''), ('Group', 'new', ''), ('Questionnaire', 'missing', ''), ('Patient', 'a', 'a'))`); n != 4 {
		t.Errorf("%d tombstones, want 4", n)
	}
	s.sizesHold()
}

// TestTrimmedReadFails: a read of trimmed versions fails; it does not return an incomplete result.
func TestTrimmedReadFails(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.loadWith(ndjson(observation("o", "a", 1), provenance("p", "Observation/o")), keeping())
	early := s.snapshot()
	s.loadWith(ndjson(observation("o", "b", 2)), keeping())
	middle := s.snapshot()
	s.loadWith(ndjson(observation("x", "b", 2)), postgres.LoadConfig{Parallel: 1}) // keeps no history
	late := s.snapshot()
	if n := s.count("SELECT count(*) FROM resource WHERE ended IS NOT NULL"); n != 0 {
		t.Errorf("%d old versions are left", n)
	}
	for at, works := range map[time.Time]bool{early: false, middle: false, late: true, {}: true} {
		err := s.src.ForPatients(t.Context(), source.Query{Type: "Observation", Patients: []string{"a", "b"}, AsOf: at},
			func(source.Resource) error { return nil })
		if (err == nil) != works {
			t.Errorf("a read as of %s: %v", at, err)
		}
		err = s.src.Everything(t.Context(), source.EverythingQuery{Type: "Observation", AsOf: at},
			func(source.Resource) error { return nil })
		if (err == nil) != works {
			t.Errorf("a read of everything as of %s: %v", at, err)
		}
		if err = s.src.Patients(t.Context(), at, func(string) error { return nil }); (err == nil) != works {
			t.Errorf("a read of the patients as of %s: %v", at, err)
		}
	}
	s.sizesHold()
}

// TestSnapshotsAreStable reads old and new snapshots repeatedly while loads change everything: each must stay the same.
func TestSnapshotsAreStable(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	patients := []string{"a", "b", "c", "d"}
	version := func(n int) map[string][]byte {
		random := rand.New(rand.NewPCG(1, uint64(n)))
		var lines []string
		for i := range 40 {
			if random.IntN(4) == 0 {
				continue // missing in this version
			}
			lines = append(lines, observation(fmt.Sprint("o", i), patients[random.IntN(4)], 1+n, fmt.Sprintf(`"note":[{"text":"%d"}]`, n)),
				provenance(fmt.Sprint("p", i), fmt.Sprint("Observation/o", random.IntN(40))))
		}
		return ndjson(lines...)
	}
	cfg := keeping()
	cfg.DeleteMissing = true
	type view struct {
		at                                  time.Time
		observations, provenances, everyone map[string]string
	}
	look := func(at time.Time) view {
		return view{at, s.read(at, "Observation", patients...), s.read(at, "Provenance", patients...),
			s.everything(at, "Provenance")}
	}
	s.loadWith(version(0), cfg)
	views := []view{look(s.snapshot())}
	var mu sync.Mutex
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			mu.Lock()
			held := views[i%len(views)]
			mu.Unlock()
			now := look(held.at)
			if !maps.Equal(now.observations, held.observations) || !maps.Equal(now.provenances, held.provenances) ||
				!maps.Equal(now.everyone, held.everyone) {
				t.Errorf("the snapshot of %s has changed", held.at)
			}
		}
	}()
	for n := 1; n <= 6; n++ {
		s.loadWith(version(n), cfg)
		v := look(s.snapshot())
		for id, body := range v.observations {
			if !strings.Contains(body, fmt.Sprintf(`"text":"%d"`, n)) {
				t.Errorf("after load %d %s is %s", n, id, body)
			}
		}
		mu.Lock()
		views = append(views, v)
		mu.Unlock()
	}
	close(stop)
	<-stopped
	s.sizesHold()
}

// TestSnapshotWaitsForSeal: a snapshot that was taken before a load was sealed never includes it.
func TestSnapshotWaitsForSeal(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.load(ndjson(observation("o", "a", 1)))
	load := s.begin(keeping())
	s.stage(load, ndjson(observation("p", "a", 1)))
	taken := make(chan time.Time, 1)
	_, err := load.Seal(t.Context(), nil, func(ctx context.Context, tx pgx.Tx) error {
		// The end of a slow Seal: the lock is held and the load has its instant.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(0x736c7569636531)); err != nil {
			return err
		}
		go func() { taken <- s.snapshot() }()
		for {
			var waiting bool
			err := s.in.QueryRow(ctx, `SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting)
			if err != nil || waiting {
				return err
			}
		}
	})
	must(t, err)
	must(t, load.Close(t.Context()))
	at := <-taken
	first := ids(s.read(at, "Observation", "a"))
	s.loadWith(ndjson(observation("q", "a", 1)), keeping())
	if again := ids(s.read(at, "Observation", "a")); first != again || strings.Contains(again, "q") {
		t.Errorf("the snapshot showed %q and shows %q", first, again)
	}
}

var errBroken = errors.New("broken")

// failing fails the last transaction of a load.
func failing(context.Context, pgx.Tx) error { return errBroken }
