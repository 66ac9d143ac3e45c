package command

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// accepting starts a server that accepts every kick-off, whose export is empty. It appends the request line, the Prefer
// header and the body of each kick-off to the result.
func accepting(t *testing.T) (base string, kickOffs *[]string) {
	kickOffs = &[]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/$export") {
			_, _ = io.WriteString(w, `{"transactionTime":"2026-01-02T03:04:05Z","request":"r","requiresAccessToken":true,`+
				`"output":[],"deleted":[],"error":[]}`)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read a kick-off: %v", err)
		}
		*kickOffs = append(*kickOffs, strings.Join([]string{r.Method, r.URL.RequestURI(), r.Header.Get("Prefer"), string(body)}, " "))
		w.Header().Set("Content-Location", "http://"+r.Host+"/fhir/jobs/1")
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/fhir", kickOffs
}

func TestExportRequest(t *testing.T) {
	patients := filepath.Join(t.TempDir(), "patients")
	must(t, os.WriteFile(patients, []byte("Patient/b\r\n\n a \nb\n"), 0o600))
	base, kickOffs := accepting(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--group", "g"}, "GET /fhir/Group/g/$export  "},
		{[]string{"--level", "group", "--group", "g"}, "GET /fhir/Group/g/$export  "},
		{[]string{"--level", "patient", "--ig", "--lenient"}, "GET /fhir/Patient/$export respond-async, handling=lenient "},
		{[]string{"--level", "system", "--type", "Endpoint"}, "GET /fhir/$export?_type=Endpoint  "},
		{[]string{"--level", "patient", "--elements", "id,Patient.name", "--elements", "status"},
			"GET /fhir/Patient/$export?_elements=Patient.name%2Cid%2Cstatus  "},
		{[]string{"--group", "g", "--type-filter", "Observation?code=a,b&status=final", "--type-filter", "Patient?gender=male"},
			"GET /fhir/Group/g/$export?_typeFilter=Observation%3Fcode%3Da%2Cb%26status%3Dfinal&" +
				"_typeFilter=Patient%3Fgender%3Dmale  "},
		{[]string{"--group", "g", "--since", "2026-01-31T00:00:00+01:00"},
			"GET /fhir/Group/g/$export?_since=2026-01-31T00%3A00%3A00%2B01%3A00  "},
		{[]string{"--group", "g", "--until", "2026-01-31T00:00:00Z", "--include-associated-data", "LatestProvenanceResources",
			"--organize-by", "Patient"}, "GET /fhir/Group/g/$export?_until=2026-01-31T00%3A00%3A00Z&" +
			"includeAssociatedData=LatestProvenanceResources&organizeOutputBy=Patient  "},
		{[]string{"--group", "g", "--post", "--elements", "id"}, `POST /fhir/Group/g/$export  {"resourceType":"Parameters",` +
			`"parameter":[{"name":"_elements","valueString":"id"}]}`},
		{[]string{"--level", "patient", "--patients-file", patients}, `POST /fhir/Patient/$export  {"resourceType":"Parameters",` +
			`"parameter":[{"name":"patient","valueReference":{"reference":"Patient/a"}},` +
			`{"name":"patient","valueReference":{"reference":"Patient/b"}}]}`},
	} {
		*kickOffs = nil
		dir := t.TempDir()
		args := append([]string{"export", "--base", base, "--out", dir, "--no-progress", "--json"}, test.args...)
		stdout := do(t, ExitGood, "no data: nothing that you may export matches the request", args...)
		if got := strings.Join(*kickOffs, "\n"); got != test.want {
			t.Errorf("%q\ngot  %s\nwant %s", test.args, got, test.want)
		}
		do(t, ExitGood, "", append(args, "--resume")...)
		if len(*kickOffs) != 1 {
			t.Errorf("%q: resumed with another kick-off", test.args)
		}
		do(t, ExitFailure, "another export", append(args, "--resume", "--type", "Device")...)
		var report bulkclient.Report
		must(t, json.Unmarshal([]byte(stdout), &report))
		level := "group"
		if test.args[0] == "--level" {
			level = test.args[1]
		}
		if string(report.Request.Level) != level || (report.Patients == 2) != strings.Contains(test.want, "valueReference") {
			t.Errorf("%q: report of %+v, %d patients", test.args, report.Request, report.Patients)
		}
	}
}

func TestExportRequestUsage(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--level", "patients"}, "--level must be group, patient or system, not \"patients\" (did you mean patient?)"},
		{[]string{"--level", "patient", "--group", "g"}, "--group is not possible with --level patient"},
		{[]string{"--level", "system", "--patients-file", file("one", "a")}, "--patients-file is not possible with --level system"},
		{[]string{"--group", "g", "--patients-file", file("empty", "\n \n")}, "--patients-file has no patient"},
		{[]string{"--group", "g", "--patients-file", file("bad", "a\nPatient/SSN 123\n")}, "--patients-file: line 2 is neither"},
		{[]string{"--group", "g", "--patients-file", file("other", "Group/a")}, "--patients-file: line 1 is neither"},
		{[]string{"--group", "g", "--type-filter", "Observation"}, "--type-filter must be"},
		{[]string{"--group", "g", "--type-filter", "Observation?"}, "--type-filter must be"},
		{[]string{"--group", "g", "--type-filter", "observation?name=SSN"}, "--type-filter must be"},
		{[]string{"--group", "g", "--type-filter", ""}, "--type-filter must be"},
		{[]string{"--group", "g", "--elements", "id,,name"}, "--elements has an empty name"},
		{[]string{"--group", "g", "--since", "2026-01-31"}, "--since must be an instant"},
		{[]string{"--group", "g", "--until", "tomorrow"}, "--until must be an instant"},
		{[]string{"--group", "g", "--include-associated-data", "LatestProvenanceResource"},
			"(did you mean LatestProvenanceResources?)"},
		{[]string{"--group", "g", "--organize-by", "patient"}, "--organize-by must be Patient, not"},
		{[]string{"--group", "g", "--since-last", "x", "--since", "2026-01-31T00:00:00Z"}, "[since since-last]"},
		{[]string{"--group", "g", "--since-last", "x", "--until", "2026-01-31T00:00:00Z"}, "[since-last until]"},
		{[]string{"--group", "g", "--since-last", "x", "--organize-by", "Patient"}, "[organize-by since-last]"},
		{[]string{"--status-url", "http://a.org/1", "--since-last", "x"}, "[since-last status-url]"},
		{[]string{"--group", "g", "--since-last", filepath.Join(dir, "missing")}, "the last export cannot be continued: open the folder"},
		{[]string{"--group", "g", "--since-last", dir}, "it holds no finished export"},
		{[]string{"--level", "system", "--type", "Endpoints"}, "(did you mean Endpoint?)"},
		{[]string{"--status-url", "http://a.org/1", "--level", "patient"}, "[level status-url]"},
		{[]string{"--status-url", "http://a.org/1", "--elements", "id"}, "[elements status-url]"},
		{[]string{"--status-url", "http://a.org/1", "--patients-file", "x"}, "[patients-file status-url]"},
	} {
		args := append([]string{"export", "--base", "http://a.org", "--out", filepath.Join(dir, "out")}, test.args...)
		code, stdout, stderr := run(t, args...)
		if code != ExitUsage || stdout != "" || !strings.Contains(stderr, test.want) || strings.Contains(stderr, "SSN") {
			t.Errorf("%q: exit %d, %q, %q, want %q", test.args, code, stdout, stderr, test.want)
		}
	}
	do(t, ExitFailure, "--patients-file: open ", "export", "--base", "http://a.org", "--out", filepath.Join(dir, "out"), "--group",
		"g", "--patients-file", filepath.Join(dir, "missing"))
	do(t, ExitGood, "patient\n", "__complete", "export", "--level", "p")
}

// TestExportSinceLast: an export continues that of another folder with the same flags, and says what it did.
func TestExportSinceLast(t *testing.T) {
	base, kickOffs := accepting(t)
	root := t.TempDir()
	first, second := filepath.Join(root, "first"), filepath.Join(root, "second")
	flags := []string{"export", "--base", base, "--no-progress", "--json", "--group", "g", "--elements", "id"}
	do(t, ExitGood, "no data", append(flags, "--out", first)...)
	code, stdout, stderr := run(t, append(flags, "--out", second, "--since-last", first, "--type", "Device")...)
	if code != ExitUsage || stdout != "" || !strings.Contains(stderr, "parameters are not those of the export in the folder") {
		t.Errorf("other flags: exit %d, %q, %q", code, stdout, stderr)
	}
	*kickOffs = nil
	stdout = do(t, ExitGood, "up to date since 2026-01-02T03:04:05Z: 0 resources new or changed, 0 deletions, 0 lines removed",
		append(flags, "--out", second, "--since-last", first)...)
	if want := "GET /fhir/Group/g/$export?_since=2026-01-02T03%3A04%3A05Z&_elements=id  "; strings.Join(*kickOffs, "") != want {
		t.Errorf("kicked off with %q, want %q", *kickOffs, want)
	}
	var report bulkclient.Report
	must(t, json.Unmarshal([]byte(stdout), &report))
	if report.Changes == nil || report.Folder != second || report.Request.Since != "" {
		t.Errorf("report %+v", report)
	}
	code, stdout, stderr = run(t, "verify", second)
	if code != ExitGood || !strings.Contains(stderr, "not checked: where the files are from") {
		t.Errorf("verify: exit %d, %q, %q", code, stdout, stderr)
	}
}
