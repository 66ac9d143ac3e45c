package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts a server with an export of one Patient file, and one error file of the severity if it is not "". Files have
// no compression and no digest, like those of other servers.
func serve(t *testing.T, severity string) (base string, authorization *atomic.Value) {
	authorization = &atomic.Value{}
	deleted := &atomic.Bool{}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	base = server.URL + "/fhir"
	write := func(w http.ResponseWriter, text string) {
		if _, err := w.Write([]byte(text)); err != nil {
			t.Errorf("answer: %v", err)
		}
	}
	mux.HandleFunc("GET /fhir/Group/{group}/$export", func(w http.ResponseWriter, r *http.Request) {
		authorization.Store(r.Header.Get("Authorization"))
		if r.PathValue("group") != "g" {
			w.WriteHeader(http.StatusNotFound)
			write(w, `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"not-found",`+
				`"diagnostics":"There is no such group."}]}`)
			return
		}
		w.Header().Set("Content-Location", base+"/jobs/1")
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /fhir/jobs/1", func(w http.ResponseWriter, _ *http.Request) {
		if deleted.Load() {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		failed := ""
		if severity != "" {
			failed = fmt.Sprintf(`{"type":"OperationOutcome","url":"%s/jobs/1/o.ndjson","count":1}`, base)
		}
		write(w, fmt.Sprintf(`{"transactionTime":"2026-01-02T03:04:05Z","request":"r","requiresAccessToken":true,
			"output":[{"type":"Patient","url":"%s/jobs/1/p.ndjson","count":2}],"deleted":[],"error":[%s]}`, base, failed))
	})
	mux.HandleFunc("GET /fhir/jobs/1/p.ndjson", func(w http.ResponseWriter, _ *http.Request) {
		write(w, `{"resourceType":"Patient","id":"1"}`+"\n"+`{"resourceType":"Patient","id":"2"}`+"\n")
	})
	mux.HandleFunc("GET /fhir/jobs/1/o.ndjson", func(w http.ResponseWriter, _ *http.Request) {
		write(w, `{"resourceType":"OperationOutcome","issue":[{"severity":"`+severity+`","code":"exception",`+
			`"diagnostics":"Observation could not be read."}]}`+"\n")
	})
	mux.HandleFunc("DELETE /fhir/jobs/1", func(w http.ResponseWriter, _ *http.Request) {
		deleted.Store(true)
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /fhir/jobs/2", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Progress", "started")
		w.Header().Set("X-Progress-Percent", "7")
		w.WriteHeader(http.StatusAccepted)
	})
	return base, authorization
}

// run runs a command line.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Run(t.Context(), append([]string{"sluice"}, args...), &out, &err)
	return code, out.String(), err.String()
}

// do runs a command line, checks its exit code and that its output contains the text, and returns its standard output.
func do(t *testing.T, code int, contains string, args ...string) string {
	t.Helper()
	got, stdout, stderr := run(t, args...)
	if got != code || !strings.Contains(stdout+stderr, contains) {
		t.Fatalf("%q: exit %d, %q, %q; want exit %d and %q", args, got, stdout, stderr, code, contains)
	}
	return stdout
}

func TestExport(t *testing.T) {
	base, authorization := serve(t, "")
	dir := filepath.Join(t.TempDir(), "out")
	code, stdout, stderr := run(t, "export", "--base", base, "--group", "g", "--out", dir, "--token", "secret")
	if code != ExitGood {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if len(lines) != 3 {
		t.Fatalf("printed:\n%s", stdout)
	}
	for i, want := range []string{"type files resources size seconds", "Patient 1 2 72 B", "total 1 2 72 B"} {
		if got := strings.Fields(lines[i]); !strings.HasPrefix(strings.Join(got, " "), want) {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
	for _, want := range []string{
		"export 1: " + base + "/jobs/1\n", "downloaded 1 of 1 file: 2 resources, 72 B\n",
		"written to " + dir + " (export 1, " + base + "/jobs/1)\n",
	} {
		if !strings.Contains(stderr, want) || strings.Contains(stderr, "\x1b") {
			t.Errorf("standard error is not a terminal, and has no %q: %q", want, stderr)
		}
	}
	if authorization.Load() != "Bearer secret" {
		t.Errorf("sent %q", authorization.Load())
	}

	code, stdout, stderr = run(t, "verify", dir)
	if want := dir + " is unchanged: 1 file, 2 resources\n"; code != ExitGood || stdout != want {
		t.Errorf("verify: exit %d, %q, %q", code, stdout, stderr)
	}
	must(t, os.WriteFile(filepath.Join(dir, "Patient.ndjson"), []byte("{}\n"), 0o600))
	code, stdout, stderr = run(t, "verify", dir)
	if code != ExitFailure || stdout != "" || !strings.Contains(stderr, "Patient.ndjson") {
		t.Errorf("verify of a damaged file: exit %d, %q, %q", code, stdout, stderr)
	}
}

func TestPartialExport(t *testing.T) {
	base, _ := serve(t, "warning")
	code, stdout, stderr := run(t,
		"export", "--base", base, "--group", "g", "--out", t.TempDir(), "--json", "--no-progress")
	if code != ExitPartial {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var report bulkclient.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("printed %q: %v", stdout, err)
	}
	if report.Total.Resources != 2 || report.Errors.Resources != 1 || len(report.Problems) != 1 {
		t.Errorf("report %+v", report)
	}
	if report.Job != "1" || report.StatusURL != base+"/jobs/1" || report.Folder == "" || report.Incomplete != 1 {
		t.Errorf("report %+v", report)
	}
	if !strings.HasPrefix(stderr, "not exported: warning: Observation could not be read. (exception)\n") {
		t.Errorf("standard error got %q", stderr)
	}
}

// Data that the server leaves out by design is told, and is no failure.
func TestWithheldDataIsNoFailure(t *testing.T) {
	base, _ := serve(t, "information")
	code, _, stderr := run(t, "export", "--base", base, "--group", "g", "--out", t.TempDir(), "--no-progress")
	if want := "note: Observation could not be read.\n1 note for information"; code != ExitGood ||
		!strings.HasPrefix(stderr, want) {
		t.Errorf("exit %d, %q", code, stderr)
	}
}

func TestStatusAndCancel(t *testing.T) {
	base, authorization := serve(t, "warning")
	do(t, ExitGood, "export 2: started, 7 %\n", "status", base+"/jobs/2")
	do(t, ExitGood, `"percent": 7`, "status", "--json", base+"/jobs/2")
	do(t, ExitGood, "export 1: completed, 1 file, 2 resources, 1 error file\n", "status", base+"/jobs/1", "--token", "t")
	dir := filepath.Join(t.TempDir(), "out")
	do(t, ExitPartial, "Patient", "export", "--status-url", base+"/jobs/1", "--out", dir)
	do(t, ExitGood, "is unchanged: 2 files, 3 resources", "verify", dir)
	do(t, ExitGood, `"statusUrl": "`+base+`/jobs/1"`, "verify", "--json", dir)
	if text := do(t, ExitGood, "", "verify", "--json", dir); strings.Contains(text, "incomplete") || strings.Contains(text, "problems") {
		t.Errorf("verify reads no issues, and reports %s", text)
	}
	do(t, ExitUsage, "origin of the base URL", "status", base+"/jobs/1", "--token", "t", "--base", "http://localhost:1/fhir")
	do(t, ExitUsage, "not an http URL", "status", "file:///x")
	do(t, ExitUsage, "missing STATUS_URL", "cancel")
	do(t, ExitGood, "export 1 is cancelled\n", "cancel", base+"/jobs/1")
	do(t, ExitFailure, "404", "status", base+"/jobs/1")
	if sent := authorization.Load(); sent != nil {
		t.Errorf("a job was kicked off with %v", sent)
	}
}

// An interrupt ends with 130 and the command that continues, without the token.
func TestInterruptedExport(t *testing.T) {
	base, _ := serve(t, "")
	for _, test := range []struct {
		cancels bool
		deleted int // status of the DELETE
	}{{false, 0}, {true, http.StatusAccepted}, {true, http.StatusForbidden}} {
		cancelled := test.deleted == http.StatusAccepted
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Location", "http://"+r.Host+"/jobs/1")
			if r.Method == http.MethodGet && r.URL.Path == "/jobs/1" {
				interrupt()
			}
			if r.Method == http.MethodDelete {
				w.WriteHeader(test.deleted)
				return
			}
			w.WriteHeader(http.StatusAccepted)
		}))
		defer server.Close()
		dir := filepath.Join(t.TempDir(), "it's here")
		args := []string{"export", "--base", server.URL, "--group", "g", "--out", dir, "--token", "secret", "--no-progress"}
		want := "sluice: interrupted, continue with:\n  bin/sluice export --base " + server.URL + " --group g --out '" +
			strings.ReplaceAll(dir, "'", `'\''`) + "' --token TOKEN --no-progress --resume\n"
		if test.cancels {
			args = append(args, "--cancel-on-interrupt")
			want = strings.Replace(want, "interrupted", "interrupted: cancel the export: the server answered 403 Forbidden", 1)
			want = strings.Replace(want, " --resume", " --cancel-on-interrupt --resume", 1)
		}
		if cancelled {
			want = "sluice: interrupted: the export was cancelled at the server, and its files were removed\n"
		}
		var out, errs bytes.Buffer
		if code := Run(ctx, append([]string{"bin/sluice"}, args...), &out, &errs); code != ExitInterrupted || errs.String() != want {
			t.Errorf("exit %d, %q, want %q", code, errs.String(), want)
		}
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) != cancelled {
			t.Errorf("cancelled %t: the folder: %v", cancelled, err)
		}
	}
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	var out, errs bytes.Buffer
	if code := Run(ctx, []string{"sluice", "status", base + "/jobs/1"}, &out, &errs); code != ExitInterrupted ||
		errs.String() != "sluice: interrupted\n" {
		t.Errorf("status: exit %d, %q", code, errs.String())
	}
}

func TestFailedExport(t *testing.T) {
	base, _ := serve(t, "")
	code, stdout, stderr := run(t, "export", "--base", base, "--group", "unknown", "--out", t.TempDir())
	want := "sluice: kick off the export: the server answered 404 Not Found: There is no such group. (not-found)\n"
	if code != ExitFailure || stdout != "" || stderr != want {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{}, {"unknown"}, {"--unknown"}, {"export"}, {"export", "--base", "http://a.org"},
		{"export", "--group", "g", "--out", dir},
		{"export", "--base", "ftp://a.org", "--group", "g", "--out", dir},
		{"export", "--base", "http://a.org", "--group", "a/b", "--out", dir},
		{"export", "--base", "http://a.org", "--group", "g", "--out", ""},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--type", "patient"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--parallel", "0"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--parallel", "x"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--timeout", "-1s"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--token", "a", "--token-file", "b"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "more"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--client-id", "a"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--client-key", "a"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--client-secret-file", "a"},
		{"export", "--base", "http://a.org", "--group", "g", "--out", dir, "--max-bytes", "-1"},
		{"export", "--base", "http://a.org", "--group", "g", "--status-url", "http://a.org/1", "--out", dir},
		{"token", "--state", dir}, {"token", "--state", dir, "--subject", "", "--scope", "s"},
		{"token", "--state", dir, "--subject", "a", "--scope", "system/*.rs", "--ttl", "0s"},
		{"token", "--state", dir, "--subject", "a", "--scope", "foo", "--audience", "a"},
		{"token", "--state", dir, "--subject", "a", "--scope", "patient/*.rs", "--audience", "a"},
		{"synth", "--out", dir}, {"synth", "--patients", "0", "--out", dir}, {"verify"}, {"verify", dir, dir},
		{"version", "x"}, {"load"}, {"load", "--database", "postgres://u:p@127.0.0.1:1/d"},
		{"load", "--parallel", "0", dir}, {"load", "--parallel", "-1", dir}, {"load", "--history", "-1s", dir},
		{"load", "--history", "7", dir}, {"load", "--delete-missing=x", dir}, {"load", "--nonsense", dir},
	} {
		code, stdout, stderr := run(t, args...)
		if code != ExitUsage || stdout != "" || !strings.HasPrefix(stderr, "sluice: ") {
			t.Errorf("%q: exit %d, %q, %q", args, code, stdout, stderr)
		}
	}
	code, stdout, _ := run(t, "export", "--help")
	if code != ExitGood || !strings.Contains(stdout, "3    finished, but some data is missing") {
		t.Errorf("help: exit %d, %q", code, stdout)
	}
}

// A usage error has the value at fault, the nearest known name, and the command whose help explains it.
func TestUsageErrorsAdvise(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"exprot"}, "unknown command \"exprot\" for \"sluice\" (did you mean export?)\nSee sluice --help.\n"},
		{[]string{"exprot", "--help"}, "unknown command \"exprot\" for \"sluice\" (did you mean export?)\nSee sluice --help.\n"},
		{[]string{"help", "exprot"}, "unknown command \"exprot\" for \"sluice\" (did you mean export?)\n"},
		{[]string{"help", "admin", "grnat"}, "unknown command \"grnat\" for \"sluice admin\" (did you mean grant?)\n"},
		{[]string{"quite", "different"}, "unknown command \"quite\" for \"sluice\"\n"},
		{[]string{"admin", "client", "regster", "--help"}, "(did you mean register?)\nSee sluice admin client --help.\n"},
		{[]string{"admin", "client", "show", "research"}, "unexpected argument \"research\"\nSee sluice admin client show --help.\n"},
		{[]string{"admin", "grant", "set", "--nonsense"}, "See sluice admin grant set --help.\n"},
		{[]string{"admin", "job", "show"}, "missing JOB: the id of a job (sluice admin job list)\n"},
		{[]string{"admin", "unit", "retry", "aaaaaaaaaaaaaaaaaaaaaaaaaa"}, "missing UNIT: "},
		{[]string{"load"}, "missing PATH: "},
		{[]string{"synth"}, "--out and --patients are required\n"},
		{[]string{"synth", "--patients", "many", "--out", "x"}, "--patients must be a whole number, not \"many\"\n"},
		{[]string{"completion", "bsh"}, "(did you mean bash?)"},
		{[]string{"--json", "version"}, "--json must follow its command, as in \"sluice COMMAND --json\"\nSee sluice --help.\n"},
		{[]string{"admin", "--json", "job", "list"}, "--json must follow its command, as in \"sluice admin COMMAND --json\"\n"},
		{[]string{"export", "--typ", "Patient"}, "unknown flag --typ (did you mean --type?)\nSee sluice export --help.\n"},
		{[]string{"export", "--qwerty"}, "unknown flag --qwerty\n"},
		{[]string{"verify"}, "missing DIR: the folder of an export\nSee sluice verify --help.\n"},
		{[]string{"verify", "a", "b"}, "unexpected argument \"b\""},
		{[]string{"export", "--group", "g", "--out", "x", "--timeout", "5"}, "--timeout must be a number with a unit, such as 90s, 10m or 168h, not \"5\"\n"},
		{[]string{"export", "--group", "g", "--out", "x"}, "--base or --state is required"},
		{[]string{"export", "--base", "http://a.org", "--group", "g", "--out", "x", "--type", "Patients"},
			"\"Patients\" is not a resource type of FHIR R4 (did you mean Patient?)"},
		{[]string{"export", "--base", "http://a.org", "--group", "g", "--out", "x", "--type", "patient"}, "(did you mean Patient?)"},
		{[]string{"export", "--base", "http://a.org", "--out", "x"},
			"--group, --status-url, --level patient or --level system is required"},
		{[]string{"admin", "job", "list", "--redis", "foo"}, "sluice: --redis: "},
		{[]string{"admin", "job", "list", "--redis", "redis://localhost:1", "--ca-file", "/none"}, "sluice: --ca-file: "},
		{[]string{"admin", "job", "list", "--redis", "redis://localhost:1", "--state", "runnin"}, "cancelled, expired (did you mean running?)"},
		{[]string{"admin", "group", "list", "--database", "foo"}, "sluice: --database: "},
		{[]string{"load", "--dry-run", "--data-base", "foo", "."}, "sluice: --data-base: "},
		{[]string{"load", "--dry-run", "--max-line", "1", "."}, "--max-line must be from 1024"},
	} {
		code, stdout, stderr := run(t, test.args...)
		if code != ExitUsage || stdout != "" || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 2 {
			t.Errorf("%q: exit %d, %q, %q, want %q", test.args, code, stdout, stderr, test.want)
		}
	}
	do(t, ExitGood, "Export the data of a group, of all patients or of everything into a folder", "--help")
	do(t, ExitGood, "Kick off a bulk export", "help", "export")
	do(t, ExitGood, "Kick off a bulk export", "export", "--help")
	do(t, ExitGood, "completion", "--help")
	do(t, ExitGood, "bash", "completion", "bash")
	do(t, ExitGood, "failed,running\n", "__complete", "admin", "job", "list", "--state", "failed,r")
	do(t, ExitGood, "Patient,Condition\n", "__complete", "export", "--type", "Patient,Condi")
}

// state returns a state folder of a standalone server.
func state(t *testing.T, base string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "issuer"), 0o700))
	if _, err := development.Open(filepath.Join(dir, "issuer")); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"base_url": %q, "subject": "demo", "scope": "system/*.rs", "state": %q}`, base, dir)
	must(t, os.WriteFile(filepath.Join(dir, "quickstart.json"), []byte(text), 0o600))
	return dir
}

func TestToken(t *testing.T) {
	dir := state(t, "https://example.org/fhir")
	code, stdout, stderr := run(t, "token", "--state", dir, "--subject", "me", "--scope", "system/Patient.rs")
	if code != ExitGood || strings.Count(stdout, ".") != 2 || strings.Count(stdout, "\n") != 1 || stderr != "" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	do(t, ExitGood, `"audience": "https://example.org/fhir"`,
		"token", "--state", dir, "--subject", "me", "--scope", "system/Patient.rs", "--json")
	empty := t.TempDir()
	code, stdout, stderr = run(t, "token", "--state", empty, "--subject", "me", "--scope", "system/Patient.rs")
	if code != ExitFailure || stdout != "" || !strings.Contains(stderr, "start the standalone server") {
		t.Errorf("no server: exit %d, %q, %q", code, stdout, stderr)
	}
	code, _, stderr = run(t, "token", "--state", empty, "--subject", "me", "--scope", "system/*.rs", "--audience", "a")
	if _, err := os.Stat(filepath.Join(empty, "issuer")); code != ExitFailure || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no issuer: exit %d, %q, %v", code, stderr, err)
	}
}

// Development tokens are sent only to their own server, regardless of --base.
func TestStateTokensAreSentToTheirServerOnly(t *testing.T) {
	base, authorization := serve(t, "")
	other, stolen := serve(t, "")
	folder := state(t, base)
	for _, elsewhere := range []string{
		other, "https" + strings.TrimPrefix(base, "http"), "https://example.org/fhir", "unknown",
	} {
		code, _, stderr := run(t, "export", "--group", "g", "--out", t.TempDir(), "--state", folder, "--base", elsewhere)
		if code != ExitUsage || !strings.Contains(stderr, "--base") {
			t.Errorf("%s: exit %d, %q", elsewhere, code, stderr)
		}
	}
	if stolen.Load() != nil {
		t.Errorf("the other server got %v", stolen.Load())
	}
	for _, own := range []string{base + "/", ""} {
		code, _, stderr := run(t, "export", "--group", "g", "--out", t.TempDir(), "--state", folder, "--base", own)
		if sent, _ := authorization.Swap("").(string); code != ExitGood || strings.Count(sent, ".") != 2 {
			t.Errorf("its own server as %q: exit %d, %q", own, code, stderr)
		}
	}
}

func TestPlainHTTP(t *testing.T) {
	out := t.TempDir()
	args := []string{"export", "--base", "http://192.0.2.1/fhir", "--group", "g", "--out", out, "--token", "secret"}
	code, _, stderr := run(t, args...)
	if code != ExitUsage || !strings.Contains(stderr, "--insecure-http") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // before anything is sent
	var stdout, errs bytes.Buffer
	code = Run(ctx, append(append([]string{"sluice"}, args...), "--insecure-http"), &stdout, &errs)
	if code != ExitInterrupted || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("--insecure-http: exit %d, %q", code, errs.String())
	}
}

// A file with a key or a secret is read only if it is private, and a public key set is called what it is.
func TestPrivateFiles(t *testing.T) {
	dir := t.TempDir()
	args := func(flag, name string, mode os.FileMode, text string) []string {
		file := filepath.Join(dir, name)
		must(t, os.WriteFile(file, []byte(text), mode))
		return []string{"export", "--base", "http://127.0.0.1:1/fhir", "--group", "g", "--out", filepath.Join(dir, "out"),
			"--token-url", "http://127.0.0.1:1/token", "--client-id", "a", flag, file}
	}
	do(t, ExitFailure, "is a JSON Web Key Set, the public half", args("--client-key", "a.jwks.json", 0o644, `{"keys":[]}`)...)
	do(t, ExitFailure, "mode is 0644", args("--client-key", "a.key.json", 0o644, `{}`)...)
	do(t, ExitFailure, "mode is 0640", args("--client-secret-file", "b", 0o640, "secret")...)
	do(t, ExitFailure, "a token: no answer", args("--client-secret-file", "c", 0o600, "secret\n")...)
}

func TestTokenFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "token")
	source := heldToken(func() (string, error) { return readToken(name) })
	if _, err := source.Token(t.Context(), ""); err == nil {
		t.Error("got a token from a missing file")
	}
	for text, want := range map[string]string{"abc\n": "abc", "": "", "two words": ""} {
		must(t, os.WriteFile(name, []byte(text), 0o600))
		got, err := source.Token(t.Context(), "")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	must(t, os.WriteFile(name, []byte("abc"), 0o600))
	if _, err := source.Token(t.Context(), "abc"); !errors.Is(err, bulkclient.ErrTokenRefused) {
		t.Errorf("the refused token came again: %v", err)
	}
}

func TestSynth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	code, stdout, stderr := run(t, "synth", "--patients", "3", "--seed", "7", "--out", dir)
	if code != ExitGood || !strings.Contains(stdout, "\nPatient ") || !strings.Contains(stdout, "\ntotal ") {
		t.Fatalf("exit %d, %q, %q", code, stdout, stderr)
	}
	text, err := os.ReadFile(filepath.Join(dir, "Patient.ndjson"))
	if err != nil || bytes.Count(text, []byte{'\n'}) != 3 {
		t.Errorf("%d bytes of patients, %v", len(text), err)
	}
	if code, _, stderr := run(t, "synth", "--patients", "3", "--out", dir); code != ExitFailure || stderr == "" {
		t.Errorf("over another population: exit %d, %q", code, stderr)
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		code, stdout, stderr := run(t, arg)
		if code != ExitGood || !strings.HasPrefix(stdout, "sluice ") || !strings.HasSuffix(stdout, "\n") || stderr != "" {
			t.Errorf("%s: exit %d, %q, %q", arg, code, stdout, stderr)
		}
	}
	do(t, ExitGood, `"version":`, "version", "--json")
}
