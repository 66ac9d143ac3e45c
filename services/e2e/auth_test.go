package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/e2e/check"
)

const (
	authIssuer = "https://auth.example.org/auth"
	authURL    = authIssuer + "/token"
)

// authClient is a client with a key from `sluice admin client keygen`.
type authClient struct {
	t      *testing.T
	id     string
	signer *token.Signer
	at     string // where the token service listens
}

func newAuthClient(t *testing.T, id, redis, at string) authClient {
	t.Helper()
	name := filepath.Join(t.TempDir(), id)
	sluice(t, 0, "admin", "client", "keygen", "--out", name)
	sluice(t, 0, "admin", "client", "register", "--redis", redis, "--id", id, "--jwks-file", name+".jwks.json", "--scope", "system/*.rs")
	key, err := os.ReadFile(name + ".key.json")
	check.Must(t, err)
	signer, err := token.ParseSigner(key, token.AssertionAlgorithms()...)
	check.Must(t, err)
	return authClient{t: t, id: id, signer: signer, at: at}
}

// ask requests a token and returns the status and the token.
func (c authClient) ask() (int, string) {
	c.t.Helper()
	assertion, err := c.signer.SignAssertion(c.id, authURL, time.Now())
	check.Must(c.t, err)
	resp, err := http.PostForm("http://"+c.at+"/auth/token", url.Values{
		"grant_type": {"client_credentials"}, "scope": {"system/*.rs"},
		"client_assertion_type": {token.AssertionType}, "client_assertion": {assertion},
	})
	check.Must(c.t, err)
	defer resp.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	check.Must(c.t, json.NewDecoder(resp.Body).Decode(&answer))
	return resp.StatusCode, answer.AccessToken
}

func (c authClient) token() string {
	c.t.Helper()
	status, given := c.ask()
	if status != http.StatusOK || given == "" {
		c.t.Fatalf("token request of %s: %d", c.id, status)
	}
	return given
}

func (s *stack) bearing(method, target, bearer string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, target, nil)
	check.Must(s.t, err)
	req.Header.Set("Authorization", "Bearer "+bearer)
	resp, err := s.client.Do(req)
	check.Must(s.t, err)
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// B-39: two replicas of the token service, a client registered with the command line, and a new token for each step of an
// export. The API only has the published keys of the service.
func TestEachStepOfAnExportWithATokenOfItsOwn(t *testing.T) {
	t.Parallel()
	data := generated(t, 20)
	s := deploy(t, setup{data: data, workers: 1, access: fmt.Sprintf(openAccess+`
- {issuer: %q, subject: app, types: all, groups: all, patients: all}
- {issuer: %q, subject: rival, types: all, groups: all, patients: all}
`, authIssuer, authIssuer)})
	redis := testenv.Redis(t)
	environ := []string{
		"SLUICE_LOG_LEVEL=debug", "SLUICE_REDIS_URL=" + redis, "SLUICE_AUTH_ADDR=127.0.0.1:0", "SLUICE_AUTH_TOKEN_URL=" + authURL,
		"SLUICE_BASE_URL=" + publicBase, "SLUICE_AUTH_KEY_SECRET=a secret of 32 bytes and some more",
	}
	first, second := s.start("auth", environ...), s.start("auth", environ...)
	one, two := first.ready()["public"], second.ready()["public"]
	for _, at := range []string{one, two} {
		check.Eventually(t, 30*time.Second, "the token service has keys", func() bool {
			resp, err := http.Get("http://" + at + "/readyz")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
	}
	issuers := filepath.Join(t.TempDir(), "issuers.yaml")
	check.Must(t, os.WriteFile(issuers, fmt.Appendf(nil, "issuers:\n- name: %q\n  audiences: [%q]\n  jwks_url: \"http://%s/auth/jwks\"\n",
		authIssuer, publicBase, two), 0o600))
	s.api.stop()
	s.apiEnv = append(slices.Clone(s.apiEnv), "SLUICE_TOKEN_ISSUERS_FILE="+issuers)
	s.restartAPI()

	app, rival := newAuthClient(t, "app", redis, one), newAuthClient(t, "rival", redis, two)
	tokenA := app.token()
	kickoff := s.bearing(http.MethodGet, publicBase+"/Group/all/$export?_type=Patient", tokenA)
	if kickoff.StatusCode != http.StatusAccepted {
		t.Fatalf("kick-off: %s", kickoff.Status)
	}
	status := kickoff.Header.Get("Content-Location")
	app.at = two // the other replica
	var done manifest
	check.Eventually(t, time.Minute, "the export finishes", func() bool {
		tokenB := app.token()
		if tokenB == tokenA {
			t.Fatal("the same token was issued twice")
		}
		resp := s.bearing(http.MethodGet, status, tokenB)
		if resp.StatusCode != http.StatusOK {
			return false
		}
		check.Must(t, json.NewDecoder(resp.Body).Decode(&done))
		return true
	})
	if len(done.Output) == 0 || len(done.Error) != 0 {
		t.Fatalf("manifest %+v", done)
	}
	// To another client of the service the job does not exist.
	for _, target := range []string{status, done.Output[0].URL} {
		if resp := s.bearing(http.MethodGet, target, rival.token()); resp.StatusCode != http.StatusNotFound {
			t.Errorf("another client gets %s", resp.Status)
		}
	}

	// One replica is lost: the API continues with its cached keys, and the client with the other replica.
	second.Kill()
	app.at = one
	resp := s.bearing(http.MethodGet, done.Output[0].URL, app.token())
	text, err := io.ReadAll(resp.Body)
	check.Must(t, err)
	if resp.StatusCode != http.StatusOK || bytes.Count(text, []byte("\n")) != done.Output[0].Count {
		t.Errorf("the file: %s, %d lines, want %d", resp.Status, bytes.Count(text, []byte("\n")), done.Output[0].Count)
	}
	last := app.token()
	sluice(t, 0, "admin", "client", "remove", "--redis", redis, "--id", "app", "--yes")
	if status, given := app.ask(); status != http.StatusBadRequest || given != "" {
		t.Errorf("token request of a removed client: %d", status)
	}
	if resp := s.bearing(http.MethodDelete, status, last); resp.StatusCode != http.StatusAccepted {
		t.Errorf("delete: %s", resp.Status)
	}
	for _, p := range s.processes {
		for _, secret := range []string{tokenA, last, "32 bytes and some more"} {
			if strings.Contains(p.Log(), secret) {
				t.Errorf("%s has logged a token or a secret", p.Name())
			}
		}
	}
}

// A standalone server issues tokens, over TLS, to the clients of a file; the command line fetches them as needed.
func TestStandaloneWithRegisteredClients(t *testing.T) {
	authority := testenv.NewAuthority(t)
	cert, key := authority.Issue(time.Now().Add(time.Hour), "127.0.0.1").Files(t, t.TempDir())
	t.Setenv("SSL_CERT_FILE", authority.File()) // of the command line
	dir := t.TempDir()
	data, state, name := generated(t, 20), filepath.Join(dir, "state"), filepath.Join(dir, "app")
	sluice(t, 0, "admin", "client", "keygen", "--out", name)
	set, err := os.ReadFile(name + ".jwks.json")
	check.Must(t, err)
	clients := filepath.Join(dir, "clients.yaml")
	check.Must(t, os.WriteFile(clients, fmt.Appendf(nil, "clients:\n- id: app\n  scope: system/Patient.rs system/Group.rs\n  jwks: %s\n",
		strings.ReplaceAll(string(set), "\n", " ")), 0o600))

	server := exec.CommandContext(t.Context(), filepath.Join(binaries, "standalone"),
		"--tls-cert", cert, "--tls-key", key, "--data", data, "--state", state, "--addr", "127.0.0.1:0", "--clients", clients)
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	check.Must(t, server.Start())
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() { _ = server.Process.Kill() })
	var start struct {
		BaseURL string `json:"base_url"`
	}
	check.Eventually(t, time.Minute, "standalone serves", func() bool {
		text, err := os.ReadFile(filepath.Join(state, "quickstart.json"))
		return err == nil && json.Unmarshal(text, &start) == nil
	})
	credentials := []string{
		"export", "--base", start.BaseURL, "--group", "all", "--no-progress",
		"--client-id", "app", "--client-key", name + ".key.json", // the server metadata names the token service
	}
	table := sluice(t, 0, append(credentials, "--type", "Patient", "--out", filepath.Join(dir, "out"))...)
	if !strings.Contains(table, "Patient") {
		t.Errorf("table: %s", table)
	}
	sluice(t, 0, "verify", filepath.Join(dir, "out"))
	// Its registration does not include Observation.
	sluice(t, 1, append(credentials, "--type", "Observation", "--out", filepath.Join(dir, "more"))...)
	// The development issuer still works.
	sluice(t, 0, "export", "--state", state, "--group", "all", "--type", "Patient", "--no-progress", "--out", filepath.Join(dir, "dev"))

	check.Must(t, server.Process.Signal(os.Interrupt))
	select {
	case err := <-ended:
		check.Must(t, err)
	case <-time.After(time.Minute):
		t.Fatalf("standalone did not stop:\n%s", said.String())
	}
	if strings.Contains(said.String(), "ERROR") {
		t.Errorf("standalone logged:\n%s", said.String())
	}
}
