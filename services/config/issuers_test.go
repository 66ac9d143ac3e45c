package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/config"
)

func TestLoadIssuers(t *testing.T) {
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "issuers.yaml")
	const content = `issuers:
- name: https://a.example
  audiences: [https://bulk.example/fhir]
  discovery: true
  algorithms: [RS256]
  subject_claim: oid
  scope_claim: roles
  required_claims: {idtyp: app}
- name: https://b.example
  audiences: [b]
  jwks_url: https://b.example/keys
  introspection:
    url: https://b.example/introspect
    client_id: sluice
    client_secret_file: SECRET
    audience_required: false
    cache_for: 20s
`
	err := errors.Join(os.WriteFile(secret, []byte("hunter2\n"), 0o600),
		os.WriteFile(file, []byte(strings.Replace(content, "SECRET", secret, 1)), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.LoadIssuers(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []token.Issuer{
		{
			Name: "https://a.example", Audiences: []string{"https://bulk.example/fhir"}, Discovery: true,
			Algorithms: []string{"RS256"}, SubjectClaim: "oid", ScopeClaim: "roles",
			RequiredClaims: map[string]string{"idtyp": "app"},
		},
		{
			Name: "https://b.example", Audiences: []string{"b"}, JWKSURL: "https://b.example/keys",
			Introspection: &token.Introspection{
				URL: "https://b.example/introspect", ClientID: "sluice", ClientSecret: "hunter2", AudienceOptional: true,
				CacheFor: 20 * time.Second,
			},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The error lists every problem and no secret.
func TestLoadIssuersRefuses(t *testing.T) {
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "issuers.yaml")
	if err := os.WriteFile(secret, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	const entry = "issuers:\n- {name: 'https://a.example', audiences: [a], introspection: "
	for name, test := range map[string]struct {
		content string
		words   []string
	}{
		"an unknown key": {"issuers:\n- {name: a, audience: [a]}\n", []string{"audience"}},
		"no issuers":     {"issuers: []\n", []string{"no issuers"}},
		"several problems": {
			"issuers:\n- {name: a, audiences: []}\n- {name: b, audiences: [b], jwks_url: 'http://b.example'}\n",
			[]string{`"a"`, "no audience", "JWKS URL, a JWKS file", `"b"`, "https"},
		},
		"an empty introspection": {entry + "{}}\n", []string{"client_secret_file", "introspection URL", "client id"}},
		"no secret file": {
			entry + "{url: 'https://a.example/i', client_id: c, client_secret_file: " + dir + "/none}}\n", []string{"client_secret_file"},
		},
		"a secret in the file itself": {
			entry + "{url: 'https://a.example/i', client_id: c, client_secret: hunter2}}\n", []string{"client_secret"},
		},
		"kept for too long": {
			entry + "{url: 'https://a.example/i', client_id: c, cache_for: 1h, client_secret_file: " + secret + "}}\n",
			[]string{"1h"},
		},
	} {
		if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.LoadIssuers(file)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, word := range test.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want an error about %s", name, err, word)
			}
		}
		if name != "a secret in the file itself" && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
	if _, err := config.LoadIssuers(filepath.Join(dir, "absent")); err == nil {
		t.Error("a file that is not there: accepted")
	}
}
