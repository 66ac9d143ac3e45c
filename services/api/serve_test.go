package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config/configtest"
)

// environment returns the settings of an API on real stores that trusts the issuer at the URL.
func environment(t *testing.T, jwksURL string) []string {
	t.Helper()
	dir := t.TempDir()
	issuers := filepath.Join(dir, "issuers.yaml")
	access := filepath.Join(dir, "access.yaml")
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "Group.ndjson"), nil, 0o600),
		os.WriteFile(access, []byte("[]"), 0o600),
		os.WriteFile(issuers, fmt.Appendf(nil,
			"issuers:\n- {name: \"https://one.example.org\", audiences: [a], jwks_url: %q}\n", jwksURL), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	s3 := testenv.ObjectStore(t)
	return []string{
		"SLUICE_REDIS_URL=" + testenv.Redis(t), "SLUICE_S3_ENDPOINT=" + s3.Endpoint, "SLUICE_S3_ACCESS_KEY=" + s3.AccessKey,
		"SLUICE_S3_SECRET_KEY=" + s3.SecretKey, "SLUICE_S3_BUCKET=" + s3.Bucket, "SLUICE_GROUPS_DIR=" + dir,
		"SLUICE_ACCESS_FILE=" + access, "SLUICE_TOKEN_ISSUERS_FILE=" + issuers, "SLUICE_API_ADDR=127.0.0.1:0",
	}
}

// --check-config reports what would keep the API from starting.
func TestCheckConfig(t *testing.T) {
	base := environment(t, "https://one.example.org/keys")
	for url, want := range map[string]string{
		"https://h.example.org/fhir":    "",
		"https://h.example.org/:x":      "':'",
		"https://h.example.org/a/../b":  "clean",
		"https://h.example.org/a%2Fb":   "encoded",
		"https://h.example.org/fhir?":   "query",
		"https://h.example.org/fhir?x":  "https://host/fhir",
		"ftp://h.example.org/fhir":      "https://host/fhir",
		"https://a:b@h.example.org/a/b": "https://host/fhir",
	} {
		err := run(t.Context(), []string{"--check-config"}, append(slices.Clone(base), "SLUICE_BASE_URL="+url), io.Discard)
		if want == "" && err != nil {
			t.Errorf("%s: %v", url, err)
		}
		for _, word := range []string{"SLUICE_BASE_URL", want} {
			if want != "" && (err == nil || !strings.Contains(err.Error(), word)) {
				t.Errorf("%s: %v, want an error about %s and %s", url, err, "SLUICE_BASE_URL", want)
			}
		}
	}
}

// --check-config reports an invalid file of issuers together with other problems.
func TestCheckConfigReadsIssuers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issuers.yaml")
	if err := os.WriteFile(file, []byte("issuers:\n- {name: a, audiences: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := append(environment(t, "https://one.example.org/keys"), "SLUICE_BASE_URL=https://h.example.org/fhir",
		"SLUICE_POLL_LIMIT=0", "SLUICE_TOKEN_ISSUERS_FILE="+file, "SLUICE_API_REQUIRE_GROUP_SCOPE=true")
	err := run(t.Context(), []string{"--check-config"}, environ, io.Discard)
	for _, word := range []string{"SLUICE_POLL_LIMIT", "SLUICE_TOKEN_ISSUERS_FILE", "no audience"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v, want an error about %s", err, word)
		}
	}
}

// --check-config reports malformed master keys and unknown server-side encryption together, without quoting a key.
func TestCheckConfigOfEncryption(t *testing.T) {
	base := append(environment(t, "https://one.example.org/keys"), "SLUICE_BASE_URL=https://h.example.org/fhir")
	check := func(more ...string) error {
		return run(t.Context(), []string{"--check-config"}, append(slices.Clone(base), more...), io.Discard)
	}
	key := "2026-11:" + strings.Repeat("A", 43) + "="
	if err := check("SLUICE_ENVELOPE_KEYS="+key, "SLUICE_S3_SSE=kms:sluice"); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	err := check("SLUICE_ENVELOPE_KEYS="+key+"\nother:hush", "SLUICE_S3_SSE=aes")
	for _, word := range []string{"SLUICE_ENVELOPE_KEYS: key 2", "SLUICE_S3_SSE"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v, want an error about %s", err, word)
		}
	}
	if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "AAAA")) {
		t.Errorf("a key is quoted: %v", err)
	}
}

func TestNoSecretIsQuoted(t *testing.T) {
	configtest.QuotesNothing(t, configtest.Service{
		Config: settings{}, Run: run,
		Environ: append(environment(t, "https://one.example.org/keys"), "SLUICE_BASE_URL=https://h.example.org/fhir",
			"SLUICE_AUDIT_LOG="+filepath.Join(t.TempDir(), "audit.ndjson")),
		Instead: map[string][]string{"DIRECTORY_URL": {"GROUPS_DIR", "ACCESS_FILE"}},
	})
}

// Each listener requires TLS and, if private, a client certificate.
func TestTLS(t *testing.T) {
	authority, operators := testenv.NewAuthority(t), testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	cert, key := authority.Issue(valid, "127.0.0.1").Files(t, t.TempDir())
	environ := append(environment(t, "https://one.example.org/keys"), "SLUICE_BASE_URL=https://h.example.org/fhir",
		"SLUICE_TLS_CERT_FILE="+cert, "SLUICE_TLS_KEY_FILE="+key, "SLUICE_PRIVATE_TLS=true",
		"SLUICE_PRIVATE_CLIENT_CA_FILE="+operators.File())
	ctx, stop := context.WithCancel(t.Context())
	out, stderr := io.Pipe()
	stopped := make(chan error, 1)
	go func() {
		stopped <- run(ctx, nil, environ, stderr)
		_ = stderr.Close() // never fails
	}()
	var ready struct{ Msg, Public, Private string }
	log := bufio.NewScanner(out)
	for ready.Msg != "api is ready" && log.Scan() {
		if err := json.Unmarshal(log.Bytes(), &ready); err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until run has returned
	for name, row := range map[string]struct {
		url          string
		certificates []tls.Certificate
		good         bool
	}{
		"public":                         {"https://" + ready.Public, nil, true},
		"public, in plain text":          {"http://" + ready.Public, nil, false},
		"private, without a certificate": {"https://" + ready.Private, nil, false},
		"private, an operator":           {"https://" + ready.Private, []tls.Certificate{operators.Issue(valid).TLS(t)}, true},
	} {
		client := http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: authority.Pool(), Certificates: row.certificates}, DisableKeepAlives: true,
		}}
		response, err := client.Get(row.url + "/livez")
		if err == nil {
			err = response.Body.Close()
			if response.StatusCode != http.StatusOK {
				err = errors.Join(err, errors.New(response.Status))
			}
		}
		if (err == nil) != row.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A stopped API leaks nothing, not even an abandoned fetch of keys. The public listener serves the probes but no metrics.
func TestStop(t *testing.T) {
	asked := make(chan struct{})
	var once sync.Once
	jwks := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(asked) })
		<-r.Context().Done()
	}))
	defer jwks.Close()
	environ := append(environment(t, jwks.URL), "SLUICE_BASE_URL=https://h.example.org/fhir")
	already := goleak.IgnoreCurrent()

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, stderr := io.Pipe()
	stopped := make(chan error, 1)
	go func() {
		stopped <- run(ctx, nil, environ, stderr)
		_ = stderr.Close() // never fails
	}()
	var ready struct{ Msg, Public, Private string }
	log := bufio.NewScanner(out)
	for ready.Msg != "api is ready" && log.Scan() {
		if err := json.Unmarshal(log.Bytes(), &ready); err != nil {
			t.Fatal(err)
		}
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, out) // until run has returned
	}()

	transport := &http.Transport{DisableKeepAlives: true}
	get := func(ctx context.Context, url, token string) (int, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	for url, want := range map[string]int{
		"http://" + ready.Public + "/livez": 200, "http://" + ready.Public + "/metrics": 404,
		"http://" + ready.Private + "/livez": 200, "http://" + ready.Private + "/metrics": 200,
	} {
		if got, err := get(t.Context(), url, ""); got != want || err != nil {
			t.Errorf("%s: %d, %v, want %d", url, got, err, want)
		}
	}

	part := base64.RawURLEncoding.EncodeToString
	unknown := part([]byte(`{"alg":"RS256","kid":"k"}`)) + "." + part(fmt.Appendf(nil,
		`{"iss":"https://one.example.org","sub":"s","aud":"a","iat":%d,"exp":%d}`, time.Now().Unix(),
		time.Now().Add(time.Minute).Unix())) + "." + part(make([]byte, 256))
	impatient, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	go func() {
		<-asked
		hangUp()
	}()
	if got, err := get(impatient, "http://"+ready.Public+"/fhir/Group/g/$export", unknown); err == nil {
		t.Errorf("an answer without keys: %d", got)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	<-drained
	goleak.VerifyNone(t, already)
}
