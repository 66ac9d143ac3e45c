package command

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
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
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/testenv"
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
	err = pgdir.NewGroups(pool, time.Now).Members(s.t.Context(), id, func(patient string) error {
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

	clinical := made.Resources - made.Types["Group"]
	stdout := s.loads(fmt.Sprintf("%d added, 0 replaced, 0 unchanged, 0 deleted", clinical), dir)
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
		if got := sizes.Types[typ].Resources; typ != "Group" && got != want {
			t.Errorf("%s: the store has %d, want %d", typ, got, want)
		}
	}
	people := strings.Join(s.list("SELECT id FROM resource_patient"), " ")
	s.group("all", people)
	s.group("empty", "")
	s.group("retired", "none")

	again := fmt.Sprintf("0 added, 0 replaced, %d unchanged, 0 deleted", clinical)
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
	s.loads("2 added, 0 replaced, 0 unchanged, 0 deleted",
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
		`{"resourceType":"Task","id":"20391"}`, "", `{"resourceType":"Patient","name":[{"family":"20391"}]}`)
	code, stdout, stderr := run(t, "load", "--database", s.url, file)
	if code != ExitPartial {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{
		file + " line 2: not valid JSON at byte ", file + " line 5: member is not an array\n",
		file + " line 8: no id, or not a FHIR id\n", "\n3 were left out or not followed\n",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q does not contain %q", stderr, want)
		}
	}
	quotesNothing(t, stdout+stderr)
	for _, want := range []string{
		"\nGroup        1\n", "\nObservation  1\n", "\nPatient      1\n", "\ntotal        3\n",
		"\nignored: 1 of type Task, which is never exported\n", "\n2 added, 0 replaced, 0 unchanged, 0 deleted; ",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("printed:\n%s\nwant %q", stdout, want)
		}
	}
	s.shows(s.snapshot(), "Observation/o Patient/a", "a")
	s.group("g1", "a")
	s.group("g2", "none")
}

func TestLoadDeleteMissing(t *testing.T) {
	s := newStore(t)
	s.loads("5 added, 0 replaced, 0 unchanged, 0 deleted", ndjson(t, patient("a"), patient("b"),
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

	s.loads("0 added, 0 replaced, 2 unchanged, 2 deleted", "--delete-missing", ndjson(t, rest...))
	// The files have no Condition, so none is deleted.
	s.shows(s.snapshot(), "Condition/c Observation/stays Patient/a", "a", "b")
	s.group("g1", "a b")
	s.group("g2", "none")
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
		"not a database": {url: "mysql://u:hunter2@h/d", code: ExitFailure, contains: "not the URL of a PostgreSQL"},
		"not a URL":      {url: "postgres://u:hunter2@h:port/d", code: ExitFailure, contains: "not the URL of a PostgreSQL"},
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
	s.loads("1 added, 0 replaced, 0 unchanged, 0 deleted", ndjson(t, patient("a"), groupOf("g", "a")))
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
	s.loads("1 added, 0 replaced, 0 unchanged, 0 deleted", file)
	s.group("g", "b")
}
