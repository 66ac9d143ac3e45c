package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// sluice runs the command line and returns what it prints on stdout. Its exit code has to be want.
func sluice(t *testing.T, want int, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binaries, "sluice"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
		t.Fatalf("sluice %v: %v, want exit code %d\n%s", args[0], err, want, stderr.String())
	}
	return stdout.String()
}

// TestStandaloneWithTheCommandLine follows the README: one process without servers, and the command line.
func TestStandaloneWithTheCommandLine(t *testing.T) {
	t.Parallel()
	standalone(t, "\x1f\x8b") // gzip
}

func TestStandaloneThatEncrypts(t *testing.T) {
	t.Parallel()
	standalone(t, "sluice\x01", "--encrypt")
}

// checkSignature verifies an export of everything, with the keys in the folder and with those of the server.
func checkSignature(t *testing.T, base, out string) {
	t.Helper()
	resp, err := http.Get(base + "/.well-known/jwks.json")
	check.Must(t, err)
	keys, err := io.ReadAll(resp.Body)
	check.Must(t, errors.Join(err, resp.Body.Close()))
	file := filepath.Join(t.TempDir(), "keys.json")
	check.Must(t, os.WriteFile(file, keys, 0o600))
	for _, args := range [][]string{{"verify", "--json", out}, {"verify", "--json", "--jwks", file, out}} {
		var report struct {
			SignedBy  string
			Unchecked []string
		}
		check.Must(t, json.Unmarshal([]byte(sluice(t, 0, args...)), &report))
		if report.SignedBy == "" || len(report.Unchecked) > 0 {
			t.Errorf("signed by %q, not checked: %q", report.SignedBy, report.Unchecked)
		}
	}
	check.Must(t, os.WriteFile(file, []byte(`{"keys":[]}`), 0o600))
	sluice(t, 1, "verify", "--jwks", file, out)
}

// standalone follows the README with these flags. Each stored file of type Patient has to start with form.
func standalone(t *testing.T, form string, flags ...string) {
	t.Helper()
	dir := t.TempDir()
	data, state, out := filepath.Join(dir, "data"), filepath.Join(dir, "state"), filepath.Join(dir, "out")
	sluice(t, 0, "synth", "--patients", "20", "--seed", "3", "--out", data)
	population := expect.Read(t, data)

	// Relative paths, because the embedded object store changes the working directory.
	server := exec.CommandContext(t.Context(), filepath.Join(binaries, "standalone"),
		append([]string{"--data", "data", "--state", "state", "--addr", "127.0.0.1:0"}, flags...)...)
	server.Dir = dir
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	check.Must(t, server.Start())
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() { _ = server.Process.Kill() })

	var start struct {
		BaseURL string `json:"base_url"`
		Subject string `json:"subject"`
		Page    string `json:"operator_url"`
	}
	check.Eventually(t, time.Minute, "standalone serves", func() bool {
		text, err := os.ReadFile(filepath.Join(state, "quickstart.json"))
		return err == nil && json.Unmarshal(text, &start) == nil
	})
	if !strings.HasSuffix(start.BaseURL, "/fhir") || start.Subject == "" {
		t.Fatalf("quickstart: %+v", start)
	}

	table := sluice(t, 0, "export", "--base", start.BaseURL, "--group", "all", "--state", state, "--out", out, "--no-progress")
	if !strings.Contains(table, "Observation") || !strings.Contains(table, "total") {
		t.Errorf("table: %s", table)
	}
	checkSignature(t, start.BaseURL, out)
	got := expect.Read(t, out)
	want := population.Export(population.Members("all"))
	lines := map[string][]string{}
	for _, r := range got.ByKey {
		lines[r.Type] = append(lines[r.Type], r.Line)
	}
	expect.SameLines(t, "downloaded", lines, want)

	stored, err := filepath.Glob(filepath.Join(state, "objects", "objects", "sluice", "jobs", "*", "Patient", "*"))
	check.Must(t, err)
	for _, file := range stored {
		content, err := os.ReadFile(file)
		check.Must(t, err)
		if !strings.HasPrefix(string(content), form) {
			t.Errorf("%s does not start with %q", filepath.Base(file), form)
		}
	}
	if len(stored) == 0 {
		t.Error("no stored file of patients was found")
	}

	// The admin page shows the job.
	resp, err := http.Get(start.Page)
	check.Must(t, err)
	shown, err := io.ReadAll(resp.Body)
	check.Must(t, err)
	check.Must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(shown), "completed") || !strings.Contains(string(shown), "New exports are accepted") {
		t.Errorf("the admin page: %s\n%s", resp.Status, shown)
	}

	// verify detects a damaged file.
	patients, err := filepath.Glob(filepath.Join(out, "Patient*.ndjson"))
	check.Must(t, err)
	text, err := os.ReadFile(patients[0])
	check.Must(t, err)
	check.Must(t, os.WriteFile(patients[0], bytes.Replace(text, []byte("Patient"), []byte("Person!"), 1), 0o600))
	sluice(t, 1, "verify", out)

	// The token command prints the token and nothing else, and the token is what curl needs.
	token := sluice(t, 0, "token", "--state", state, "--subject", start.Subject, "--scope", "system/Patient.rs")
	if strings.Count(strings.TrimSpace(token), ".") != 2 || strings.Count(token, "\n") != 1 {
		t.Errorf("token: %d bytes, %d lines", len(token), strings.Count(token, "\n"))
	}
	for bearer, status := range map[string]int{strings.TrimSpace(token): 403, "nonsense": 401} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, start.BaseURL+"/Group/all/$export?_type=Observation", nil)
		check.Must(t, err)
		req.Header.Set("Authorization", "Bearer "+bearer)
		resp, err := http.DefaultClient.Do(req)
		check.Must(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		check.Must(t, err)
		check.Must(t, resp.Body.Close())
		if resp.StatusCode != status {
			t.Errorf("kick-off: %s, want %d", resp.Status, status)
		}
	}

	check.Must(t, server.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-ended:
		check.Must(t, err)
	case <-time.After(time.Minute):
		t.Fatalf("standalone did not stop:\n%s", said.String())
	}
	if _, err := os.Stat(filepath.Join(state, "quickstart.json")); !os.IsNotExist(err) {
		t.Errorf("quickstart.json outlives the server: %v", err)
	}
	if strings.Contains(said.String(), "ERROR") {
		t.Errorf("standalone logged:\n%s", said.String())
	}
}

// startStandalone starts the server, waits until it serves, and returns it with the address that it listens on, which
// status URLs name. said gets its log.
func startStandalone(
	t *testing.T, said *bytes.Buffer, data, state, at string, flags ...string,
) (server *exec.Cmd, addr string) {
	t.Helper()
	ready := filepath.Join(state, "quickstart.json")
	check.Must(t, os.RemoveAll(ready))
	server = exec.CommandContext(t.Context(), filepath.Join(binaries, "standalone"),
		append([]string{"--data", data, "--state", state, "--addr", at}, flags...)...)
	server.Stderr = said
	check.Must(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	var start struct {
		BaseURL string `json:"base_url"`
	}
	check.Eventually(t, time.Minute, "standalone serves", func() bool {
		text, err := os.ReadFile(ready)
		return err == nil && json.Unmarshal(text, &start) == nil
	})
	base, err := url.Parse(start.BaseURL)
	check.Must(t, err)
	return server, base.Host
}

// A restart continues where the process was, also after kill -9: a finished export can be downloaded, a running one finishes
// and is complete.
func TestStandaloneKeepsExportsOverRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, state := filepath.Join(dir, "data"), filepath.Join(dir, "state")
	sluice(t, 0, "synth", "--patients", "20", "--seed", "3", "--out", data)
	population := expect.Read(t, data)
	want := population.Export(population.Members("all"))
	addr := "127.0.0.1:0"
	start := func() (server *exec.Cmd) {
		t.Helper()
		server, addr = startStandalone(t, &bytes.Buffer{}, data, state, addr, "--encrypt")
		return server
	}
	kickOff := func() string {
		t.Helper()
		token := sluice(t, 0, "token", "--state", state, "--subject", "demo", "--scope", "system/*.rs")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/fhir/Group/all/$export", nil)
		check.Must(t, err)
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
		resp, err := http.DefaultClient.Do(req)
		check.Must(t, err)
		check.Must(t, resp.Body.Close())
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("kick-off: %s", resp.Status)
		}
		return resp.Header.Get("Content-Location")
	}
	saved := func() time.Time {
		info, err := os.Stat(filepath.Join(state, "jobs.snapshot"))
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	complete := func(statusURL, out string) {
		t.Helper()
		out = filepath.Join(dir, out)
		sluice(t, 0, "export", "--state", state, "--status-url", statusURL, "--out", out, "--no-progress")
		lines := map[string][]string{}
		for _, r := range expect.Read(t, out).ByKey {
			lines[r.Type] = append(lines[r.Type], r.Line)
		}
		expect.SameLines(t, "downloaded", lines, want)
	}

	server := start()
	done := kickOff()
	complete(done, "first")
	running := kickOff()
	at := saved()
	check.Eventually(t, time.Minute, "the jobs are saved", func() bool { return saved().After(at) })
	check.Must(t, server.Process.Kill())
	_ = server.Wait()

	server = start()
	complete(done, "killed")
	complete(running, "running")
	check.Must(t, server.Process.Signal(syscall.SIGTERM))
	check.Must(t, server.Wait())

	start()
	complete(running, "stopped")
}

func TestServicesRefuseABadConfigurationAtOnce(t *testing.T) {
	t.Parallel()
	for _, service := range []string{"api", "worker", "scheduler"} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binaries, service), "--check-config")
		cmd.Env = []string{"SLUICE_RETENSION=1h", "SLUICE_S3_SECRET_KEY=hush", "SLUICE_LOG_LEVEL=loud"}
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("%s accepted an invalid configuration", service)
		}
		for _, part := range []string{"SLUICE_RETENSION", "SLUICE_REDIS_URL", "SLUICE_S3_ENDPOINT", "SLUICE_LOG_LEVEL"} {
			if !strings.Contains(string(out), part) {
				t.Errorf("%s does not name %s: %s", service, part, out)
			}
		}
		if strings.Contains(string(out), "hush") {
			t.Errorf("%s quotes a secret: %s", service, out)
		}
	}
}

// A folder has no history: the server stops when a file has changed, and an export never continues with other data.
func TestStandaloneWhoseDataChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, state := filepath.Join(dir, "data"), filepath.Join(dir, "state")
	sluice(t, 0, "synth", "--patients", "20", "--seed", "3", "--out", data)
	files, err := filepath.Glob(filepath.Join(data, "Procedure*"))
	check.Must(t, err)
	add := func(text string) {
		t.Helper()
		file, err := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
		check.Must(t, err)
		_, err = file.WriteString(text)
		check.Must(t, errors.Join(err, file.Close()))
	}
	var said bytes.Buffer
	server, addr := startStandalone(t, &said, data, state, "127.0.0.1:0")
	add("\n") // units of the type wait from now on
	out := filepath.Join(dir, "out")
	client := exec.CommandContext(t.Context(), filepath.Join(binaries, "sluice"),
		"export", "--state", state, "--group", "all", "--out", out, "--no-progress")
	var printed bytes.Buffer
	client.Stdout, client.Stderr = &printed, &printed
	check.Must(t, client.Start())
	t.Cleanup(func() { _ = client.Process.Kill(); _ = client.Wait() })
	if err := server.Wait(); err == nil || !strings.Contains(said.String(), "changed after it was indexed; a restart reads it again") {
		t.Fatalf("the server: %v\n%s", err, &said)
	}

	add(`{"resourceType":"Procedure","id":"new"}` + "\n")
	startStandalone(t, &bytes.Buffer{}, data, state, addr)
	err = client.Wait() // it has outlasted the restart
	if code := client.ProcessState.ExitCode(); code != 3 {
		t.Fatalf("exit code %d (%v), want 3\n%s", code, err, &printed)
	}
	errorFiles, err := filepath.Glob(filepath.Join(out, "*OperationOutcome*"))
	check.Must(t, err)
	var reports strings.Builder
	for _, file := range errorFiles {
		text, err := os.ReadFile(file)
		check.Must(t, err)
		reports.Write(text)
	}
	if !strings.Contains(reports.String(), "the data was replaced after the export was planned") {
		t.Errorf("reports %q, files %v\n%s", &reports, errorFiles, &printed)
	}
}
