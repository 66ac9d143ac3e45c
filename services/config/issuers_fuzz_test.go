package config_test

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/config"
)

// A file on which the library panics is refused as unreadable.
func TestIssuersThatTheLibraryCannotStand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "issuers.yaml")
	if err := os.WriteFile(path, []byte("issuers:\n  - name: a\n    audiences: !x\n    b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if issuers, err := config.LoadIssuers(path); err == nil || !strings.Contains(err.Error(), "read issuers") {
		t.Errorf("%+v, %v", issuers, err)
	}
}

// FuzzIssuers: a file of issuers is refused, or each issuer has a unique name, an audience, exactly one source of keys
// over https or from a file, and known algorithms.
func FuzzIssuers(f *testing.F) {
	const good = `issuers:
  - name: https://login.example.org
    audiences: [https://bulk.example.org/fhir]
    jwks_url: https://login.example.org/certs
    algorithms: [RS256, ES384]
`
	for _, seed := range []string{
		"", good, strings.Replace(good, "https://login.example.org/certs", "http://login.example.org/certs", 1),
		strings.Replace(good, "RS256", "HS256", 1), strings.Replace(good, "RS256", "none", 1),
		strings.Replace(good, "audiences:", "audience:", 1), good + strings.TrimPrefix(good, "issuers:\n"),
		strings.Replace(good, "jwks_url: https://login.example.org/certs", "jwks_file: /etc/keys.json", 1),
		strings.Replace(good, "name:", "name: x\n    name:", 1), "issuers: []", "issuers: null", "issuers: [null]", "- a", "{",
		"issuers: &a [*a]", "issuers:\n  - <<: {name: a}\n", "issuers: 1", "\t", good + "---\n" + good, "%YAML 1.2\n---\n" + good,
		strings.Replace(good, "[https://bulk.example.org/fhir]", `[""]`, 1),
	} {
		f.Add([]byte(seed))
	}
	path := filepath.Join(f.TempDir(), "issuers.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		issuers, err := config.LoadIssuers(path)
		if err != nil {
			return
		}
		verifier, err := token.NewVerifier(token.Config{Issuers: issuers})
		if err != nil {
			return
		}
		verifier.Close()
		if len(issuers) == 0 {
			t.Fatal("a file without issuers is accepted")
		}
		seen := map[string]bool{}
		for _, issuer := range issuers {
			if issuer.Name == "" || seen[issuer.Name] || len(issuer.Audiences) == 0 || slices.Contains(issuer.Audiences, "") {
				t.Errorf("%+v is accepted", issuer)
			}
			seen[issuer.Name] = true
			for _, algorithm := range issuer.Algorithms {
				if !slices.Contains([]string{"RS256", "RS384", "ES256", "ES384", "PS256"}, algorithm) {
					t.Errorf("the algorithm %q is accepted", algorithm)
				}
			}
			if (issuer.JWKSURL == "") == (issuer.JWKSFile == "") {
				t.Errorf("%+v is accepted", issuer)
			}
			if issuer.JWKSURL == "" {
				continue
			}
			where, err := url.Parse(issuer.JWKSURL)
			if err != nil || where.Host == "" || where.Scheme != "https" && !slices.Contains([]string{"localhost", "::1"},
				where.Hostname()) && !strings.HasPrefix(where.Hostname(), "127.") {
				t.Errorf("keys from %q are accepted", issuer.JWKSURL)
			}
		}
	})
}
