package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/token"
)

func TestAdminClient(t *testing.T) {
	for _, name := range []string{"SLUICE_REDIS_URL", "SLUICE_REDIS_URL_FILE"} {
		t.Setenv(name, "")
	}
	redis := miniredis.RunT(t)
	url, dir := "redis://"+redis.Addr(), t.TempDir()
	admin := func(want int, contains string, args ...string) (stdout string) {
		t.Helper()
		return do(t, want, contains, append([]string{"admin", "client", "--redis", url}, args...)...)
	}
	name := filepath.Join(dir, "app")
	admin(0, name+".jwks.json", "keygen", "--out", name)
	admin(1, "exists", "keygen", "--out", name) // a key is never replaced
	info, err := os.Stat(name + ".key.json")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v, %v", info.Mode(), err)
	}
	if _, err := readKey(name + ".key.json"); err != nil {
		t.Error(err)
	}

	admin(0, "registered client app", "register", "--id", "app", "--jwks-file", name+".jwks.json", "--scope", "system/Patient.rs")
	admin(1, "already registered", "register", "--id", "app", "--jwks-url", "https://app.example/jwks", "--scope", "system/*.rs")
	admin(0, "", "register", "--id", "url", "--jwks-url", "https://app.example/jwks", "--scope", "system/*.rs")
	secret := strings.TrimSpace(admin(0, "not stored", "register", "--id", "old", "--secret", "--scope", "system/*.read"))
	if len(secret) != 43 {
		t.Errorf("a secret of %d characters", len(secret))
	}
	shown := decode[clientOutput](t, admin(0, "", "show", "--id", "old", "--json"))
	if shown.Method != "client_secret_basic" || shown.Secret != "" || shown.Scope != "system/*.read" {
		t.Errorf("%+v", shown)
	}
	list := admin(0, "", "list") + admin(0, "", "list", "--json") + admin(0, "", "show", "--id", "old")
	for _, word := range []string{"app", "url", "old", "https://app.example/jwks", "private_key_jwt", "system/Patient.rs"} {
		if !strings.Contains(list, word) {
			t.Errorf("%s is not in\n%s", word, list)
		}
	}
	for _, word := range []string{secret, token.HashSecret(secret)} {
		if strings.Contains(list, word) {
			t.Errorf("a secret or its hash is in\n%s", list)
		}
	}

	changed := decode[clientOutput](t, admin(0, "", "rotate-secret", "--id", "old", "--json"))
	store, err := authstore.Open(url, nil, nil)
	must(t, err)
	defer store.Close()
	client, _, err := readClient(t.Context(), store, "old")
	if err != nil || client.HasSecret(secret) || !client.HasSecret(changed.Secret) || client.Scope != "system/*.read" {
		t.Errorf("after the secret was changed: %v, old one good %v, new one %v", err, client.HasSecret(secret), client.HasSecret(changed.Secret))
	}
	kept := decode[clientOutput](t, admin(0, "", "rotate-secret", "--id", "old", "--keep", "--json"))
	client, _, err = readClient(t.Context(), store, "old")
	if err != nil || !client.HasSecret(changed.Secret) || !client.HasSecret(kept.Secret) {
		t.Errorf("with --keep: %v, previous one %v, new one %v", err, client.HasSecret(changed.Secret), client.HasSecret(kept.Secret))
	}
	last := decode[clientOutput](t, admin(0, "", "rotate-secret", "--id", "old", "--keep", "--json"))
	client, _, err = readClient(t.Context(), store, "old")
	if err != nil || client.HasSecret(changed.Secret) || !client.HasSecret(kept.Secret) || !client.HasSecret(last.Secret) {
		t.Errorf("rotated twice: %v, the two latest secrets have to be valid", err)
	}
	admin(1, "has keys, not a secret", "rotate-secret", "--id", "app")

	next := filepath.Join(dir, "next")
	admin(0, "", "keygen", "--out", next)
	first := decode[clientOutput](t, admin(0, "", "show", "--id", "app", "--json")).KIDs
	admin(1, "only key", "update", "--id", "app", "--remove-key", first[0])
	for range 2 { // the second time nothing changes
		both := decode[clientOutput](t, admin(0, "", "update", "--id", "app", "--add-jwks-file", next+".jwks.json", "--json"))
		if len(both.KIDs) != 2 || both.KIDs[0] != first[0] || both.Scope != "system/Patient.rs" {
			t.Fatalf("with a second key: %+v", both)
		}
	}
	admin(1, "no key with the id", "update", "--id", "app", "--remove-key", "none")
	admin(0, "changed client app", "update", "--id", "app", "--remove-key", first[0], "--scope", "system/*.rs")
	after := decode[clientOutput](t, admin(0, "", "show", "--id", "app", "--json"))
	if len(after.KIDs) != 1 || after.KIDs[0] == first[0] || after.Scope != "system/*.rs" {
		t.Errorf("after the first key was removed: %+v", after)
	}
	admin(0, "", "update", "--id", "app", "--jwks-url", "https://app.example/jwks")
	admin(1, "at a URL", "update", "--id", "app", "--add-jwks-file", next+".jwks.json")
	replaced := decode[clientOutput](t, admin(0, "", "update", "--id", "app", "--jwks-file", name+".jwks.json", "--json"))
	if len(replaced.KIDs) != 1 || replaced.KIDs[0] != first[0] || replaced.JWKSURL != "" {
		t.Errorf("replaced: %+v", replaced)
	}
	admin(1, "rotate-secret", "update", "--id", "old", "--jwks-file", name+".jwks.json")
	admin(2, "register "+name+".jwks.json", "register", "--id", "x", "--jwks-file", name+".key.json", "--scope", "system/*.rs")
	admin(2, "private key", "update", "--id", "app", "--add-jwks-file", privateSet(t, dir, name))

	admin(0, "removed client app", "remove", "--id", "app", "--yes")
	for _, args := range [][]string{
		{"remove", "--id", "app", "--yes"}, {"show", "--id", "app"}, {"rotate-secret", "--id", "app"}, {"update", "--id", "app", "--scope", "system/*.rs"},
	} {
		admin(1, "client app is not registered", args...)
	}

	for _, test := range []struct {
		contains string
		args     []string
	}{
		{"scope", []string{"register", "--id", "x", "--jwks-url", "https://a.example", "--scope", "patient/*.rs"}},
		{"JWKS URL", []string{"register", "--id", "x", "--jwks-url", "http://a.example", "--scope", "system/*.rs"}},
		{"the id", []string{"register", "--id", "a b", "--jwks-url", "https://a.example", "--scope", "system/*.rs"}},
		{"private key", []string{"register", "--id", "x", "--jwks-file", privateSet(t, dir, name), "--scope", "system/*.rs"}},
		{"jwks-file", []string{"register", "--id", "x", "--scope", "system/*.rs"}},
		{"jwks-url", []string{"register", "--id", "x", "--jwks-url", "https://a.example", "--secret", "--scope", "system/*.rs"}},
		{"admin client --help", nil},
	} {
		admin(2, test.contains, test.args...)
	}
	// The authorities apply to every store.
	for _, args := range [][]string{{"client", "list", "--redis", url}, {"group", "list"}, {"grant", "list"}, {"migrate"}} {
		args = append([]string{"admin"}, args...)
		args = append(args, "--database", "postgres://127.0.0.1:1/d")
		do(t, 2, "--ca-file", append(args, "--ca-file", filepath.Join(dir, "none.pem"))...)
		t.Setenv("SLUICE_CA_FILE", filepath.Join(dir, "none.pem"))
		do(t, 2, "SLUICE_CA_FILE", args...)
		t.Setenv("SLUICE_CA_FILE", "")
	}
	redis.Close()
	admin(1, "unavailable", "list")
	url = ""
	admin(2, "SLUICE_REDIS_URL", "list")
}

// privateSet is a key set with a private key.
func privateSet(t *testing.T, dir, name string) string {
	t.Helper()
	key, err := os.ReadFile(name + ".key.json")
	must(t, err)
	path := filepath.Join(dir, "private.jwks.json")
	must(t, os.WriteFile(path, []byte(`{"keys":[`+string(key)+`]}`), 0o600))
	return path
}

func TestExportWithCredentialsRefuses(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "app")
	do(t, 0, "", "admin", "client", "keygen", "--out", name)
	open := filepath.Join(dir, "open.key.json")
	key, err := os.ReadFile(name + ".key.json")
	must(t, err)
	must(t, os.WriteFile(open, key, 0o644))
	must(t, os.Chmod(name+".jwks.json", 0o600))
	for _, test := range []struct {
		code     int
		contains string
		args     []string
	}{
		{2, "client-key", []string{"--base", "https://x.example", "--client-id", "app"}},
		{2, "--base", []string{"--client-id", "app", "--client-key", name + ".key.json"}},
		{1, "0600", []string{"--base", "https://x.example", "--client-id", "app", "--client-key", open}},
		{1, "JSON Web Key", []string{"--base", "https://x.example", "--client-id", "app", "--client-key", name + ".jwks.json"}},
		{2, "--token-url", []string{
			"--base", "https://x.example", "--client-id", "app", "--client-key", name + ".key.json", "--token-url", "http://x.example/token",
		}},
		{2, "none of the others", []string{"--base", "https://x.example", "--client-id", "app", "--client-key", "k", "--token", "t"}},
	} {
		do(t, test.code, test.contains,
			append([]string{"export", "--group", "g", "--out", filepath.Join(dir, "out")}, test.args...)...)
	}
}
