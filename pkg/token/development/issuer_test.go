package development_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

const audience = "https://sluice.example/fhir"

func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *development.Issuer {
	t.Helper()
	issuer, err := development.Open(dir)
	must(t, err)
	return issuer
}

func verify(t *testing.T, issuer *development.Issuer, raw string, now time.Time) (token.Principal, error) {
	t.Helper()
	v, err := token.NewVerifier(token.Config{
		Issuers: []token.Issuer{{
			Name: development.IssuerName, Audiences: []string{audience}, JWKSFile: issuer.JWKSFile(),
		}},
		Now: func() time.Time { return now },
	})
	must(t, err)
	defer v.Close()
	return v.Verify(t.Context(), raw)
}

func TestSignedTokensVerify(t *testing.T) {
	issuer := open(t, filepath.Join(t.TempDir(), "deep", "er"))
	raw, err := issuer.Sign("user-1", "system/Patient.rs", audience, time.Hour, start())
	must(t, err)
	p, err := verify(t, issuer, raw, start())
	must(t, err)
	if want := (export.Owner{Issuer: development.IssuerName, Subject: "user-1"}); p.Owner != want {
		t.Errorf("owner %+v, want %+v", p.Owner, want)
	}
	if !p.Scopes.MayRead("Patient") || p.Scopes.MayRead("Observation") {
		t.Error("the scopes are not system/Patient.rs")
	}
	if want := start().Truncate(time.Second).Add(time.Hour); !p.Expires.Equal(want) {
		t.Errorf("expires %s, want %s", p.Expires, want)
	}
	if _, err := verify(t, issuer, raw, start().Add(time.Hour+time.Minute)); !errors.Is(err, token.ErrInvalid) {
		t.Errorf("expired: %v, want ErrInvalid", err)
	}
	if _, err := verify(t, open(t, t.TempDir()), raw, start()); !errors.Is(err, token.ErrInvalid) {
		t.Errorf("with the key of another folder: %v, want ErrInvalid", err)
	}
}

func TestSignRefuses(t *testing.T) {
	issuer := open(t, t.TempDir())
	for name, test := range map[string]struct {
		subject, scope, audience string
		ttl                      time.Duration
	}{
		"no subject":     {"", "system/*.rs", audience, time.Hour},
		"no scope":       {"u", "", audience, time.Hour},
		"no audience":    {"u", "system/*.rs", "", time.Hour},
		"granular scope": {"u", "system/Observation.rs?a=b", audience, time.Hour},
		"no time":        {"u", "system/*.rs", audience, 0},
		"negative time":  {"u", "system/*.rs", audience, -time.Hour},
		"below a second": {"u", "system/*.rs", audience, time.Second - 1},
		"over a day":     {"u", "system/*.rs", audience, 24*time.Hour + 1},
	} {
		if _, err := issuer.Sign(test.subject, test.scope, test.audience, test.ttl, start()); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := issuer.Sign("u", "system/*.rs", audience, 24*time.Hour, start()); err != nil {
		t.Errorf("a whole day: %v", err)
	}
}

func TestOpenKeepsTheKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "token")
	first := open(t, dir)
	for path, want := range map[string]os.FileMode{
		dir: 0o700, filepath.Join(dir, "key.json"): 0o600, first.JWKSFile(): 0o600,
	} {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %#o, want %#o", filepath.Base(path), info.Mode().Perm(), want)
		}
	}
	set, err := os.ReadFile(first.JWKSFile())
	must(t, err)
	if strings.Contains(string(set), `"d"`) {
		t.Error("the public key set contains the private key")
	}
	before, err := os.Stat(first.JWKSFile())
	must(t, err)
	raw, err := first.Sign("u", "system/*.rs", audience, time.Hour, start())
	must(t, err)
	again := open(t, dir)
	if _, err := verify(t, again, raw, start()); err != nil {
		t.Errorf("after opening again: %v", err)
	}
	after, err := os.Stat(first.JWKSFile())
	must(t, err)
	if !os.SameFile(before, after) {
		t.Error("an unchanged key set was replaced")
	}
	must(t, os.Remove(first.JWKSFile()))
	if _, err := verify(t, open(t, dir), raw, start()); err != nil {
		t.Errorf("after the key set was lost: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, error %v", left, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"key readable by others": func(dir string) error { return os.Chmod(filepath.Join(dir, "key.json"), 0o640) },
		"folder writable by all": func(dir string) error { return os.Chmod(dir, 0o777) },
		"half a key":             func(dir string) error { return os.Truncate(filepath.Join(dir, "key.json"), 20) },
		"empty key":              func(dir string) error { return os.Truncate(filepath.Join(dir, "key.json"), 0) },
		"public key": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "key.json"),
				[]byte(`{"kty":"EC","crv":"P-256","kid":"1","x":"AA","y":"AA"}`), 0o600)
		},
		"symmetric key": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "key.json"), []byte(`{"kty":"oct","kid":"1","k":"AAAA"}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "token")
			open(t, dir)
			must(t, spoil(dir))
			spoiled, err := os.ReadFile(filepath.Join(dir, "key.json"))
			must(t, err)
			if _, err := development.Open(dir); err == nil {
				t.Fatal("opened")
			}
			kept, err := os.ReadFile(filepath.Join(dir, "key.json"))
			if err != nil || string(kept) != string(spoiled) {
				t.Errorf("the key file was replaced, error %v", err)
			}
		})
	}
}

// Concurrent calls of Open on one folder all load the same key.
func TestOpenRaces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "token")
	tokens := make([]string, 16)
	var all sync.WaitGroup
	for n := range tokens {
		all.Go(func() {
			issuer, err := development.Open(dir)
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			if tokens[n], err = issuer.Sign("u", "system/*.rs", audience, time.Hour, start()); err != nil {
				t.Errorf("sign: %v", err)
			}
		})
	}
	all.Wait()
	issuer := open(t, dir)
	for n, raw := range tokens {
		if _, err := verify(t, issuer, raw, start()); err != nil {
			t.Errorf("token %d: %v", n, err)
		}
	}
}
