package command

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// console runs admin commands on a database.
type console struct {
	t   *testing.T
	url string
}

func newConsole(t *testing.T) console {
	t.Helper()
	for _, name := range []string{"SLUICE_DATABASE_URL", "SLUICE_DATABASE_URL_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("SLUICE_AUDIT_LOG", filepath.Join(t.TempDir(), "audit.ndjson"))
	c := console{t: t, url: testenv.Postgres(t)}
	c.ok("migrate")
	return c
}

// ok runs a command that succeeds and returns its output. The database has no patients, which is only a warning.
func (c console) ok(args ...string) string {
	c.t.Helper()
	code, stdout, stderr := run(c.t, append([]string{"admin", "--database", c.url}, args...)...)
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "warning: ") {
			code = ExitFailure
		}
	}
	if code != ExitGood {
		c.t.Fatalf("%q: exit %d: %s", args, code, stderr)
	}
	return stdout
}

// fails runs a command that fails, and checks its exit code and standard error.
func (c console) fails(code int, contains string, args ...string) {
	c.t.Helper()
	got, stdout, stderr := run(c.t, append([]string{"admin", "--database", c.url}, args...)...)
	if got != code || stdout != "" || !strings.Contains(stderr, contains) {
		c.t.Errorf("%q: exit %d, %q, %q; want exit %d and %q", args, got, stdout, stderr, code, contains)
	}
	if strings.Contains(stderr, "20391") {
		c.t.Errorf("%q: %q contains an id", args, stderr)
	}
}

// members returns the members of a group.
func (c console) members(group string) []string {
	c.t.Helper()
	return strings.Fields(c.ok("group", "show", group, "--members"))
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

func decode[T any](t *testing.T, text string) (value T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return value
}

func TestAdminMigrate(t *testing.T) {
	c := newConsole(t)
	if got := c.ok("migrate"); !strings.HasPrefix(got, "the schema has version ") {
		t.Errorf("printed %q", got)
	}
	t.Setenv("SLUICE_DATABASE_URL", c.url)
	if code, _, stderr := run(t, "admin", "group", "list"); code != ExitGood {
		t.Errorf("without the flag: exit %d: %s", code, stderr)
	}
}

func TestAdminWithoutADatabase(t *testing.T) {
	empty := console{t: t, url: testenv.Postgres(t)}
	empty.fails(ExitFailure, "run sluice admin migrate", "group", "list")
	nowhere := console{t: t, url: "postgres://u:hunter2@127.0.0.1:1/d"}
	nowhere.fails(ExitFailure, "", "migrate")
	nonsense := console{t: t, url: "mysql://20391"}
	nonsense.fails(ExitUsage, "PostgreSQL", "migrate")
	nonsense.fails(ExitUsage, "PostgreSQL", "grant", "list")
	for _, name := range []string{"SLUICE_DATABASE_URL", "SLUICE_DATABASE_URL_FILE"} {
		t.Setenv(name, "")
	}
	nothing := console{t: t}
	for _, args := range [][]string{{"migrate"}, {"group", "list"}, {"grant", "list"}} {
		nothing.fails(ExitUsage, "--database or SLUICE_DATABASE_URL", args...)
	}
}

func TestAdminGroup(t *testing.T) {
	c := newConsole(t)
	if got := c.ok("group", "list", "--json"); got != "[]\n" {
		t.Errorf("no groups are printed as %q", got)
	}
	if got, want := c.ok("group", "create", "g1", "p1", "p2", "p1"), "created group g1 with 2 members\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	c.ok("group", "create", "empty")
	var many []string
	for n := range 20_000 {
		many = append(many, fmt.Sprintf("m%05d", n))
	}
	file := write(t, strings.Join(many, "\n")+"\n\n  p1 \r\n")
	if got, want := c.ok("group", "add", "g1", "p3", "--file", file), "group g1: added 20001 members\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if got := c.members("g1"); len(got) != 20_003 || !slices.Contains(got, "p3") {
		t.Errorf("%d members, want 20003", len(got))
	}
	stdin, err := os.Open(file)
	must(t, err)
	defer func(was *os.File) { os.Stdin = was; stdin.Close() }(os.Stdin)
	os.Stdin = stdin
	if got, want := c.ok("group", "remove", "g1", "--file", "-"), "group g1: removed 20001 members\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if got := c.members("g1"); !slices.Equal(got, []string{"p2", "p3"}) {
		t.Errorf("members %q", got)
	}

	type output struct {
		ID                  string
		Exportable          bool
		AllMembers, Members int
		Roll                []struct {
			Patient, Joined string
			Member          bool
		}
	}
	list := decode[[]output](t, c.ok("group", "list", "--json"))
	if len(list) != 2 || list[0].ID != "empty" || list[1].ID != "g1" || list[1].Members != 2 || !list[1].Exportable {
		t.Errorf("listed %+v", list)
	}
	shown := decode[output](t, c.ok("group", "show", "g1", "--json", "--members"))
	if shown.AllMembers != 2 || len(shown.Roll) != 2 || shown.Roll[0].Patient != "p2" || !shown.Roll[0].Member ||
		!strings.HasSuffix(shown.Roll[0].Joined, "Z") {
		t.Errorf("shown %+v", shown)
	}
	// Members are printed only with --members.
	for _, args := range [][]string{{"list"}, {"list", "--json"}, {"show", "g1"}, {"show", "g1", "--json"}} {
		got := c.ok(append([]string{"group"}, args...)...)
		if !strings.Contains(got, "g1") || strings.Contains(got, "p2") {
			t.Errorf("%q: printed %q", args, got)
		}
	}
	table := strings.Split(c.ok("group", "list"), "\n")
	if got := strings.Fields(table[2]); !slices.Equal(got, []string{"g1", "2", "2", "yes", "-", "-"}) {
		t.Errorf("the table's row is %q", got)
	}

	c.fails(ExitFailure, "g1: the group exists", "group", "create", "g1")
	for _, args := range [][]string{{"show", "g2"}, {"delete", "g2", "--yes"}, {"add", "g2", "p1"}, {"remove", "g2", "p1"}} {
		c.fails(ExitFailure, "g2: no such group", append([]string{"group"}, args...)...)
	}
	for _, args := range [][]string{{"show", "Group/20391"}, {"delete", ""}, {"add", "g_1", "p1"}, {"create", "*"}} {
		c.fails(ExitUsage, "GROUP is not a FHIR id", append([]string{"group"}, args...)...)
	}
	c.fails(ExitUsage, "PATIENT number 2 is not a FHIR id", "group", "add", "g1", "p4", "Patient/20391")
	c.fails(ExitUsage, "missing patients", "group", "remove", "g1")
	c.fails(ExitUsage, "", "group", "show")
	c.fails(ExitUsage, "sluice admin group --help", "group")
	c.fails(ExitUsage, "sluice admin --help")
	bad := write(t, "p4\np5\nPatient/20391\n")
	for _, name := range []string{"add", "remove"} {
		c.fails(ExitFailure, "number 3 of the ids in "+bad+" is not a FHIR id", "group", name, "g1", "p2", "--file", bad)
		c.fails(ExitFailure, "no such file", "group", name, "g1", "p2", "--file", bad+".none")
	}
	c.fails(ExitFailure, "number 3", "group", "create", "new", "--file", bad)
	c.fails(ExitFailure, "new: no such group", "group", "show", "new")
	if got := c.members("g1"); !slices.Equal(got, []string{"p2", "p3"}) {
		t.Errorf("members %q after commands that failed", got)
	}
	c.ok("group", "describe", "g1", "--name", "One", "--identifier", "urn:s|a|b", "--identifier", "c")
	type identifier struct{ System, Value string }
	described := decode[struct {
		Name        string
		Identifiers []identifier
	}](t, c.ok("group", "show", "g1", "--json"))
	if described.Name != "One" || !slices.Equal(described.Identifiers, []identifier{{"urn:s", "a|b"}, {"", "c"}}) {
		t.Errorf("described %+v", described)
	}
	if got := c.ok("group", "show", "g1"); !strings.Contains(got, "One") || !strings.Contains(got, "a|b         urn:s") {
		t.Errorf("printed %q", got)
	}
	c.fails(ExitFailure, "g2: no such group", "group", "describe", "g2", "--name", "Two")
	c.fails(ExitUsage, "--identifier number 2 has no value", "group", "describe", "g1", "--identifier", "c", "--identifier", "urn:s|")
	c.fails(ExitFailure, "Delete group g1 with 2 members? Type yes to continue: ", "group", "delete", "g1")
	for _, args := range [][]string{{"add", "g1", "p9"}, {"remove", "g1", "p9"}} {
		got := decode[struct {
			Group   string
			Changed int
		}](t, c.ok(append(append([]string{"group"}, args...), "--json")...))
		if got.Group != "g1" || got.Changed != 1 {
			t.Errorf("%q: printed %+v", args, got)
		}
	}
	c.ok("group", "delete", "g1", "--yes")
	c.fails(ExitFailure, "g1: no such group", "group", "show", "g1")
}

func TestAdminGrant(t *testing.T) {
	c := newConsole(t)
	who := []string{"--issuer", "https://issuer.example", "--subject", "team"}
	set := func(types, groups, patients string) []string {
		return append([]string{"grant", "set", "--types", types, "--groups", groups, "--patients", patients}, who...)
	}
	type list struct {
		Kind  string
		Count int
		Names []string
	}
	type output struct {
		Issuer, Subject, Owner  string
		Types, Groups, Patients list
		Levels                  []string
	}
	show := func(more ...string) output {
		t.Helper()
		return decode[output](t, c.ok(append(append([]string{"grant", "show", "--json"}, who...), more...)...))
	}

	c.fails(ExitFailure, "no such grant", append([]string{"grant", "show"}, who...)...)
	if got := c.ok(set("all", "all", "all")...); !strings.HasPrefix(got, "set the grant of owner ") || strings.Contains(got, "team") {
		t.Errorf("printed %q", got)
	}
	if got := show(); got.Types.Kind != "all" || got.Groups.Kind != "all" || got.Patients.Kind != "all" ||
		!slices.Equal(got.Levels, []string{"group"}) {
		t.Errorf("shown %+v", got)
	}
	c.ok(append(set("all", "all", "all"), "--level", "system", "--level", "patient")...)
	if got := show(); !slices.Equal(got.Levels, []string{"patient", "system"}) {
		t.Errorf("shown %+v", got)
	}
	if got := c.ok("grant", "list"); !strings.Contains(got, "all     patient,system  all") {
		t.Errorf("listed:\n%s", got)
	}
	file := write(t, "p2\n\np1\n")
	c.ok(set("only:Patient,Observation", "only:", "except:@"+file)...)
	got := show("--patients")
	if !slices.Equal(got.Levels, []string{"group"}) || !slices.Equal(got.Types.Names, []string{"Observation", "Patient"}) || got.Groups.Kind != "only" || got.Groups.Count != 0 ||
		got.Patients.Kind != "except" || !slices.Equal(got.Patients.Names, []string{"p1", "p2"}) {
		t.Errorf("shown %+v", got)
	}
	for _, args := range [][]string{{"list"}, {"list", "--json"}, append([]string{"show"}, who...), append([]string{"show", "--json"}, who...)} {
		got := c.ok(append([]string{"grant"}, args...)...)
		if !strings.Contains(got, "team") || !strings.Contains(got, "except") || strings.Contains(got, "p1") {
			t.Errorf("%q: printed %q", args, got)
		}
	}
	if got := c.ok(append([]string{"grant", "show", "--patients"}, who...)...); !strings.Contains(got, "except:p1,p2") {
		t.Errorf("printed %q", got)
	}

	for contains, args := range map[string][]string{
		"number 2 of --types is not a resource type of R4: \"Patients\" (did you mean Patient?)": set("only:Patient,Patients", "all", "all"),
		"--types must be":                         set("Patient", "all", "all"),
		"--types must be all":                     set("", "all", "all"),
		"number 1 of --groups is not a FHIR id":   set("all", "only:Group/20391", "all"),
		"--groups must be":                        set("all", "but:g", "all"),
		"number 3 of --patients is not a FHIR id": set("all", "all", "except:@"+write(t, "p1\np2\np_20391\n")),
		"number 2 of --patients is not a FHIR id": set("all", "all", "only:p1,,p2"),
		"number 2 of levels is not a level":       append(set("all", "all", "all"), "--level", "group", "--level", "all"),
		"no such file":                            set("all", "all", "only:@"+file+".none"),
		"except: has no names":                    set("all", "all", "except:"),
		"--patients: except: has no names":        set("all", "all", "except:@"+write(t, "\n")),
		"--issuer is empty":                       {"grant", "remove", "--issuer", "", "--subject", "team"},
		"--subject is empty":                      {"grant", "show", "--issuer", "i", "--subject", ""},
		"subject":                                 {"grant", "set", "--issuer", "i", "--types", "all", "--groups", "all", "--patients", "all"},
		"patients":                                append([]string{"grant", "set", "--types", "all", "--groups", "all"}, who...),
	} {
		c.fails(ExitUsage, contains, args...)
	}
	if after := show("--patients"); !slices.Equal(after.Patients.Names, got.Patients.Names) || after.Types.Kind != "only" {
		t.Errorf("shown %+v after commands that failed", after)
	}

	c.fails(ExitFailure, "Remove the grant of https://issuer.example, team? Type yes to continue: ", append([]string{"grant", "remove"}, who...)...)
	c.ok(append([]string{"grant", "remove", "--yes"}, who...)...)
	c.fails(ExitFailure, "no such grant", append([]string{"grant", "remove"}, who...)...)
	if got := c.ok("grant", "list", "--json"); got != "[]\n" {
		t.Errorf("no grants are printed as %q", got)
	}
}

func TestAdminGrantImport(t *testing.T) {
	c := newConsole(t)
	c.ok("grant", "set", "--issuer", "i", "--subject", "before", "--types", "all", "--groups", "all", "--patients", "all")
	file := write(t, `
- issuer: https://issuer.example
  subject: research-team
  types: [Patient, Observation]
  groups: all
  patients: {except: [p17, p18]}
- {issuer: i, subject: registry, types: all, groups: [diabetes], patients: {only: [p1]}}
`)
	const question = "1 grant removed, 2 added, 0 changed. Continue? Type yes to continue: "
	c.fails(ExitFailure, question, "grant", "import", file)
	const planned = "1 grant removed, 2 added, 0 changed; nothing was changed (--dry-run)\n"
	if got := c.ok("grant", "import", file, "--dry-run"); got != planned {
		t.Errorf("printed %q, want %q", got, planned)
	}
	c.fails(ExitFailure, "3 of 3 patients are not in the store (--strict)", "grant", "import", file, "--yes", "--strict")
	if got := c.ok("grant", "list"); !strings.Contains(got, "before") || strings.Contains(got, "registry") {
		t.Errorf("listed %q, want the grants from before", got)
	}
	for n, want := range []string{
		"imported 2 grants: 1 grant removed, 2 added, 0 changed\n", "imported 2 grants: 0 grants removed, 0 added, 0 changed\n",
	} {
		args := []string{"grant", "import", file, "--yes"}
		if got := c.ok(args[:4-n]...); got != want { // without a change there is no question
			t.Errorf("printed %q, want %q", got, want)
		}
		rows := strings.Split(strings.TrimSpace(c.ok("grant", "list")), "\n")
		if len(rows) != 3 || !strings.HasSuffix(rows[1], "only 2  all     group   except 2") ||
			!strings.HasSuffix(rows[2], "all     only 1  group   only 1") {
			t.Errorf("listed:\n%s", strings.Join(rows, "\n"))
		}
	}
	bad := write(t, "- {issuer: i, subject: s, types: all, groups: all, patients: {only: [Patient/20391]}}\n")
	c.fails(ExitFailure, "file: line 1: number 1 of only is not a FHIR id", "grant", "import", bad)
	c.fails(ExitFailure, "no such file", "grant", "import", bad+".none")
	if got := c.ok("grant", "list"); !strings.Contains(got, "research-team") {
		t.Errorf("listed %q after an import that failed", got)
	}
	changed := write(t, "- {issuer: i, subject: registry, types: all, groups: [diabetes], patients: {only: [p1, p3]}}\n")
	if got, want := c.ok("grant", "import", changed, "--dry-run"), "1 grant removed, 0 added, 1 changed"; !strings.HasPrefix(got, want) {
		t.Errorf("printed %q, want %q", got, want)
	}
	for levels, want := range map[string]string{
		"[group]": "1 grant removed, 0 added, 0 changed", "[system, group]": "1 grant removed, 0 added, 1 changed",
	} {
		file := write(t, "- {issuer: i, subject: registry, types: all, groups: [diabetes], patients: {only: [p1]}, levels: "+levels+"}\n")
		if got := c.ok("grant", "import", file, "--dry-run"); !strings.HasPrefix(got, want) {
			t.Errorf("levels %s: printed %q, want %q", levels, got, want)
		}
	}
	t.Setenv("SLUICE_AUDIT_LOG", "")
	c.fails(ExitUsage, "--audit-log or SLUICE_AUDIT_LOG is required", "grant", "import", changed, "--yes")
	c.ok("grant", "import", write(t, "[]\n"), "--yes", "--audit-log", filepath.Join(t.TempDir(), "audit.ndjson"))
	if got := c.ok("grant", "list", "--json"); got != "[]\n" {
		t.Errorf("listed %q after importing none", got)
	}
}

// A mistyped id is a warning, or with --strict an error.
func TestAdminReportsUnknownIDs(t *testing.T) {
	c := newConsole(t)
	file := write(t, `{"resourceType":"Patient","id":"p1"}`+"\n"+`{"resourceType":"Patient","id":"p2"}`+"\n"+
		`{"resourceType":"Group","id":"g1","member":[{"entity":{"reference":"Patient/p1"}}]}`+"\n")
	load := filepath.Join(filepath.Dir(file), "all.ndjson")
	must(t, os.Rename(file, load))
	if code, _, stderr := run(t, "load", "--database", c.url, load); code != ExitGood {
		t.Fatal(stderr)
	}
	set := func(groups, patients string) []string {
		return []string{
			"grant", "set", "--issuer", "i", "--subject", "s", "--types", "all", "--groups", groups, "--patients", patients,
		}
	}
	access := func(groups, patients string) []string {
		text := fmt.Sprintf("- {issuer: i, subject: s, types: all, groups: %s, patients: %s}\n", groups, patients)
		return []string{"grant", "import", write(t, text), "--yes"}
	}
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"group", "create", "ghost", "nosuch1", "nosuch2"}, []string{"2 of 2 patients are not in the store"}},
		{[]string{"group", "add", "g1", "p2", "nosuch1", "nosuch1"}, []string{"1 of 2 patients is not in the store"}},
		{[]string{"group", "add", "g1", "p2"}, nil},
		{set("only:nosuch", "all"), []string{"1 of 1 group is not in the database"}},
		{set("only:g1", "only:p1"), nil},
		{set("only:g1,nosuch", "except:p1,p2,nosuch"),
			[]string{"1 of 2 groups is not in the database", "1 of 3 patients is not in the store"}},
		{access("[a, g1, b]", "{except: [nosuch]}"),
			[]string{"2 of 3 groups are not in the database", "1 of 1 patient is not in the store"}},
	} {
		code, _, stderr := run(t, append([]string{"admin", "--database", c.url}, append(test.args, "--strict")...)...)
		want, wantCode := "sluice: "+strings.Join(test.want, "; ")+" (--strict)\n", ExitFailure
		if test.want == nil {
			want, wantCode = "", ExitGood
		}
		if code != wantCode || stderr != want {
			t.Errorf("%q --strict: exit %d: %q, want %q", test.args, code, stderr, want)
		}
		c.fails(ExitFailure, "no such group", "group", "show", "ghost")
		want = ""
		for _, text := range test.want {
			want += "warning: " + text + "\n"
		}
		code, _, stderr = run(t, append([]string{"admin", "--database", c.url}, test.args...)...)
		if code != ExitGood || stderr != want {
			t.Errorf("%q: exit %d: %q, want %q", test.args, code, stderr, want)
		}
		if slices.Contains(test.args, "ghost") {
			c.ok("group", "delete", "ghost", "--yes")
		}
	}
}

// A group in a group, and members that no export has, are shown.
func TestAdminGroupShowsMemberGroups(t *testing.T) {
	c := newConsole(t)
	load := filepath.Join(t.TempDir(), "Group.ndjson")
	must(t, os.WriteFile(load, []byte(`{"resourceType":"Group","id":"g1","member":[{"entity":{"reference":"Group/g2"}},`+
		`{"entity":{"reference":"Group/gone"},"inactive":true},{"entity":{"identifier":{"value":"20391"}}}]}`+"\n"+
		`{"resourceType":"Group","id":"g2"}`+"\n"), 0o600))
	if code, _, stderr := run(t, "load", "--database", c.url, load); code != ExitPartial { // a member is left out
		t.Fatal(stderr)
	}
	got := c.ok("group", "show", "g1")
	for _, want := range []string{"g2            yes             yes", "gone          no              no", "members of the group that are named by an identifier only  1"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	type output struct {
		Groups  []struct{ ID string }
		LeftOut []struct{ Count int } `json:"leftOut"`
	}
	if shown := decode[output](t, c.ok("group", "show", "g1", "--json")); len(shown.Groups) != 2 || len(shown.LeftOut) != 1 {
		t.Errorf("shown %+v", shown)
	}
}
