package filedir_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/directorytest"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestAccess(t *testing.T) {
	for name, style := range map[string]func(directory.GrantEntry) string{"block": blockEntry, "flow": flowEntry} {
		t.Run(name, func(t *testing.T) {
			directorytest.Access(t, func(t *testing.T, entries []directory.GrantEntry) directory.Access {
				text := "# access\n---\n"
				for _, entry := range entries {
					text += style(entry)
				}
				if len(entries) == 0 {
					text += "[]\n"
				}
				access, err := filedir.OpenAccess(accessFile(t, text))
				must(t, err)
				return access
			})
		})
	}
}

func flowEntry(e directory.GrantEntry) string {
	list := func(c directory.NameList) string {
		if c.All {
			return "all"
		}
		return "[" + strings.Join(c.Names, ", ") + "]"
	}
	patients := list(e.Patients)
	if e.Patients.All && len(e.Patients.Names) > 0 {
		patients = "{except: [" + strings.Join(e.Patients.Names, ",") + "]}"
	} else if !e.Patients.All {
		patients = "{only: " + patients + "}"
	}
	levels := ""
	if e.Levels != nil {
		levels = ", levels: [" + strings.Join(e.Levels.Names(), ", ") + "]"
	}
	return fmt.Sprintf("- {issuer: %q, subject: %q, types: %s, groups: %s, patients: %s%s}\n",
		e.Owner.Issuer, e.Owner.Subject, list(e.Types), list(e.Groups), patients, levels)
}

func blockEntry(e directory.GrantEntry) string {
	list := func(indent string, c directory.NameList, all string) string {
		if c.All && len(c.Names) == 0 {
			return " " + all + "\n"
		}
		if len(c.Names) == 0 {
			return " []\n"
		}
		text := "\n"
		for _, name := range c.Names {
			text += indent + "- " + name + " # a comment\n"
		}
		return text
	}
	patients := " all\n"
	if e.Patients.All && len(e.Patients.Names) > 0 {
		patients = "\n    except:" + list("      ", e.Patients, "")
	} else if !e.Patients.All {
		patients = "\n    only:" + list("      ", e.Patients, "")
	}
	subject := e.Owner.Subject
	if subject == "true" { // YAML reads it as a boolean
		subject = "'true'"
	}
	levels := ""
	for _, level := range e.Levels {
		levels = cmp.Or(levels, "  levels:\n") + "    - " + string(level) + "\n"
	}
	return "- subject: " + subject + "\n  issuer: " + e.Owner.Issuer + "\n\n" + levels + "  types:" + list("    ", e.Types, "all") +
		"  groups:" + list("  ", e.Groups, "all") + "  patients:" + patients
}

func accessFile(t testing.TB, text string) string {
	t.Helper()
	return filepath.Join(folder(t, "access.yaml", text), "access.yaml")
}

func TestAllowOnly(t *testing.T) {
	owner := export.Owner{Issuer: "urn:sluice:development", Subject: "me"}
	access := filedir.AllowOnly(owner)
	for asked, want := range map[export.Owner]bool{owner: true, {Subject: "me"}: false, {}: false} {
		grant, err := access.Grant(t.Context(), asked)
		included, readErr := includes(t, access, asked, "p")
		must(t, readErr)
		all := grant.Types.Has("Patient") && grant.Groups.Has("g") && included && len(grant.Levels.Names()) == 3
		none := !grant.Types.Has("Patient") && !grant.Groups.Has("g") && !included
		if err != nil || all != want || none == want {
			t.Errorf("%+v gets %+v, error %v, want everything %v", asked, grant, err, want)
		}
	}
}

func TestOpenAccessNamesWhatIsWrong(t *testing.T) {
	const good = "- {issuer: a, subject: s, types: all, groups: all, patients: all}\n"
	patients := func(to string) string { return strings.Replace(good, "patients: all", "patients: "+to, 1) }
	levels := func(to string) string {
		return good + strings.NewReplacer(": s", ": t", "}", ", levels: "+to+"}").Replace(good)
	}
	for name, test := range map[string]struct{ text, place string }{
		"nothing":             {"", "list"},
		"a comment":           {"# nothing\n", "list"},
		"a mapping":           {"issuer: a\n", "list"},
		"a word":              {"all\n", "list"},
		"two documents":       {good + "---\n" + good, "one YAML document"},
		"not UTF-8":           {good + "# \xff\n", "UTF-8"},
		"no YAML":             {good + "- {issuer: a, subject: [\n", "line 2"},
		"an entry twice":      {good + "\n" + good, "line 3"},
		"a word for an entry": {good + "- all\n", "line 2"},
		"null for an entry":   {good + "-\n", "line 2"},
		"an unknown key":      {good + strings.Replace(good, "}", ", scope: all}", 1), "line 2"},
		"a key in capitals":   {strings.Replace(good, "types", "Types", 1), "types is missing"},
		"a key twice":         {good + strings.Replace(good, "}", ", types: []}", 1), "line 2"},
		"no issuer":           {strings.Replace(good, "issuer: a, ", "", 1), "issuer is missing"},
		"no patients":         {strings.Replace(good, ", patients: all", "", 1), "patients is missing"},
		"empty issuer":        {strings.Replace(good, "issuer: a", "issuer: ''", 1), "line 1: issuer"},
		"null subject":        {strings.Replace(good, "subject: s", "subject: ", 1), "line 1: subject"},
		"boolean subject":     {strings.Replace(good, "subject: s", "subject: true", 1), "line 1: subject"},
		"subject a list":      {strings.Replace(good, "subject: s", "subject: [s]", 1), "line 1: subject"},
		"an unknown type":     {strings.Replace(good, "types: all", "types: [Patient, Nonsense]", 1), "number 2 of types"},
		"a type in capitals":  {strings.Replace(good, "types: all", "types: [PATIENT]", 1), "number 1 of types"},
		"types a word":        {strings.Replace(good, "types: all", "types: Patient", 1), "line 1: types"},
		"types a star":        {strings.Replace(good, "types: all", "types: ['*']", 1), "number 1 of types"},
		"types null":          {strings.Replace(good, "types: all", "types: ", 1), "line 1: types"},
		"ALL":                 {strings.Replace(good, "types: all", "types: ALL", 1), "line 1: types"},
		"types a mapping":     {strings.Replace(good, "types: all", "types: {only: [Patient]}", 1), "line 1: types"},
		"a group with a type": {strings.Replace(good, "groups: all", "groups: [Group/g]", 1), "number 1 of groups"},
		"patients a list":     {patients("[p20391]"), "line 1: patients"},
		"patients empty":      {patients("{}"), "line 1: patients"},
		"patients both": {patients("{only: [p20391], except: []}"),
			"line 1: patients"},
		"patients other":        {patients("{but: [p20391]}"), "line 1: patients"},
		"a patient with a type": {patients("{only: [Patient/20391]}"), "of only"},
		"a patient with a star": {patients("{except: [x, p20391*]}"), "2 of except"},
		"except null":           {patients("{except: }"), "line 1: "},
		"a nested list":         {patients("{except: [[p20391]]}"), "1 of except"},
		"no level":              {levels("[]"), "line 2: levels is empty"},
		"a level of another":    {levels("[group, 20391]"), "line 2: number 2 of levels is not a level"},
		"a level in capitals":   {levels("[Group]"), "line 2: number 1 of levels"},
		"levels a word":         {levels("all"), "line 2: levels must be a list"},
		"levels null":           {levels(""), "line 2: levels must be a list"},
		"levels twice":          {levels("[group], levels: [system]"), "line 2"},
		"levels for a key":      {strings.Replace(good, "patients: all", "levels: [group]", 1), "patients is missing"},
		"levels and another":    {levels("[group], scope: all"), "line 2: unknown key"},
		"an anchor":             {strings.Replace(good, "types: all", "types: &x [Patient]", 1), "line 1"},
		"an alias":              {good + "- *x\n", "line 2"},
		"a merge":               {good + strings.Replace(good, "issuer: a", "<<: {issuer: a}", 1), "line 2"},
		"a tag":                 {strings.Replace(good, "types: all", "types: !!str all", 1), "line 1"},
		"half a file":           {good + "- issuer: p20391\n  subject: \"p20391\n", "line"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := filedir.OpenAccess(accessFile(t, test.text))
			if err == nil {
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), "access.yaml: ") || !strings.Contains(err.Error(), test.place) {
				t.Errorf("error %q does not name access.yaml and %q", err, test.place)
			}
			if strings.Contains(err.Error(), "20391") {
				t.Errorf("error %q quotes the file", err)
			}
		})
	}
	if _, err := filedir.OpenAccess(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v, want ErrNotExist", err)
	}
	if _, err := filedir.OpenAccess(accessFile(t, "#"+strings.Repeat(" ", 16<<20))); err == nil {
		t.Error("a huge file: opened")
	}
}

func TestAccessFollowsItsFile(t *testing.T) {
	allows := "- {issuer: a, subject: s, types: all, groups: all, patients: all}\n"
	denies := "- {issuer: a, subject: s, types: [], groups: [], patients: {only: []}} # as long #\n"[:len(allows)]
	file := accessFile(t, allows)
	dir := filepath.Dir(file)
	access, err := filedir.OpenAccess(file)
	must(t, err)
	owner := export.Owner{Issuer: "a", Subject: "s"}
	expect := func(want bool, wantErr error) {
		t.Helper()
		for range 2 {
			// Check predicts the next calls (pitfall 34).
			if err := access.Check(t.Context()); !errors.Is(err, wantErr) {
				t.Errorf("check: error %v, want %v", err, wantErr)
			}
			grant, err := access.Grant(t.Context(), owner)
			if !errors.Is(err, wantErr) {
				t.Errorf("error %v, want %v", err, wantErr)
			}
			if grant.Types.Has("Patient") != want || grant.Groups.Has("g") != want {
				t.Errorf("grant %+v, want everything %v", grant, want)
			}
			if got, err := includes(t, access, owner, "p"); !errors.Is(err, wantErr) || got != want {
				t.Errorf("the patient is included: %v, error %v, want %v and %v", got, err, want, wantErr)
			}
		}
	}
	sameTime := func() {
		t.Helper()
		must(t, os.Chtimes(file, now(), now()))
	}
	sameTime()
	expect(true, nil)
	put(t, dir, "access.yaml", strings.Replace(allows, "subject: s", "subject: x", 1)) // as long as before
	sameTime()
	expect(false, nil)
	put(t, dir, "access.yaml", allows)
	expect(true, nil)
	put(t, dir, "access.yaml", denies) // truncated, so not valid YAML
	expect(false, export.ErrUnavailable)
	put(t, dir, "access.yaml", allows)
	expect(true, nil)
	must(t, os.Rename(file, file+".gone"))
	expect(false, export.ErrUnavailable)
	must(t, os.Rename(file+".gone", file))
	expect(true, nil)
	put(t, dir, "access.yaml", "")
	expect(false, export.ErrUnavailable)
	put(t, dir, "access.yaml", "[]")
	expect(false, nil)
}

// Users copy the example of the package documentation.
func TestDocumentedAccessIsRead(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	must(t, err)
	var example strings.Builder
	for line := range strings.Lines(string(doc)) {
		if text, ok := strings.CutPrefix(line, "//   "); ok {
			example.WriteString(text)
		}
	}
	access, err := filedir.OpenAccess(accessFile(t, example.String()))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, example.String())
	}
	grant, err := access.Grant(t.Context(), export.Owner{Issuer: "https://issuer.example", Subject: "research-team"})
	if err != nil || !grant.Types.Has("Observation") || grant.Types.Has("Condition") || !grant.Groups.Has("g") {
		t.Errorf("grant %+v, error %v", grant, err)
	}
	for patient, want := range map[string]bool{"p1": true, "p17": false} {
		got, err := includes(t, access, export.Owner{Issuer: "https://issuer.example", Subject: "research-team"}, patient)
		if err != nil || got != want {
			t.Errorf("%s is included: %v, error %v, want %v", patient, got, err, want)
		}
	}
}

// includes reports whether the owner's grant includes the patient.
func includes(t *testing.T, access directory.Access, owner export.Owner, patient string) (included bool, err error) {
	t.Helper()
	err = access.Patients(t.Context(), owner, func(_ directory.Grant, filter *directory.PatientFilter) (err error) {
		included, err = filter.Includes(patient)
		return err
	})
	return included, err
}

func FuzzAccess(f *testing.F) {
	for _, seed := range []string{
		"", "[]", "- {issuer: a, subject: s, types: all, groups: all, patients: all}",
		"- issuer: a\n  subject: s\n  types: [Patient]\n  groups:\n  - g\n  patients:\n    except: [p1, 007]\n",
		"- issuer: a\n  subject: s\n  types: all\n  groups: all\n  patients: {only: []}\n- *x\n",
		"- &a [*a]\n", "- <<: {}\n",
		"- ? a\n  : b\n", "%YAML 1.2\n---\n- !!map {}\n", "- |\n  text\n", "- \"\\u0000\"\n",
		"\t", "- - -\n", "{", "- a: b: c",
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "access.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(path, data, 0o600))
		access, err := filedir.OpenAccess(path)
		if err != nil {
			return
		}
		// An owner who is not in the file has no access.
		unknown := export.Owner{Issuer: "https://unknown.example", Subject: "unknown"}
		grant, err := access.Grant(t.Context(), unknown)
		included, readErr := includes(t, access, unknown, "p")
		if err != nil || readErr != nil || grant.Types.Has("Patient") || grant.Groups.Has("g") || included {
			if !strings.Contains(string(data), "unknown") {
				t.Errorf("an unknown owner: grant %+v, error %v", grant, err)
			}
		}
	})
}
