package token_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
)

func TestVerifyAcceptsEachAlgorithm(t *testing.T) {
	rsa2048, p256, p384 := rsaKey(2048), ecKey(elliptic.P256()), ecKey(elliptic.P384())
	server := serveKeys(t, jwks(jwkOf("r", rsa2048), jwkOf("e", p256).With("use", "sig").With("alg", "ES256"),
		jwkOf("f", p384).With("key_ops", []string{"verify"})))
	v := verifier(t, newClock(), issuerAt(server.URL))
	for _, test := range []struct {
		alg, kid string
		key      any
	}{
		{"RS256", "r", rsa2048}, {"RS384", "r", rsa2048}, {"PS256", "r", rsa2048}, {"ES256", "e", p256},
		{"ES384", "f", p384},
	} {
		t.Run(test.alg, func(t *testing.T) {
			p, err := v.Verify(t.Context(), sign(test.alg, test.kid, test.key, goodClaims()))
			must(t, err)
			if want := (export.Owner{Issuer: issuerName, Subject: subject}); p.Owner != want {
				t.Errorf("owner %+v, want %+v", p.Owner, want)
			}
			if want := start().Add(5 * time.Minute); !p.Expires.Equal(want) {
				t.Errorf("expires %s, want %s", p.Expires, want)
			}
			if !p.Scopes.MayRead("Observation") {
				t.Error("system/*.rs does not read Observation")
			}
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	key := ecKey(elliptic.P256())
	server := serveKeys(t, jwks(jwkOf("k", key)))
	v := verifier(t, newClock(), issuerAt(server.URL))
	unix := func(d time.Duration) int64 { return start().Add(d).Unix() }
	header := `{"alg":"ES256","kid":"k","typ":"JWT"}`
	for name, test := range map[string]struct {
		header string
		claims members
		reads  string // a type that the token may read; "" for none
	}{
		"expired by 59 s":           {header, goodClaims().With("exp", unix(-59*time.Second)), "Patient"},
		"nbf 60 s ahead":            {header, goodClaims().With("nbf", unix(time.Minute)), "Patient"},
		"iat 60 s ahead":            {header, goodClaims().With("iat", unix(time.Minute)), "Patient"},
		"no nbf and no iat":         {header, goodClaims().Without("nbf").Without("iat"), "Patient"},
		"exp with a fraction":       {header, goodClaims().With("exp", json.Number("1772366640.25")), "Patient"},
		"exp with an exponent":      {header, goodClaims().With("exp", json.Number("1.77236664E9")), "Patient"},
		"exp with both":             {header, goodClaims().With("exp", json.Number("17723666405e-1")), "Patient"},
		"nbf with a fraction":       {header, goodClaims().With("nbf", json.Number("1772366459.5")), "Patient"},
		"iat with a fraction":       {header, goodClaims().With("iat", json.Number("1772366400.000001")), "Patient"},
		"aud array with ours":       {header, goodClaims().With("aud", []string{"urn:x", audience}), "Patient"},
		"scope array":               {header, goodClaims().With("scope", []any{"openid", "system/Patient.r"}), "Patient"},
		"no scope":                  {header, goodClaims().Without("scope"), ""},
		"empty scope":               {header, goodClaims().With("scope", ""), ""},
		"typ at+jwt":                {`{"alg":"ES256","kid":"k","typ":"at+jwt"}`, goodClaims(), "Patient"},
		"typ application/at+jwt":    {`{"alg":"ES256","kid":"k","typ":"application/AT+JWT"}`, goodClaims(), "Patient"},
		"no typ":                    {`{"alg":"ES256","kid":"k"}`, goodClaims(), "Patient"},
		"no kid, one fitting key":   {`{"alg":"ES256"}`, goodClaims(), "Patient"},
		"claims that are not used":  {header, goodClaims().With("nonce", []any{1, nil}), "Patient"},
		"subject in another script": {header, goodClaims().With("sub", "клиент"), "Patient"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := v.Verify(t.Context(), forge("ES256", key, test.header, test.claims.String()))
			must(t, err)
			for _, typ := range []string{"Patient", "Observation"} {
				want := test.reads == typ || test.reads != "" && test.claims["scope"] == "system/*.rs"
				if p.Scopes.MayRead(typ) != want {
					t.Errorf("may read %s: %v, want %v", typ, !want, want)
				}
			}
		})
	}
}

// Z-02, Z-03, B-22, B-23, B-24 at the resource server.
func TestVerifyRefusesHostileTokens(t *testing.T) {
	rsaA, rsaB := rsaKey(2048), rsaKey(2048)
	ecA, ecA384 := ecKey(elliptic.P256()), ecKey(elliptic.P384())
	twin1, twin2 := ecKey(elliptic.P256()), ecKey(elliptic.P256())
	encryption, other, weak, leaked := ecKey(elliptic.P256()), ecKey(elliptic.P256()), rsaKey(1024),
		ecKey(elliptic.P256())
	p521 := ecKey(elliptic.P521())
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	secret := []byte("a symmetric secret in the key set")
	leakedD, err := leaked.Bytes()
	must(t, err)
	server := serveKeys(t, jwks(
		jwkOf("r", rsaA), jwkOf("e", ecA), jwkOf("f", ecA384), jwkOf("p521", p521),
		jwkOf("twin", twin1), jwkOf("twin", twin2),
		jwkOf("enc", encryption).With("use", "enc"),
		jwkOf("ops", encryption).With("key_ops", []string{"encrypt"}),
		jwkOf("only384", rsaA).With("alg", "RS384"),
		jwkOf("weak", weak),
		jwkOf("leaked", leaked).With("d", b64.EncodeToString(leakedD)),
		jwkOf("ed", edPrivate),
		members{"kty": "oct", "kid": "oct", "k": b64.EncodeToString(secret)},
		members{"kty": "nonsense", "kid": "nonsense"}, members{"kty": "EC", "kid": "e2", "crv": "P-256"},
		jwkOf("off", other).With("x", b64.EncodeToString(make([]byte, 32))),
	))
	serverB := serveKeys(t, jwks(jwkOf("r", rsaB), jwkOf("b", rsaB)))
	const issuerB = "https://b.example"
	trap := serveKeys(t, jwks(jwkOf("mine", other)))
	v := verifier(t, newClock(), issuerAt(server.URL),
		token.Issuer{
			Name: issuerB, Audiences: []string{audience}, JWKSURL: serverB.URL, Algorithms: []string{"RS256"},
		})
	good := goodClaims().String()
	genuine := func(alg, kid string, key crypto.Signer) tokentest.Genuine {
		return tokentest.Genuine{Alg: alg, KID: kid, Key: key, Claims: goodClaims(), Now: start(), Trap: trap.URL}
	}
	valid := genuine("ES256", "e", ecA).Token()
	parts := strings.Split(valid, ".")
	scoped := func(scope any) string { return sign("ES256", "e", ecA, goodClaims().With("scope", scope)) }
	seg := func(s string) string { return b64.EncodeToString([]byte(s)) }
	edInput := seg(`{"alg":"EdDSA","kid":"ed"}`) + "." + seg(good)
	// The last character of a 64-byte signature has four unused bits.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	tail := strings.IndexByte(alphabet, valid[len(valid)-1])
	malleable := valid[:len(valid)-1] + alphabet[tail|1:tail|1+1]
	signed := func(alg, kid string, key any) string { return sign(alg, kid, key, goodClaims()) }
	forB := func(alg, kid string, key any) string { return sign(alg, kid, key, goodClaims().With("iss", issuerB)) }

	hostile := map[string]string{
		"empty":                        "",
		"a space before":               " " + valid,
		"a newline after":              valid + "\n",
		"a newline inside":             parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"not UTF-8":                    valid + "\xff",
		"HS256 with an oct key":        signed("HS256", "oct", secret),
		"RS512":                        signed("RS512", "r", rsaA),
		"PS384":                        signed("PS384", "r", rsaA),
		"ES512":                        signed("ES512", "p521", p521),
		"EdDSA":                        edInput + "." + b64.EncodeToString(ed25519.Sign(edPrivate, []byte(edInput))),
		"EdDSA key under ES256":        signed("ES256", "ed", other),
		"another OKP key in the clear": edInput + "." + b64.EncodeToString(edPublic),
		"RS256 under an EC kid":        signed("RS256", "e", rsaA),
		"ES256 under an RSA kid":       signed("ES256", "r", ecA),
		"ES256 with a P-384 key":       signed("ES256", "f", ecA384),
		"ES384 with a P-256 key":       signed("ES384", "e", ecA),
		"key has another alg":          signed("RS256", "only384", rsaA),
		"encryption key":               signed("ES256", "enc", encryption),
		"key_ops without verify":       signed("ES256", "ops", encryption),
		"weak RSA key":                 signed("RS256", "weak", weak),
		"published private key":        signed("ES256", "leaked", leaked),
		"point off the curve":          signed("ES256", "off", other),
		"two keys with the kid":        signed("ES256", "twin", twin1),
		"no kid, several keys":         forge("ES256", ecA, `{"alg":"ES256"}`, good),
		"signature re-encoded":         malleable,
		"B's key for A, B's kid":       signed("RS256", "b", rsaB),
		"B's key for A, A's kid":       signed("RS256", "r", rsaB),
		"A's key for B":                forB("RS256", "r", rsaA),
		"alg that B does not use":      forB("RS384", "b", rsaB),
		"client assertion by its typ":  forge("ES256", ecA, `{"alg":"ES256","kid":"e","typ":"client-authentication+jwt"}`, good),
		"bound to a key":               sign("ES256", "e", ecA, goodClaims().With("cnf", members{"x5t#S256": "x"})),
		"scope a number":               scoped(1),
		"scope an object":              scoped(members{}),
		"scope an array with null":     scoped([]any{"system/*.rs", nil}),
		"granular scope":               scoped("system/Patient.rs system/Observation.rs?a=b"),
		"granular scope in an array":   scoped([]string{"system/*.rs", "user/Group.rs?x=y"}),
	}
	for _, genuine := range []tokentest.Genuine{genuine("ES256", "e", ecA), genuine("RS384", "r", rsaA)} {
		if _, err := v.Verify(t.Context(), genuine.Token()); err != nil {
			t.Fatalf("the valid token: %v", err)
		}
		for name, raw := range genuine.Hostile() {
			hostile[genuine.Alg+": "+name] = raw
		}
	}
	for name, raw := range hostile {
		t.Run(name, func(t *testing.T) {
			p, err := v.Verify(t.Context(), raw)
			if !errors.Is(err, token.ErrInvalid) {
				t.Fatalf("got %+v and error %v, want ErrInvalid", p, err)
			}
			if errors.Is(err, export.ErrUnavailable) {
				t.Errorf("%v is both invalid and unavailable", err)
			}
			if token.RuleOf(err) == "" {
				t.Errorf("%v has no rule", err)
			}
			if p.Owner != (export.Owner{}) || p.Scopes.MayRead("Patient") {
				t.Errorf("a principal was returned with the error: %+v", p)
			}
			for _, part := range append(strings.Split(raw, "."), subject) {
				if len(part) > 6 && strings.Contains(err.Error(), part) {
					t.Errorf("the error contains a part of the token: %v", err)
				}
			}
		})
	}
	asked(t, trap, 0) // no URL from a token was fetched
	asked(t, server, 1)
}

func TestVerifyNamesTheGranularScope(t *testing.T) {
	key := ecKey(elliptic.P256())
	v := verifier(t, newClock(), issuerAt(serveKeys(t, jwks(jwkOf("k", key))).URL))
	_, err := v.Verify(t.Context(), sign("ES256", "k", key, goodClaims().With("scope", "system/Observation.rs?a=b")))
	if !errors.Is(err, token.ErrInvalid) || !errors.Is(err, token.ErrGranularScope) {
		t.Errorf("got %v, want ErrInvalid and ErrGranularScope", err)
	}
}

func TestARefusalNamesItsRule(t *testing.T) {
	key, stranger := ecKey(elliptic.P256()), ecKey(elliptic.P256())
	v := verifier(t, newClock(), issuerAt(serveKeys(t, jwks(jwkOf("k", key))).URL))
	good, past, ahead := goodClaims(), start().Add(-time.Hour).Unix(), start().Add(time.Hour).Unix()
	by := func(claims members) string { return sign("ES256", "k", key, claims) }
	for rule, raw := range map[token.Rule]string{
		token.RuleMalformed:   "garbage",
		token.RuleKind:        forge("ES256", key, `{"alg":"ES256","kid":"k","typ":"logout+jwt"}`, good.String()),
		token.RuleExpired:     by(good.With("exp", past)),
		token.RuleNotYetValid: by(good.With("nbf", ahead)),
		token.RuleIssuer:      by(good.With("iss", "https://other.example")),
		token.RuleAudience:    by(good.With("aud", audience+"/")),
		token.RuleAlgorithm:   forge("HS256", []byte("x"), `{"alg":"HS256","kid":"k"}`, good.String()),
		token.RuleKey:         sign("ES256", "unknown", key, good),
		token.RuleSignature:   sign("ES256", "k", stranger, good),
		token.RuleScope:       by(good.With("scope", "system/Observation.rs?a=b")),
	} {
		_, err := v.Verify(t.Context(), raw)
		if got := token.RuleOf(err); got != rule {
			t.Errorf("rule %q of %v, want %q", got, err, rule)
		}
	}
	if rule := token.RuleOf(export.ErrUnavailable); rule != "" {
		t.Errorf("rule %q of an outage", rule)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	good := issuerAt("https://issuer.example/jwks")
	change := func(f func(*token.Issuer)) token.Config {
		i := good
		f(&i)
		return token.Config{Issuers: []token.Issuer{i}}
	}
	introspection := func(f func(*token.Introspection)) token.Config {
		return change(func(i *token.Issuer) {
			*i = introspecting("https://issuer.example/introspect")
			f(i.Introspection)
		})
	}
	for name, cfg := range map[string]token.Config{
		"no issuers":           {},
		"one issuer twice":     {Issuers: []token.Issuer{good, good}},
		"no name":              change(func(i *token.Issuer) { i.Name = "" }),
		"no audience":          change(func(i *token.Issuer) { i.Audiences = nil }),
		"an empty audience":    change(func(i *token.Issuer) { i.Audiences = []string{audience, ""} }),
		"neither URL nor file": change(func(i *token.Issuer) { i.JWKSURL = "" }),
		"URL and file":         change(func(i *token.Issuer) { i.JWKSFile = "jwks.json" }),
		"http":                 change(func(i *token.Issuer) { i.JWKSURL = "http://issuer.example/jwks" }),
		"http, loopback name":  change(func(i *token.Issuer) { i.JWKSURL = "http://localhost.evil.example/jwks" }),
		"http, loopback user":  change(func(i *token.Issuer) { i.JWKSURL = "http://127.0.0.1@evil.example/jwks" }),
		"a user":               change(func(i *token.Issuer) { i.JWKSURL = "https://u:p@issuer.example/jwks" }),
		"file scheme":          change(func(i *token.Issuer) { i.JWKSURL = "file:///etc/passwd" }),
		"relative URL":         change(func(i *token.Issuer) { i.JWKSURL = "/jwks" }),
		"alg none":             change(func(i *token.Issuer) { i.Algorithms = []string{"ES256", "none"} }),
		"alg HS256":            change(func(i *token.Issuer) { i.Algorithms = []string{"HS256"} }),
		"alg RS512":            change(func(i *token.Issuer) { i.Algorithms = []string{"RS512"} }),
		"alg empty":            change(func(i *token.Issuer) { i.Algorithms = []string{""} }),

		// Claims that people choose themselves, or that do not identify a client, cannot be subjects.
		"username as subject":      change(func(i *token.Issuer) { i.SubjectClaim = "preferred_username" }),
		"email as subject":         change(func(i *token.Issuer) { i.SubjectClaim = "email" }),
		"iss as subject":           change(func(i *token.Issuer) { i.SubjectClaim = "iss" }),
		"subject in another case":  change(func(i *token.Issuer) { i.SubjectClaim = "Sub" }),
		"name as scope":            change(func(i *token.Issuer) { i.ScopeClaim = "name" }),
		"required without a name":  change(func(i *token.Issuer) { i.RequiredClaims = map[string]string{"": "x"} }),
		"required without a value": change(func(i *token.Issuer) { i.RequiredClaims = map[string]string{"typ": ""} }),

		"URL and discovery":            change(func(i *token.Issuer) { i.Discovery = true }),
		"discovery from no URL":        change(func(i *token.Issuer) { i.JWKSURL, i.Discovery, i.Name = "", true, "urn:x" }),
		"discovery by http":            change(func(i *token.Issuer) { i.JWKSURL, i.Discovery, i.Name = "", true, "http://a.example" }),
		"introspection by http":        introspection(func(i *token.Introspection) { i.URL = "http://issuer.example/i" }),
		"introspection without URL":    introspection(func(i *token.Introspection) { i.URL = "" }),
		"introspection with a user":    introspection(func(i *token.Introspection) { i.URL = "https://a:b@issuer.example/i" }),
		"introspection without client": introspection(func(i *token.Introspection) { i.ClientID = "" }),
		"introspection without secret": introspection(func(i *token.Introspection) { i.ClientSecret = "" }),
		"answers kept for long":        introspection(func(i *token.Introspection) { i.CacheFor = 5*time.Minute + 1 }),
		"answers kept for less":        introspection(func(i *token.Introspection) { i.CacheFor = -1 }),
		"introspection, no audience": change(func(i *token.Issuer) {
			*i = introspecting("https://issuer.example/i")
			i.Audiences, i.Introspection.AudienceOptional = nil, true
		}),
		"two that introspect": {Issuers: []token.Issuer{
			introspecting("https://issuer.example/i"),
			{Name: "b", Audiences: []string{"a"}, Introspection: introspecting("https://b.example/i").Introspection},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := token.NewVerifier(cfg); err == nil {
				v.Close()
				t.Error("accepted")
			}
		})
	}
	for _, url := range []string{"http://127.0.0.1:1/jwks", "http://[::1]/jwks", "http://localhost/jwks", good.JWKSURL} {
		v, err := token.NewVerifier(change(func(i *token.Issuer) { i.JWKSURL = url }))
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		v.Close()
	}
}

// The API can start while the issuer is down: the first token causes the first fetch.
func TestNewVerifierFetchesNothing(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	verifier(t, newClock(), issuerAt(server.URL))
}
