package command

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/sluice/internal/loader"
)

// store is an empty database for loads.
type store struct {
	t   *testing.T
	url string
}

func newStore(t *testing.T) store {
	t.Helper()
	return store{t: t, url: testenv.Postgres(t)}
}

// loads runs a load that succeeds, and returns its output. The last line must begin with the summary.
func (s store) loads(summary string, args ...string) string {
	s.t.Helper()
	code, stdout, stderr := run(s.t, append([]string{"load", "--database", s.url}, args...)...)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if last := lines[len(lines)-1]; code != ExitGood || !strings.HasPrefix(last, summary+"; ") {
		s.t.Fatalf("%q: exit %d, %q, %s; want %q", args, code, last, stderr, summary)
	}
	return stdout
}

// fails runs a load that fails, and checks and returns its standard error.
func (s store) fails(contains string, args ...string) string {
	s.t.Helper()
	code, stdout, stderr := run(s.t, append([]string{"load", "--database", s.url}, args...)...)
	if code != ExitFailure || !strings.Contains(stderr, contains) {
		s.t.Errorf("%q: exit %d, %q, %q; want exit %d and %q", args, code, stdout, stderr, ExitFailure, contains)
	}
	quotesNothing(s.t, stderr)
	return stderr
}

// quotesNothing checks that an output contains neither a patient id nor a password.
func quotesNothing(t *testing.T, output string) {
	t.Helper()
	for _, secret := range []string{"20391", "hunter2"} {
		if strings.Contains(output, secret) {
			t.Errorf("%q contains %s", output, secret)
		}
	}
}

func (s store) source() *postgres.Source {
	s.t.Helper()
	src, err := postgres.Open(s.t.Context(), pgdb.Config{URL: s.url, Connections: 2})
	must(s.t, err)
	s.t.Cleanup(func() { src.Close() })
	return src
}

// snapshot returns the snapshot of an export that starts now.
func (s store) snapshot() time.Time {
	s.t.Helper()
	at, err := s.source().Snapshot(s.t.Context(), time.Time{})
	must(s.t, err)
	return at
}

// shows checks the resources of the patients at a snapshot.
func (s store) shows(at time.Time, want string, patients ...string) {
	s.t.Helper()
	var got []string
	src := s.source()
	for _, typ := range []string{"Condition", "Observation", "Patient"} {
		q := source.Query{Type: typ, Patients: patients, AsOf: at}
		if err := src.ForPatients(s.t.Context(), q, func(r source.Resource) error {
			got = append(got, r.Type+"/"+r.ID)
			return nil
		}); err != nil {
			s.t.Fatal(err)
		}
	}
	slices.Sort(got)
	if got := strings.Join(got, " "); got != want {
		s.t.Errorf("%v: shown %q, want %q", patients, got, want)
	}
}

// group checks the members of a group. "none" means that there is no such group.
func (s store) group(id, want string) {
	s.t.Helper()
	pool, err := pgdir.Open(s.t.Context(), pgdb.Config{URL: s.url, Connections: 1})
	must(s.t, err)
	defer pool.Close()
	var members []string
	_, err = pgdir.NewGroups(pool, time.Now).Members(s.t.Context(), id, func(patient string) error {
		members = append(members, patient)
		return nil
	})
	slices.Sort(members)
	got := strings.Join(members, " ")
	if errors.Is(err, directory.ErrNoGroup) {
		got, err = "none", nil
	}
	if err != nil || got != want {
		s.t.Errorf("group %s: %q (%v), want %q", id, got, err, want)
	}
}

// list returns the strings that a query selects.
func (s store) list(query string) (found []string) {
	s.t.Helper()
	pool, err := pgdb.Open(s.t.Context(), pgdb.Config{URL: s.url, Connections: 1})
	must(s.t, err)
	defer pool.Close()
	must(s.t, pool.QueryRow(s.t.Context(), "SELECT array("+query+" ORDER BY 1)").Scan(&found))
	return found
}

func patient(id string) string { return fmt.Sprintf(`{"resourceType":"Patient","id":%q}`, id) }

func about(typ, id, patient string) string {
	return fmt.Sprintf(`{"resourceType":%q,"id":%q,"subject":{"reference":"Patient/%s"}}`, typ, id, patient)
}

func groupOf(id string, patients ...string) string {
	var members []string
	for _, patient := range patients {
		members = append(members, fmt.Sprintf(`{"entity":{"reference":"Patient/%s"}}`, patient))
	}
	return fmt.Sprintf(`{"resourceType":"Group","id":%q,"member":[%s]}`, id, strings.Join(members, ","))
}

func ndjson(t *testing.T, lines ...string) string {
	t.Helper()
	return write(t, strings.Join(lines, "\n"))
}

func TestLoad(t *testing.T) {
	s := newStore(t)
	dir := filepath.Join(t.TempDir(), "data")
	made, err := synth.Generate(t.Context(), synth.Config{Patients: 3, Seed: 7, Dir: dir})
	must(t, err)
	compress(t, filepath.Join(dir, "Observation.ndjson"))

	stdout := s.loads(fmt.Sprintf("%d added, 0 replaced, 0 unchanged, 0 deleted", made.Resources), dir)
	printed := map[string]string{}
	for line := range strings.Lines(stdout) {
		if fields := strings.Fields(line); len(fields) == 2 {
			printed[fields[0]] = fields[1]
		}
	}
	if printed["total"] != strconv.FormatInt(made.Resources, 10) || printed["type"] != "resources" ||
		len(printed) != len(made.Types)+2 {
		t.Errorf("printed:\n%s", stdout)
	}
	sizes, err := s.source().Sizes(t.Context())
	must(t, err)
	for typ, want := range made.Types {
		if printed[typ] != strconv.FormatInt(want, 10) {
			t.Errorf("%s: printed %q, want %d", typ, printed[typ], want)
		}
		if got := sizes.Types[typ].Resources; got != want {
			t.Errorf("%s: the store has %d, want %d", typ, got, want)
		}
	}
	people := strings.Join(s.list("SELECT id FROM resource_patient"), " ")
	s.group("all", people)
	s.group("empty", "")
	s.group("retired", "none")

	again := fmt.Sprintf("0 added, 0 replaced, %d unchanged, 0 deleted", made.Resources)
	s.loads(again, "--parallel", "1", dir)
	s.loads(again, "--delete-missing", dir)
	s.group("all", people)
}

// compress replaces a file by a gzip file.
func compress(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err = w.Write(text)
	must(t, errors.Join(err, w.Close(), os.WriteFile(path+".gz", zipped.Bytes(), 0o600), os.Remove(path)))
}

// TestLoadIsAtomic: one transaction publishes groups and resources.
func TestLoadIsAtomic(t *testing.T) {
	s := newStore(t)
	s.loads("3 added, 0 replaced, 0 unchanged, 0 deleted",
		ndjson(t, groupOf("g", "a", "b"), patient("a"), about("Observation", "o", "a")))
	s.group("g", "a b")
	s.shows(s.snapshot(), "Observation/o Patient/a", "a")
	const together = `SELECT 'one' FROM load_batch AS load, directory_group AS g, directory_member AS m
		WHERE load.sealed_at IS NOT NULL AND load.xmin = g.xmin AND load.xmin = m.xmin`
	if got := s.list(together); len(got) != 2 { // for each member
		t.Errorf("%d of 2 members were written by the transaction that sealed the load", len(got))
	}

	// If neither version has lastUpdated, the one in the later file wins.
	old := ndjson(t, about("Observation", "o", "a"), about("Observation", "o", "b"))
	s.loads("0 added, 1 replaced, 0 unchanged, 0 deleted", old, ndjson(t, about("Observation", "o", "c")))
	s.shows(s.snapshot(), "Observation/o", "b", "c")
	s.shows(s.snapshot(), "", "b")
}

func TestLoadLeavesOutInvalidLines(t *testing.T) {
	s := newStore(t)
	file := ndjson(t,
		patient("a"), patient("20391")[:20]+"20391", about("Observation", "o", "a"), groupOf("g1", "a"),
		`{"resourceType":"Group","id":"g2","member":{"entity":{"reference":"Patient/20391"}}}`,
		`{"resourceType":"Task","id":"t"}`, "", `{"resourceType":"Patient","name":[{"family":"20391"}]}`,
		`{"resourceType":"Parameters","id":"20391"}`)
	code, stdout, stderr := run(t, "load", "--database", s.url, file)
	if code != ExitPartial {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{
		file + " line 2: not valid JSON at byte ", file + " line 5: group g2: member is not an array\n",
		file + " line 8: no id, or not a FHIR id\n", "\n3 items were left out or not followed",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q does not contain %q", stderr, want)
		}
	}
	quotesNothing(t, stdout+stderr)
	for _, want := range []string{
		"\nGroup        1\n", "\nObservation  1\n", "\nPatient      1\n", "\nTask         1\n", "\ntotal        4\n",
		"\nignored: 1 resource of type Parameters, which is never exported\n", "\n4 added, 0 replaced, 0 unchanged, 0 deleted; ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("printed:\n%s\nwant %q", stdout, want)
		}
	}
	s.shows(s.snapshot(), "Observation/o Patient/a", "a")
	s.group("g1", "a")
	s.group("g2", "none")
}

// TestLoadTellsWhichMembersAreLeftOut: with the group and its place, and --dry-run tells the same.
func TestLoadTellsWhichMembersAreLeftOut(t *testing.T) {
	s := newStore(t)
	file := ndjson(t, patient("a"), `{"resourceType":"Group","id":"g1","member":[{"entity":{"reference":"Patient/a"}},`+
		`{"entity":{"identifier":{"value":"20391"}}},{"entity":{"reference":"Patient?name=20391"}},{"entity":{"reference":"Patient?name=20391"}}]}`,
		`{"resourceType":"Group","id":"g2","member":[{"entity":{"reference":"Patient/20391","Reference":"Patient/a"}}]}`)
	for _, where := range [][]string{{"--dry-run"}, {"--database", s.url}} {
		code, stdout, stderr := run(t, append([]string{"load", file}, where...)...)
		if code != ExitPartial {
			t.Errorf("%q: exit %d", where, code)
		}
		for _, want := range []string{
			file + " line 2: group g1: 1 left out: members of the group that are named by an identifier only\n",
			file + " line 2: group g1: 2 left out: members of the group whose reference cannot be resolved to a patient\n", file + " line 3: group g2: ",
		} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%q: %q does not contain %q", where, stderr, want)
			}
		}
		if !strings.Contains(stdout, "2      members of the group whose") || !strings.Contains(stdout, file+" line 2: group g1\n") {
			t.Errorf("%q: printed\n%s", where, stdout)
		}
		quotesNothing(t, stdout+stderr)
	}
	s.group("g1", "a")
	s.group("g2", "none")
	if got := s.list("SELECT reason FROM left_out"); slices.ContainsFunc(got, func(reason string) bool { return strings.HasPrefix(reason, "member") }) {
		t.Errorf("the store counts %q, which the directory counts", got)
	}
}

func TestLoadDeleteMissing(t *testing.T) {
	s := newStore(t)
	s.loads("7 added, 0 replaced, 0 unchanged, 0 deleted", ndjson(t, patient("a"), patient("b"),
		about("Observation", "stays", "a"), about("Observation", "goes", "b"), about("Condition", "c", "b"),
		groupOf("g1", "a"), groupOf("g2", "b")))
	const everything = "Condition/c Observation/goes Observation/stays Patient/a Patient/b"
	rest := []string{patient("a"), about("Observation", "stays", "a"), groupOf("g1", "a", "b")}

	for name, line := range map[string]string{
		"a resource": `{"resourceType":"Patient","name":[{"family":"20391"}]}`,
		"a group":    `{"resourceType":"Group","id":"g2","member":"20391"}`,
	} {
		t.Run(name, func(t *testing.T) {
			file := ndjson(t, append([]string{line, patient("new"), groupOf("g3", "new")}, rest...)...)
			s := store{t: t, url: s.url}
			output := s.fails("1 line or file cannot be read: with --delete-missing nothing was loaded or deleted\n",
				"--delete-missing", file)
			if !strings.Contains(output, file+" line 1: ") {
				t.Errorf("%q does not name the line", output)
			}
			s.shows(s.snapshot(), everything, "a", "b", "new")
			s.group("g1", "a")
			s.group("g2", "b")
			s.group("g3", "none")
		})
	}

	s.loads("0 added, 1 replaced, 2 unchanged, 3 deleted", "--delete-missing", ndjson(t, rest...))
	if got := s.list(groups); !slices.Equal(got, []string{groupOf("g1", "a", "b")}) {
		t.Errorf("the store has %q", got)
	}
	// The files have no Condition, so none is deleted.
	s.shows(s.snapshot(), "Condition/c Observation/stays Patient/a", "a", "b")
	s.group("g1", "a b")
	s.group("g2", "none")
}

// groups selects the current Group resources of the store.
const groups = "SELECT body FROM resource_group WHERE ended IS NULL"

// TestLoadGroupsAsResources: the directory and the store have a Group with the same references. One that is too long for a
// resource, or that other parsers may read differently, is only in the directory, and no older version is left in the store.
func TestLoadGroupsAsResources(t *testing.T) {
	s := newStore(t)
	byURN := `{"resourceType":"Group","id":"urn","member":[{"entity":{"reference":"urn:uuid:a"}}]}`
	s.loads("5 added, 0 replaced, 0 unchanged, 0 deleted; 4 groups",
		ndjson(t, patient("a"), byURN, groupOf("long", "a"), groupOf("odd", "a"), groupOf("broken", "a")))
	if got := s.list(groups); !slices.Contains(got, groupOf("urn", "a")) || len(got) != 4 {
		t.Errorf("the store has %q", got)
	}
	long := groupOf("long", slices.Repeat([]string{"b"}, 100)...)
	odd := `{"resourceType":"Group","id":"odd","Subject":{"reference":"Patient/20391"},"member":[]}`
	broken := `{"resourceType":"Group","id":"broken","member":"20391"}`
	file := ndjson(t, long, odd, broken)
	code, stdout, stderr := run(t, "load", "--max-line", "2000", "--json", "--database", s.url, file)
	var report struct {
		Groups, Deleted int64
		Resources       map[string]int64
		LeftOut         []loader.LeftOut
	}
	must(t, json.Unmarshal([]byte(stdout), &report))
	left := []loader.LeftOut{
		{LeftOut: export.LeftOut{Type: "Group", Reason: export.Malformed, Count: 2}, First: file + " line 2"},
		{LeftOut: export.LeftOut{Type: "Group", Reason: export.TooLong, Count: 1}, First: file + " line 1"},
	}
	if code != ExitPartial || report.Groups != 2 || report.Deleted != 3 || len(report.Resources) != 0 || !slices.Equal(report.LeftOut, left) {
		t.Errorf("exit %d, %s", code, stdout)
	}
	for _, want := range []string{
		file + " line 1: group long: the group is loaded, its resource is not: longer than 2000 bytes\n",
		file + " line 2: group odd: the group is loaded, its resource is not: a key differs only in case from one that is read here\n",
		file + " line 3: group broken: ",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %q", want, stderr)
		}
	}
	quotesNothing(t, stderr)
	for id, want := range map[string]string{"urn": "a", "long": "b", "odd": "", "broken": "a"} {
		s.group(id, want)
	}
	if got := s.list(groups); !slices.Equal(got, []string{groupOf("urn", "a")}) {
		t.Errorf("the store has %q", got)
	}
	if got := s.list("SELECT type || ' ' || reason FROM left_out"); !slices.Equal(got, []string{"Group malformed", "Group too_long"}) {
		t.Errorf("the store counts %q", got)
	}
	// A group that is only too long does not hide which ones are missing.
	code, stdout, stderr = run(t, "load", "--max-line", "2000", "--delete-missing", "--database", s.url, ndjson(t, long))
	if code != ExitPartial || !strings.Contains(stdout, "0 added, 0 replaced, 0 unchanged, 1 deleted; 1 group;") {
		t.Errorf("exit %d, %s, %s", code, stdout, stderr)
	}
	s.group("urn", "none")
	s.group("long", "b")
}

func TestLoadDatabaseURL(t *testing.T) {
	file := ndjson(t, patient("a"))
	s := newStore(t)
	at, err := url.Parse(s.url)
	must(t, err)
	password, _ := at.User.Password()
	elsewhere, barred := *at, *at
	elsewhere.Path, barred.User = "/nowhere", url.UserPassword(at.User.Username(), "hunter2")
	for name, test := range map[string]struct {
		url, file, flag string
		code            int
		contains        string
	}{
		"not set":        {code: ExitUsage, contains: "--database or SLUICE_DATABASE_URL"},
		"both set":       {url: s.url, file: write(t, s.url), code: ExitUsage, contains: "are both set"},
		"no such file":   {file: "/nowhere/hunter2", code: ExitUsage, contains: "SLUICE_DATABASE_URL_FILE"},
		"an empty file":  {file: write(t, "\n"), code: ExitUsage, contains: "--database or SLUICE_DATABASE_URL"},
		"the variable":   {url: s.url},
		"the file":       {file: write(t, s.url+"\n")},
		"the flag first": {url: "postgres://u:hunter2@127.0.0.1:1/d", flag: s.url},
		"not a database": {url: "mysql://u:hunter2@h/d", code: ExitUsage, contains: "SLUICE_DATABASE_URL: not the URL of a PostgreSQL"},
		"not a URL":      {url: "postgres://u:hunter2@h:port/d", code: ExitUsage, contains: "SLUICE_DATABASE_URL: not the URL of a PostgreSQL"},
		"no server":      {url: "postgres://u:hunter2@127.0.0.1:1/d", code: ExitFailure, contains: "connection refused"},
		"no such name":   {url: elsewhere.String(), code: ExitFailure, contains: `database "nowhere" does not exist`},
		"wrong password": {url: barred.String(), code: ExitFailure, contains: "password authentication failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SLUICE_DATABASE_URL", test.url)
			t.Setenv("SLUICE_DATABASE_URL_FILE", test.file)
			code, stdout, stderr := run(t, "load", "--database", test.flag, file)
			if code != test.code || !strings.Contains(stderr, test.contains) || (stdout == "") != (code != ExitGood) {
				t.Errorf("exit %d, %q, %q; want exit %d and %q", code, stdout, stderr, test.code, test.contains)
			}
			if quotesNothing(t, stderr); strings.Contains(stderr, password) {
				t.Errorf("%q contains the password", stderr)
			}
		})
	}
}

// Missing files are detected before the database is opened.
func TestLoadFiles(t *testing.T) {
	file := ndjson(t, patient("a"))
	s := store{t: t, url: "postgres://u:hunter2@127.0.0.1:1/d"}
	s.fails("none: no such file", file, file+".none")
	s.fails("has no *.ndjson", t.TempDir())
	s.fails("is named twice", file, file)
}

// TestConcurrentLoads: a second load fails and does not affect the first or the next one.
func TestConcurrentLoads(t *testing.T) {
	s := newStore(t)
	s.loads("2 added, 0 replaced, 0 unchanged, 0 deleted", ndjson(t, patient("a"), groupOf("g", "a")))
	file := ndjson(t, patient("b"), groupOf("g", "b"))
	pool, err := postgres.OpenLoader(t.Context(), pgdb.Config{URL: s.url, Connections: 4})
	must(t, err)
	defer pool.Close()
	load, err := postgres.BeginLoad(t.Context(), pool, postgres.LoadConfig{Parallel: 1})
	must(t, err)
	for range 2 { // a failure does not release the lock
		s.fails("sluice: begin the load: another load is running\n", file)
	}
	must(t, load.Close(t.Context()))
	s.shows(s.snapshot(), "Patient/a", "a", "b")
	s.group("g", "a")
	s.loads("1 added, 1 replaced, 0 unchanged, 0 deleted", file)
	s.group("g", "b")
}

// found returns the exported resources of the patients and of their references, with the subjects.
func (s store) found(patients ...string) string {
	s.t.Helper()
	src := s.source()
	var found []string
	take := func(r source.Resource) error {
		found = append(found, strings.TrimSpace(r.Type+"/"+r.ID+" "+strings.Join(r.Subjects, "+")))
		return nil
	}
	referenced := map[string]map[string]bool{}
	for _, typ := range fhir.ExportableTypes() {
		if !fhir.InCompartment(typ) {
			continue
		}
		must(s.t, src.ForPatients(s.t.Context(), source.Query{Type: typ, Patients: patients}, func(r source.Resource) error {
			for _, name := range strings.Fields(string(r.References)) {
				typ, id, _ := strings.Cut(name, "/")
				if referenced[typ] == nil {
					referenced[typ] = map[string]bool{}
				}
				referenced[typ][id] = true
			}
			return take(r)
		}))
	}
	for typ, ids := range referenced {
		must(s.t, src.ByID(s.t.Context(), source.ByIDQuery{Type: typ, IDs: slices.Sorted(maps.Keys(ids))}, take))
	}
	slices.Sort(found)
	return strings.Join(found, "\n")
}

// The two outputs of Synthea, by hand: bulk NDJSON, and transaction Bundles beside Bundles of hospitals and practitioners.
const (
	syntheaPatient      = "8c8e1c9a-b310-43c6-33a7-ad11bad21c40"
	syntheaPractitioner = `{"resourceType":"Practitioner","id":"c16820ae-2954-31d7-863e-25a52a7f79e3","identifier":` +
		`[{"system":"http://hl7.org/fhir/sid/us-npi","value":"9999974493"}],"active":true}`
	syntheaOrganization = `{"resourceType":"Organization","id":"ef58ea08-d883-3957-8300-150554edc8fb","identifier":[{"system":` +
		`"https://github.com/synthetichealth/synthea","value":"ef58ea08-d883-3957-8300-150554edc8fb"}],"name":"A"}`
	syntheaLocation = `{"resourceType":"Location","id":"1f6c5ab2-0000-3957-8300-150554edc8fb","identifier":[{"system":` +
		`"https://github.com/synthetichealth/synthea","value":"6e3fd8d3-c0a8-3a9b-a0b5-1a1a6f0a8b1e"}]}`
	syntheaParties = `"participant":[{"individual":{"reference":` +
		`"Practitioner?identifier=http://hl7.org/fhir/sid/us-npi|9999974493","display":"Dr."}}],"location":[{"location":` +
		`{"reference":"Location?identifier=https://github.com/synthetichealth/synthea|6e3fd8d3-c0a8-3a9b-a0b5-1a1a6f0a8b1e"}}],` +
		`"serviceProvider":{"reference":` +
		`"Organization?identifier=https://github.com/synthetichealth/synthea|ef58ea08-d883-3957-8300-150554edc8fb"}`
	syntheaFound = `Claim/2e0d8c53-0000-11ee-be56-0242ac120002 8c8e1c9a-b310-43c6-33a7-ad11bad21c40
Encounter/1b0d8c53-0000-11ee-be56-0242ac120002 8c8e1c9a-b310-43c6-33a7-ad11bad21c40
ExplanationOfBenefit/3c0d8c53-0000-11ee-be56-0242ac120002 8c8e1c9a-b310-43c6-33a7-ad11bad21c40
Location/1f6c5ab2-0000-3957-8300-150554edc8fb
Organization/ef58ea08-d883-3957-8300-150554edc8fb
Patient/8c8e1c9a-b310-43c6-33a7-ad11bad21c40 8c8e1c9a-b310-43c6-33a7-ad11bad21c40
Practitioner/c16820ae-2954-31d7-863e-25a52a7f79e3
Provenance/4d0d8c53-0000-11ee-be56-0242ac120002 8c8e1c9a-b310-43c6-33a7-ad11bad21c40`
)

// syntheaChart returns the resources of a patient. to formats the reference to one of them.
func syntheaChart(to func(typ, id string) string) []string {
	const encounter, claim = "1b0d8c53-0000-11ee-be56-0242ac120002", "2e0d8c53-0000-11ee-be56-0242ac120002"
	subject := fmt.Sprintf(`{"reference":%q}`, to("Patient", syntheaPatient))
	return []string{
		`{"resourceType":"Patient","id":"` + syntheaPatient + `"}`,
		`{"resourceType":"Encounter","id":"` + encounter + `","subject":` + subject + `,` + syntheaParties + `}`,
		`{"resourceType":"Claim","id":"` + claim + `","patient":` + subject + `,"item":[{"sequence":1,"encounter":[{"reference":"` +
			to("Encounter", encounter) + `"}]}]}`,
		// The beneficiary is a urn in both outputs.
		`{"resourceType":"ExplanationOfBenefit","id":"3c0d8c53-0000-11ee-be56-0242ac120002","contained":[{"resourceType":"Coverage",` +
			`"id":"coverage","beneficiary":{"reference":"urn:uuid:` + syntheaPatient + `"}}],"patient":` + subject +
			`,"insurance":[{"coverage":{"reference":"#coverage"}}]}`,
		`{"resourceType":"Provenance","id":"4d0d8c53-0000-11ee-be56-0242ac120002","target":[` + subject + `,{"reference":"` +
			to("Encounter", encounter) + `"}]}`,
	}
}

func TestLoadSyntheaBulkOutput(t *testing.T) {
	s := newStore(t)
	chart := syntheaChart(func(typ, id string) string { return typ + "/" + id })
	dir := t.TempDir()
	for name, lines := range map[string][]string{
		"Chart.ndjson": chart, "Practitioner.ndjson": {syntheaPractitioner}, "Organization.ndjson": {syntheaOrganization},
		"Location.ndjson": {syntheaLocation}, "log.ndjson": {`{"eventId":"kickoff"}`},
		"Group.ndjson": {groupOf("all", syntheaPatient), `{"resourceType":"Group","id":"urn","member":[{"entity":{"reference":"urn:uuid:` +
			syntheaPatient + `"}}]}`},
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(lines, "\n")), 0o600))
	}
	s.loads("10 added, 0 replaced, 0 unchanged, 0 deleted; 2 groups", dir)
	if got := s.found(syntheaPatient); got != syntheaFound {
		t.Errorf("exported:\n%s\nwant:\n%s", got, syntheaFound)
	}
	s.group("urn", syntheaPatient)
	s.loads("0 added, 0 replaced, 10 unchanged, 0 deleted; 2 groups", "--delete-missing", dir)
}

func TestLoadSyntheaBundles(t *testing.T) {
	s := newStore(t)
	bundle := func(typ string, resources []string, request string) string {
		var entries []string
		for _, resource := range resources {
			_, rest, _ := strings.Cut(resource, `"id":"`)
			id, _, _ := strings.Cut(rest, `"`)
			entries = append(entries, fmt.Sprintf("{\n\"fullUrl\": \"urn:uuid:%s\",\n\"resource\": %s,\n\"request\": {\"method\": \"POST\"%s}\n}",
				id, strings.ReplaceAll(resource, `,"`, ",\n\""), request))
		}
		return fmt.Sprintf("{\n\"resourceType\": \"Bundle\",\n\"type\": %q,\n\"entry\": [%s]}", typ, strings.Join(entries, ",\n"))
	}
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	urn := func(_, id string) string { return "urn:uuid:" + id }
	hospitals := write("hospitalInformation1.json", bundle("batch", []string{syntheaOrganization, syntheaLocation},
		`, "url": "Organization", "ifNoneExist": "identifier=https://github.com/synthetichealth/synthea|x"`))
	practitioners := write("practitionerInformation1.json", bundle("batch", []string{syntheaPractitioner}, `, "url": "Practitioner"`))
	chart := write("Cole117.json", bundle("transaction", syntheaChart(urn), `, "url": "x"`))

	// The patient's Bundle comes after the others, as Synthea asks for, or together with them.
	s.loads("3 added, 0 replaced, 0 unchanged, 0 deleted; 0 groups", hospitals, practitioners)
	s.loads("5 added, 0 replaced, 0 unchanged, 0 deleted; 0 groups", chart)
	if got := s.found(syntheaPatient); got != syntheaFound {
		t.Errorf("exported:\n%s\nwant:\n%s", got, syntheaFound)
	}
	s.loads("0 added, 0 replaced, 8 unchanged, 0 deleted; 0 groups", chart, hospitals, practitioners)

	// Without the others the references are told.
	alone := newStore(t)
	code, stdout, stderr := run(t, "load", "--json", "--database", alone.url, chart)
	var report struct {
		Added   int64
		LeftOut []struct {
			Type, Reason, First string
			Count               int64
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != ExitPartial || report.Added != 5 || len(report.LeftOut) != 3 {
		t.Fatalf("exit %d, %s, %s (%v)", code, stdout, stderr, err)
	}
	for _, left := range report.LeftOut {
		if left.Reason != "unresolved_reference" || left.Count != 1 || left.First != chart+" entry 2" {
			t.Errorf("left out %+v", left)
		}
	}
}

func TestLoadDataBases(t *testing.T) {
	file := ndjson(t, patient("a"), `{"resourceType":"Observation","id":"o","subject":{"reference":"https://ehr.example.org/fhir/Patient/a"}}`)
	s := newStore(t)
	code, stdout, stderr := run(t, "load", "--database", s.url, file)
	if code != ExitPartial || !strings.Contains(stdout, "--data-base") || !strings.Contains(stdout, "a patient of another server") {
		t.Errorf("exit %d, %s, %s", code, stdout, stderr)
	}
	s.shows(s.snapshot(), "Patient/a", "a")
	left, err := s.source().LeftOut(t.Context())
	if want := []export.LeftOut{{Type: "Observation", Reason: export.ForeignPatient, Count: 1}}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left out %v (%v), want %v", left, err, want)
	}
	for name, set := range map[string]func() []string{
		"the flag": func() []string {
			return []string{"--data-base", "https://a", "--data-base", "https://EHR.example.org/fhir/"}
		},
		"the variable": func() []string {
			t.Setenv("SLUICE_DATA_BASES", "https://a, https://ehr.example.org/fhir")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			s.loads("2 added, 0 replaced, 0 unchanged, 0 deleted", append(set(), file)...)
			s.shows(s.snapshot(), "Observation/o Patient/a", "a")
		})
	}
	s.loads("0 added, 1 replaced, 1 unchanged, 0 deleted", "--data-base", "https://ehr.example.org/fhir", file)
	s.shows(s.snapshot(), "Observation/o Patient/a", "a")
	if left, err := s.source().LeftOut(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left out %v (%v), want nothing", left, err)
	}
	if code, _, stderr := run(t, "load", "--data-base", "ehr.example.org", "--database", s.url, file); code != ExitUsage {
		t.Errorf("a base that is no URL: exit %d, %s", code, stderr)
	}
}

// TestLoadTellsWhatItLeavesOut: once, with the first place, and the worker reads the same counts.
func TestLoadTellsWhatItLeavesOut(t *testing.T) {
	s := newStore(t)
	file := ndjson(t, patient("a"), `{"resourceType":"Observation","id":"o","subject":{"reference":"urn:uuid:20391"}}`,
		about("Observation", "p", "unknown"), `{"resourceType":"Device","id":"stock"}`, `{"resourceType":"Patient"}`,
		`{"resourceType":"Provenance","id":"v","target":[{"reference":"Observation/gone"}]}`,
		`{"resourceType":"Patient","id":"b","meta":{"lastUpdated":"yesterday"}}`)
	code, stdout, stderr := run(t, "load", "--database", s.url, file)
	for _, want := range []string{
		"Observation  1      the reference to the patient matches no resource, or several",
		"Device       1      not about a patient", "Patient      1      not readable as a FHIR resource",
		"Provenance   1      the reference to the patient matches no resource, or several",
		file + " line 5", "note: 1 new resource of type Observation about patients that the store does not have",
		"note: 1 resource with a meta.lastUpdated that is not an instant",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
	if quotesNothing(t, stdout+stderr); code != ExitPartial {
		t.Errorf("exit %d: %s", code, stderr)
	}
	left, err := s.source().LeftOut(t.Context())
	var tally export.Tally
	tally.AddAll(left)
	want := []export.LeftOut{
		{Type: "Device", Reason: export.NoPatient, Count: 1},
		{Type: "Observation", Reason: export.UnresolvedPatient, Count: 1}, {Type: "Patient", Reason: export.Malformed, Count: 1},
		{Type: "Provenance", Reason: export.UnresolvedPatient, Count: 1},
	}
	if !slices.Equal(tally.List(), want) || err != nil {
		t.Errorf("the source has %v (%v), want %v", tally.List(), err, want)
	}
	// Information alone is success.
	s.loads("0 added, 0 replaced, 2 unchanged, 0 deleted", ndjson(t, patient("a"), `{"resourceType":"Device","id":"stock"}`))
}

// TestLoadDownloadedFolder: the log, the errors and the deletions that a client stores beside the data.
func TestLoadDownloadedFolder(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	put := func(name string, lines ...string) {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
	}
	put("1.Patient.ndjson", patient("a"), patient("b"))
	put("1.Observation.ndjson", about("Observation", "o1", "a"), about("Observation", "o2", "a"))
	put("1.Group.ndjson", groupOf("g1", "a"), groupOf("g2", "b"))
	put("log.ndjson", `{"eventId":"kickoff"}`)
	put("error/1.OperationOutcome.ndjson", `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"processing"}]}`)
	s.loads("6 added, 0 replaced, 0 unchanged, 0 deleted", dir)
	s.loads("0 added, 0 replaced, 6 unchanged, 0 deleted", "--delete-missing", dir)

	put("deleted/1.Bundle.ndjson", `{"resourceType":"Bundle","id":"b1","type":"transaction","entry":[`+
		`{"request":{"method":"DELETE","url":"Observation/o1"}},{"request":{"method":"DELETE","url":"Group/g2"}}]}`)
	// A deletion in a later file than the resource wins; deleted/ is after 1.Observation.ndjson.
	s.loads("0 added, 0 replaced, 4 unchanged, 2 deleted", dir)
	s.shows(s.snapshot(), "Observation/o2 Patient/a Patient/b", "a", "b")
	s.group("g1", "a")
	s.group("g2", "none")
	s.loads("2 added, 0 replaced, 0 unchanged, 0 deleted", // the resources are later
		filepath.Join(dir, "deleted", "1.Bundle.ndjson"), ndjson(t, about("Observation", "o1", "a"), groupOf("g2", "b")))
	s.shows(s.snapshot(), "Observation/o1 Observation/o2 Patient/a", "a")
	s.group("g2", "b")
	s.loads("0 added, 0 replaced, 0 unchanged, 2 deleted", filepath.Join(dir, "deleted"))
	s.shows(s.snapshot(), "Observation/o2 Patient/a", "a")

	none := t.TempDir()
	must(t, os.Rename(filepath.Join(dir, "log.ndjson"), filepath.Join(none, "log.ndjson")))
	s.fails("the files have no resources to load", none)
	s.fails("the files have no resources to load", "--delete-missing", none)
}

func TestLoadNewerVersionsWin(t *testing.T) {
	s := newStore(t)
	version := func(number, updated, patient string) string {
		return fmt.Sprintf(`{"resourceType":"Observation","id":"o","meta":{"versionId":%q,"lastUpdated":"2024-01-%sT00:00:00Z"},`+
			`"subject":{"reference":"Patient/%s"}}`, number, updated, patient)
	}
	shown := func(want string) {
		t.Helper()
		for _, id := range []string{"a", "b", "c"} {
			content := ""
			if id == want {
				content = "Observation/o"
			}
			s.shows(s.snapshot(), content, id)
		}
	}
	s.loads("1 added, 0 replaced, 0 unchanged, 0 deleted", ndjson(t, version("10", "01", "a"), version("9", "02", "b")))
	shown("a")
	s.loads("0 added, 0 replaced, 1 unchanged, 0 deleted", ndjson(t, version("9", "05", "b")))
	shown("a")
	s.loads("0 added, 1 replaced, 0 unchanged, 0 deleted", ndjson(t, version("W/x", "03", "b"), version("11", "02", "c")))
	shown("b") // one has no number
	s.loads("0 added, 0 replaced, 1 unchanged, 0 deleted", ndjson(t, version("99", "02", "c")))
	shown("b")
}

func TestLoadDryRun(t *testing.T) {
	file := ndjson(t, patient("a"), groupOf("g", "a"), about("Observation", "o", "a"))
	code, stdout, stderr := run(t, "load", "--dry-run", file)
	if code != ExitGood || !strings.Contains(stdout, "total        3\n") || !strings.Contains(stdout, "nothing was loaded (--dry-run)") {
		t.Errorf("exit %d, %s, %s", code, stdout, stderr)
	}
	_, stdout, _ = run(t, "load", "--dry-run", "--json", file)
	var report map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(stdout), &report))
	want := []string{"added", "bytes", "deleted", "dryRun", "groups", "ignored", "leftOut", "patientNotHeld", "replaced", "resources", "seconds", "unchanged", "undated"}
	if names := slices.Sorted(maps.Keys(report)); !slices.Equal(names, want) || strings.Contains(stdout, "null") { // docs/data.md
		t.Errorf("%s, want the names %q without null", stdout, want)
	}
	if code, stdout, _ := run(t, "load", "--dry-run", ndjson(t, patient("a"), "{")); code != ExitPartial {
		t.Errorf("exit %d, %s", code, stdout)
	}
}

func TestLoadLimits(t *testing.T) {
	file := ndjson(t, patient("a"), `{"resourceType":"Patient","id":"long","language":"`+strings.Repeat("x", 2000)+`"}`)
	for name, test := range map[string]struct {
		args []string
		code int
	}{
		"default": {nil, ExitGood}, "flag": {[]string{"--max-line", "1999"}, ExitPartial}, "negative": {[]string{"--max-line=-1"}, ExitUsage},
	} {
		if code, stdout, stderr := run(t, append([]string{"load", "--dry-run", file}, test.args...)...); code != test.code {
			t.Errorf("%s: exit %d, %s, %s", name, code, stdout, stderr)
		}
	}
	t.Setenv("SLUICE_MAX_LINE", "1999")
	if code, _, stderr := run(t, "load", "--dry-run", file); code != ExitPartial || !strings.Contains(stderr, "line 2: longer than 1999 bytes") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	t.Setenv("SLUICE_MAX_LINE", "much")
	if code, _, _ := run(t, "load", "--dry-run", file); code != ExitUsage {
		t.Errorf("exit %d", code)
	}
}

// Standard input is read as a file is, gzipped or not, and its copy is removed.
func TestLoadStandardInput(t *testing.T) {
	s := newStore(t)
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	input := func(text string) {
		t.Helper()
		file, err := os.Create(filepath.Join(t.TempDir(), "input"))
		must(t, err)
		_, err = file.WriteString(text)
		must(t, err)
		_, err = file.Seek(0, 0)
		must(t, err)
		before := os.Stdin
		os.Stdin = file
		t.Cleanup(func() { os.Stdin = before; must(t, file.Close()) })
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write([]byte(`{"resourceType":"Patient","id":"a"}` + "\n" + `{"resourceType":"Patient","id":"b"}`))
	must(t, errors.Join(err, w.Close()))

	input(packed.String())
	s.loads("2 added, 0 replaced, 0 unchanged, 0 deleted", "-")
	input(`{"resourceType":"Patient","id":"c"}` + "\n" + `{"resourceType":"Patient"`)
	if code, stdout, stderr := run(t, "load", "--database", s.url, "-"); code != ExitPartial ||
		!strings.Contains(stdout, "1 added") || !strings.Contains(stderr, "standard input line 2: ") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	input("")
	s.fails("the files have no resources to load", "-")
	do(t, ExitUsage, "standard input is named twice", "load", "--dry-run", "-", "-")
	do(t, ExitFailure, "no such file", "load", "--dry-run", "-", filepath.Join(t.TempDir(), "none"))
	left, err := os.ReadDir(temporary)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The migration and the load trust the authorities of --ca-file or SLUICE_CA_FILE.
func TestLoadByTLS(t *testing.T) {
	authority := testenv.NewAuthority(t)
	url := testenv.SecurePostgres(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1")) + "?sslmode=verify-full"
	args := []string{"load", "--database", url, ndjson(t, `{"resourceType":"Patient","id":"a"}`)}
	do(t, ExitFailure, "unknown authority", args...)
	do(t, ExitUsage, "--ca-file: ", append(args, "--ca-file", "/nowhere/none.pem")...)
	do(t, ExitGood, "1 added", append(args, "--ca-file", authority.File())...)
	t.Setenv("SLUICE_CA_FILE", authority.File())
	do(t, ExitGood, "1 unchanged", args...)
}
