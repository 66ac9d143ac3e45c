package token_test

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/token"
)

func TestClientCheck(t *testing.T) {
	key, p256, weak := ecKey(elliptic.P384()), ecKey(elliptic.P256()), rsaKey(1024)
	set := []byte(jwks(jwkOf("k", key)))
	good := token.Client{ID: "app", JWKS: set, Scope: "system/*.rs"}
	change := func(f func(*token.Client)) token.Client {
		c := good
		f(&c)
		return c
	}
	with := func(keys ...members) token.Client {
		return change(func(c *token.Client) { c.JWKS = []byte(jwks(keys...)) })
	}
	hash := token.HashSecret("s")
	for name, test := range map[string]struct {
		client token.Client
		ok     bool
	}{
		"inline keys":          {good, true},
		"RSA":                  {with(jwkOf("r", rsaKey(2048))), true},
		"beside a useless one": {with(jwkOf("k", key), jwkOf("e", p256)), true},
		"by URL":               {token.Client{ID: "app", JWKSURL: "https://app.example/jwks", Scope: "system/*.rs"}, true},
		"loopback URL":         {token.Client{ID: "app", JWKSURL: "http://127.0.0.1:1/jwks", Scope: "system/*.rs"}, true},
		"secret":               {token.Client{ID: "app", SecretHash: hash, Scope: "system/Patient.read"}, true},
		"id of a URL":          {change(func(c *token.Client) { c.ID = "https://app.example/client" }), true},
		"id empty":             {change(func(c *token.Client) { c.ID = "" }), false},
		"id with a blank":      {change(func(c *token.Client) { c.ID = "a b" }), false},
		"id too long":          {change(func(c *token.Client) { c.ID = strings.Repeat("a", 129) }), false},
		"id not ASCII":         {change(func(c *token.Client) { c.ID = "äpp" }), false},
		"no method":            {token.Client{ID: "app", Scope: "system/*.rs"}, false},
		"two methods":          {change(func(c *token.Client) { c.SecretHash = hash }), false},
		"http":                 {token.Client{ID: "app", JWKSURL: "http://app.example/jwks", Scope: "system/*.rs"}, false},
		"URL with a user":      {token.Client{ID: "app", JWKSURL: "https://u:p@app.example/jwks", Scope: "system/*.rs"}, false},
		"secret in the clear":  {token.Client{ID: "app", SecretHash: "secret", Scope: "system/*.rs"}, false},
		"hash in capitals":     {token.Client{ID: "app", SecretHash: strings.ToUpper(hash), Scope: "system/*.rs"}, false},
		"no scope":             {change(func(c *token.Client) { c.Scope = "" }), false},
		"scope that writes":    {change(func(c *token.Client) { c.Scope = "system/Patient.cud" }), false},
		"scope of a user":      {change(func(c *token.Client) { c.Scope = "user/*.rs" }), false},
		"keys no set":          {change(func(c *token.Client) { c.JWKS = []byte("{}") }), false},
		"no keys":              {with(), false},
		"P-256 alone":          {with(jwkOf("e", p256)), false},
		"weak RSA alone":       {with(jwkOf("w", weak)), false},
		"no kid":               {with(jwkOf("", key)), false},
		"a kid twice":          {with(jwkOf("k", key), jwkOf("k", ecKey(elliptic.P384()))), false},
		"private":              {with(jwkOf("k", key).With("d", "AAAA")), false},
		"a shared key beside":  {with(jwkOf("k", key), members{"kty": "oct", "k": "c2VjcmV0"}), false},
		"for encryption":       {with(jwkOf("k", key).With("use", "enc")), false},
		"64 KiB of keys": {change(func(c *token.Client) {
			c.JWKS = append([]byte(strings.Repeat(" ", 64<<10)), set...)
		}), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.client.Check(); (err == nil) != test.ok {
				t.Errorf("%v, want accepted: %v", err, test.ok)
			}
			if !test.ok || test.client.ID == "" {
				return
			}
			record, err := test.client.Record()
			must(t, err)
			back, err := token.ParseClient(record)
			if err != nil || back.ID != test.client.ID || back.Scope != test.client.Scope {
				t.Errorf("read back %+v, %v", back, err)
			}
		})
	}
	for _, record := range []string{"", "{}", `{"id":"app","secret_hash":"` + hash + `","scope":"system/*.rs","only_from":"10.0.0.0/8"}`} {
		if _, err := token.ParseClient([]byte(record)); err == nil {
			t.Errorf("the record %q is accepted", record)
		}
	}
}

func TestSecrets(t *testing.T) {
	one, two := token.NewSecret(), token.NewSecret()
	if one == two || len(one) != 43 {
		t.Errorf("secrets %q and %q", one, two)
	}
	c := token.Client{SecretHash: token.HashSecret(one)}
	if !c.HasSecret(one) || c.HasSecret(two) || c.HasSecret("") || (token.Client{}).HasSecret("") {
		t.Error("a wrong secret is accepted, or the right one is refused")
	}
	c.MoreSecretHashes = []string{token.HashSecret(two)}
	if !c.HasSecret(one) || !c.HasSecret(two) || c.HasSecret("") {
		t.Error("one of two secrets is refused")
	}
	c.ID, c.Scope = "app", "system/*.rs"
	record, err := c.Record()
	must(t, err)
	read, err := token.ParseClient(record)
	if err != nil || !read.HasSecret(one) || !read.HasSecret(two) {
		t.Errorf("the record of two secrets: %v", err)
	}
}

// FuzzNarrowScopes: narrowing granted scopes again does not change them, and they allow no unregistered type.
func FuzzNarrowScopes(f *testing.F) {
	f.Add("system/*.cruds system/Patient.read", "system/Patient.rs")
	f.Add("system/Patient.rs?x", "system/*.*")
	f.Fuzz(func(t *testing.T, list, registered string) {
		granted, err := token.NarrowScopes(list, registered)
		if err != nil {
			if granted != "" {
				t.Errorf("granted %q with error %v", granted, err)
			}
			return
		}
		again, err := token.NarrowScopes(granted, registered)
		if err != nil || again != granted {
			t.Errorf("granted %q, narrowed again %q, %v", granted, again, err)
		}
		scopes, err := token.ParseScopes(granted)
		must(t, err)
		allowed, err := token.ParseScopes(registered)
		must(t, err)
		for _, typ := range []string{"Patient", "Observation", "Group", "Binary"} {
			if scopes.MayRead(typ) && !allowed.MayRead(typ) {
				t.Errorf("%q of %q reads %s", granted, registered, typ)
			}
		}
	})
}

// Search is granted only where it is registered.
func TestNarrowScopesToRegisteredActions(t *testing.T) {
	for _, row := range []struct{ asked, registered, granted string }{
		{"system/Patient.rs", "system/Patient.r", "system/Patient.r"},
		{"system/*.cruds", "system/Patient.r", "system/Patient.r"},
		{"system/Patient.rs", "system/*.read", "system/Patient.rs"},
		{"system/Patient.r", "system/*.rs", "system/Patient.r"},
		{"system/Patient.read", "system/Patient.r", "system/Patient.read"},
	} {
		if got, err := token.NarrowScopes(row.asked, row.registered); err != nil || got != row.granted {
			t.Errorf("%s of %s: %q, %v, want %q", row.asked, row.registered, got, err, row.granted)
		}
	}
}

func TestNarrowScopesNamesTheProblem(t *testing.T) {
	_, err := token.NarrowScopes("system/Patient.rs secret/x", "system/*.rs")
	if !errors.Is(err, token.ErrScope) || !strings.Contains(err.Error(), "number 2") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	if _, err := token.NarrowScopes("system/Patient.rs", "user/*.rs"); err == nil {
		t.Error("an invalid registration is accepted")
	}
}

// B-01 to B-07: the document has nothing for users or single sign-on.
func TestSMARTConfiguration(t *testing.T) {
	want := `{"token_endpoint":"https://auth.example/token","grant_types_supported":["client_credentials"],` +
		`"token_endpoint_auth_methods_supported":["private_key_jwt"%s],` +
		`"token_endpoint_auth_signing_alg_values_supported":["RS384","ES384"],` +
		`"scopes_supported":["system/*.rs","system/*.read"],"code_challenge_methods_supported":["S256"],` +
		`"capabilities":["client-confidential-asymmetric","permission-v1","permission-v2"%s]}`
	for secrets, more := range map[bool][]any{
		false: {"", ""}, true: {`,"client_secret_basic"`, `,"client-confidential-symmetric"`},
	} {
		text, err := json.Marshal(token.SMARTConfiguration("https://auth.example/token", secrets))
		if err != nil || string(text) != fmt.Sprintf(want, more...) {
			t.Errorf("with secrets %t: %s, %v", secrets, text, err)
		}
	}
}
