package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
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

// --check-config reports what would keep the API from starting, all at once, without quoting a key.
func TestCheckConfig(t *testing.T) {
	good := append(environment(t, "https://one.example.org/keys"), "SLUICE_BASE_URL=https://h.example.org/fhir")
	issuers := filepath.Join(t.TempDir(), "issuers.yaml")
	if err := os.WriteFile(issuers, []byte("issuers:\n- {name: a, audiences: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := "2026-11:" + strings.Repeat("A", 43) + "="
	at := func(url string) []string { return []string{"SLUICE_BASE_URL=" + url} }
	for name, test := range map[string]struct {
		set  []string
		want []string // parts of the error; nil: no error
	}{
		"good":            {nil, nil},
		"encryption":      {[]string{"SLUICE_ENVELOPE_KEYS=" + key, "SLUICE_S3_SSE=kms:sluice"}, nil},
		"URL not clean":   {at("https://h.example.org/a/../b"), []string{"SLUICE_BASE_URL", "clean"}},
		"URL with a user": {at("https://a:b@h.example.org/a/b"), []string{"SLUICE_BASE_URL", "https://host/fhir"}},
		"issuers and another problem": {
			[]string{"SLUICE_POLL_LIMIT=0", "SLUICE_TOKEN_ISSUERS_FILE=" + issuers, "SLUICE_API_REQUIRE_GROUP_SCOPE=true"},
			[]string{"SLUICE_POLL_LIMIT", "SLUICE_TOKEN_ISSUERS_FILE", "no audience"},
		},
		"too few status answers": {[]string{"SLUICE_JOB_LIMIT=16"}, []string{"SLUICE_STATUS_LIMIT", "40 for each"}},
		"keys that cannot be read": {
			[]string{"SLUICE_ENVELOPE_KEYS=" + key + "\nother:hush", "SLUICE_S3_SSE=aes"},
			[]string{"SLUICE_ENVELOPE_KEYS: key 2", "SLUICE_S3_SSE"},
		},
	} {
		err := run(t.Context(), []string{"--check-config"}, append(slices.Clone(good), test.set...), io.Discard)
		if test.want == nil && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, word := range test.want {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want an error about %s", name, err, word)
			}
		}
		if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "AAAA")) {
			t.Errorf("%s: a key is quoted: %v", name, err)
		}
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
	public, private, stop := configtest.Start(t, "api", run, environ)
	defer stop()
	for name, row := range map[string]struct {
		url          string
		certificates []tls.Certificate
		good         bool
	}{
		"public":                         {"https://" + public, nil, true},
		"public, in plain text":          {"http://" + public, nil, false},
		"private, without a certificate": {"https://" + private, nil, false},
		"private, an operator":           {"https://" + private, []tls.Certificate{operators.Issue(valid).TLS(t)}, true},
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
}

// A stopped API leaks no goroutine, not even that of a cancelled fetch of keys. The public listener serves the probes but
// no metrics.
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

	public, private, stop := configtest.Start(t, "api", run, environ)
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
		"http://" + public + "/livez": 200, "http://" + public + "/metrics": 404,
		"http://" + private + "/livez": 200, "http://" + private + "/metrics": 200,
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
	if got, err := get(impatient, "http://"+public+"/fhir/Group/g/$export", unknown); err == nil {
		t.Errorf("a response without keys: %d", got)
	}
	stop()
	goleak.VerifyNone(t, already)
}
