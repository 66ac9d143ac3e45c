package clients_test

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/auth/clients"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path+".new", []byte(content), 0o600))
	must(t, os.Rename(path+".new", path))
}

func jwks(t *testing.T) string {
	t.Helper()
	_, public, err := token.NewKey(elliptic.P384())
	must(t, err)
	return strings.ReplaceAll(string(public), "\n", " ")
}

func TestFile(t *testing.T) {
	set, hash := jwks(t), token.HashSecret("s")
	path := filepath.Join(t.TempDir(), "clients.yaml")
	put(t, path, fmt.Sprintf(`
clients:
  - {id: url, jwks_url: "https://app.example/jwks", scope: "system/*.rs"}
  - id: inline
    jwks: %s
    scope: system/Patient.rs system/Group.rs
  - {id: secret, secret_sha256: %s, scope: system/*.read}
  - {id: rotating, secret_sha256: [%s, %s], scope: system/*.read}
`, set, hash, hash, token.HashSecret("next")))
	file, err := clients.OpenFile(path)
	must(t, err)
	for id, holds := range map[string]func(token.Client) bool{
		"url":    func(c token.Client) bool { return c.JWKSURL == "https://app.example/jwks" && c.Scope == "system/*.rs" },
		"inline": func(c token.Client) bool { return len(c.JWKS) > 0 && c.Scope == "system/Patient.rs system/Group.rs" },
		"secret": func(c token.Client) bool { return c.HasSecret("s") },
		"rotating": func(c token.Client) bool {
			return c.HasSecret("s") && c.HasSecret("next") && !c.HasSecret("snext")
		},
	} {
		client, err := file.Client(id)
		must(t, err)
		if client.ID != id || !holds(client) || client.Check() != nil {
			t.Errorf("%s: %+v", id, client)
		}
	}
	if _, err := file.Client("other"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("unknown client: %v", err)
	}
	if len(file.IDs()) != 4 {
		t.Errorf("ids %v", file.IDs())
	}

	put(t, path, "clients: []") // takes effect at once
	if _, err := file.Client("url"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("a client that was removed: %v", err)
	}
	for _, broken := range []string{"clients: [", ""} {
		put(t, path, broken)
		if _, err := file.Client("url"); !errors.Is(err, export.ErrUnavailable) || file.Check() == nil {
			t.Errorf("file %q: %v", broken, err)
		}
	}
	must(t, os.Remove(path))
	if _, err := file.Client("url"); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("missing file: %v", err)
	}
	put(t, path, "clients: []")
	must(t, file.Check())
}

func TestOpenFileRefuses(t *testing.T) {
	set, hash := jwks(t), token.HashSecret("confidential")
	path := filepath.Join(t.TempDir(), "clients.yaml")
	for name, content := range map[string]string{
		"empty":             "",
		"no list":           "clients:",
		"a list alone":      "- {id: a}",
		"unknown key":       "clients: [{id: a, jwks_url: 'https://a.example', scope: 'system/*.rs', only_from: x}]",
		"unknown section":   "clients: []\nother: 1",
		"a key twice":       "clients: [{id: a, id: b, jwks_url: 'https://a.example', scope: 'system/*.rs'}]",
		"an id twice":       "clients: [{id: a, jwks_url: 'https://a.example', scope: 'system/*.rs'}, {id: a, jwks_url: 'https://b.example', scope: 'system/*.rs'}]",
		"two methods":       "clients: [{id: a, jwks_url: 'https://a.example', secret_sha256: " + hash + ", scope: 'system/*.rs'}]",
		"no method":         "clients: [{id: a, scope: 'system/*.rs'}]",
		"bad scope":         "clients: [{id: a, jwks: " + set + ", scope: 'patient/*.rs'}]",
		"jwks a string":     "clients: [{id: a, jwks: 'x', scope: 'system/*.rs'}]",
		"secret in clear":   "clients: [{id: a, secret_sha256: confidential, scope: 'system/*.rs'}]",
		"six secrets":       "clients: [{id: a, secret_sha256: [" + strings.Repeat(hash+", ", 6) + "], scope: 'system/*.rs'}]",
		"no secret":         "clients: [{id: a, secret_sha256: [], scope: 'system/*.rs'}]",
		"a second in clear": "clients: [{id: a, secret_sha256: [" + hash + ", confidential], scope: 'system/*.rs'}]",
		"a tag alone":       "clients: !x foo", // makes the library panic
		"not even YAML":     "clients: [{id: confidential",
		"http":              "clients: [{id: a, jwks_url: 'http://confidential.example', scope: 'system/*.rs'}]",
		"larger than 4 MB":  "clients: []\n" + strings.Repeat("#\n", 2<<20),
	} {
		put(t, path, content)
		_, err := clients.OpenFile(path)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "confidential") {
			t.Errorf("%s: the error quotes the file: %v", name, err)
		}
	}
}

// The file takes precedence over Redis. While it cannot be read, every lookup fails.
func TestRegistry(t *testing.T) {
	store, err := authstore.Open("redis://"+miniredis.RunT(t).Addr(), nil, nil)
	must(t, err)
	defer store.Close()
	add := func(id string, client token.Client) {
		t.Helper()
		record, err := client.Record()
		must(t, err)
		must(t, store.AddClient(t.Context(), id, record))
	}
	const inFile, inRedis = "https://file.example/jwks", "https://redis.example/jwks"
	add("both", token.Client{ID: "both", JWKSURL: inRedis, Scope: "system/*.rs"})
	add("redis", token.Client{ID: "redis", JWKSURL: inRedis, Scope: "system/*.rs"})
	add("renamed", token.Client{ID: "redis", JWKSURL: inRedis, Scope: "system/*.rs"})
	add("broken", token.Client{})
	path := filepath.Join(t.TempDir(), "clients.yaml")
	put(t, path, "clients: [{id: both, jwks_url: '"+inFile+"', scope: system/Patient.rs}]")
	file, err := clients.OpenFile(path)
	must(t, err)
	register := clients.New(file, store)
	for id, want := range map[string]string{"both": inFile, "redis": inRedis} {
		client, err := register.Client(t.Context(), id)
		if err != nil || client.JWKSURL != want {
			t.Errorf("%s: %+v, %v", id, client, err)
		}
	}
	for _, id := range []string{"renamed", "broken"} {
		if client, err := register.Client(t.Context(), id); err == nil || errors.Is(err, export.ErrNotFound) {
			t.Errorf("%s: %+v, %v", id, client, err)
		}
	}
	put(t, path, "x")
	if _, err := register.Client(t.Context(), "redis"); !errors.Is(err, export.ErrUnavailable) || register.Check(t.Context()) == nil {
		t.Errorf("with a malformed file: %v", err)
	}
	alone := clients.New(nil, store)
	if client, err := alone.Client(t.Context(), "both"); err != nil || client.JWKSURL != inRedis || alone.Check(t.Context()) != nil {
		t.Errorf("without a file: %+v, %v", client, err)
	}
	if _, err := alone.Client(t.Context(), "unknown"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("unknown client: %v", err)
	}
}
