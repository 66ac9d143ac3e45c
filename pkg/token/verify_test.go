package token_test

import (
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

func TestVerifyAcceptsEachAlgorithm(t *testing.T) {
	rsa2048, p256, p384 := rsaKey(t, 2048), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())
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
			if err != nil {
				t.Fatal(err)
			}
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
	key := ecKey(t, elliptic.P256())
	server := serveKeys(t, jwks(jwkOf("k", key)))
	v := verifier(t, newClock(), issuerAt(server.URL))
	unix := func(d time.Duration) int64 { return start().Add(d).Unix() }
	header := `{"alg":"ES256","kid":"k","typ":"JWT"}`
	for name, test := range map[string]struct {
		header string
		claims members
		reads  string // a type that the token may read; "" for none at all
	}{
		"expired by 59 s":           {header, goodClaims().With("exp", unix(-59*time.Second)), "Patient"},
		"nbf 60 s ahead":            {header, goodClaims().With("nbf", unix(time.Minute)), "Patient"},
		"iat 60 s ahead":            {header, goodClaims().With("iat", unix(time.Minute)), "Patient"},
		"no nbf and no iat":         {header, goodClaims().Without("nbf").Without("iat"), "Patient"},
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
			if err != nil {
				t.Fatal(err)
			}
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
	rsaA, rsaB := rsaKey(t, 2048), rsaKey(t, 2048)
	ecA, ecA384 := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())
	twin1, twin2 := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	encryption, other, weak, leaked := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256()), rsaKey(t, 1024),
		ecKey(t, elliptic.P256())
	p521 := ecKey(t, elliptic.P521())
	edPublic, edPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a symmetric secret in the key set")
	leakedD, err := leaked.Bytes()
	if err != nil {
		t.Fatal(err)
	}
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

	der, err := x509.MarshalPKIXPublicKey(rsaA.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})

	unix := func(d time.Duration) int64 { return start().Add(d).Unix() }
	es := `{"alg":"ES256","kid":"e","typ":"JWT"}`
	good := goodClaims().String()
	valid := forge("ES256", ecA, es, good)
	parts := strings.Split(valid, ".")
	signed := func(c members) string { return forge("ES256", ecA, es, c.String()) }
	headed := func(header string) string { return forge("ES256", ecA, header, good) }
	payload := func(p string) string { return forge("ES256", ecA, es, p) }
	literal := func(name, value string) string { // a claim as literal JSON
		return payload(strings.TrimSuffix(goodClaims().Without(name).String(), "}") + `,"` + name + `":` + value + `}`)
	}
	seg := func(s string) string { return b64.EncodeToString([]byte(s)) }
	edInput := seg(`{"alg":"EdDSA","kid":"ed"}`) + "." + seg(good)
	flip := func(s string, at int) string {
		swap := byte('A')
		if s[at] == 'A' {
			swap = 'B'
		}
		return s[:at] + string(swap) + s[at+1:]
	}
	// The last character of a 64-byte signature has four unused bits.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	tail := strings.IndexByte(alphabet, valid[len(valid)-1])
	malleable := valid[:len(valid)-1] + alphabet[tail|1:tail|1+1]
	sealed := func(header, payload, signature string) string { return header + "." + payload + "." + signature }
	forB := func(alg string, key any, header string) string {
		return forge(alg, key, header, goodClaims().With("iss", issuerB).String())
	}
	foreign := strings.Split(signed(goodClaims().With("sub", "x")), ".")
	ownKey := jwkOf("mine", other)
	byOther := func(header string) string { return forge("ES256", other, header, good) }

	if _, err := v.Verify(t.Context(), valid); err != nil {
		t.Fatalf("the token that the others are derived from: %v", err)
	}
	for name, raw := range map[string]string{
		"empty":                        "",
		"null":                         "null",
		"one part":                     "invalidToken",
		"only dots":                    "..",
		"four parts":                   valid + ".x",
		"a space before":               " " + valid,
		"a newline after":              valid + "\n",
		"a newline inside":             parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"padding":                      valid + "=",
		"standard base64":              parts[0] + "+." + parts[1] + "." + parts[2],
		"huge":                         signed(goodClaims().With("pad", strings.Repeat("x", 16<<10))),
		"not JSON":                     payload("not JSON"),
		"header null":                  headed("null"),
		"payload null":                 payload("null"),
		"payload an array":             payload("[" + good + "]"),
		"payload twice":                payload(good + good),
		"payload not UTF-8":            payload(strings.Replace(good, subject, "client-\xff", 1)),
		"JSON serialised JWS":          members{"payload": parts[1], "protected": parts[0], "signature": parts[2]}.String(),
		"JWE":                          "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.AAAA.AAAA.AAAA.AAAA",
		"JWE header on a JWS":          headed(`{"alg":"ES256","kid":"e","enc":"A256GCM"}`),
		"nested JWT":                   forge("ES256", ecA, `{"alg":"ES256","kid":"e","cty":"JWT"}`, valid),
		"nested JWT without cty":       payload(`"` + valid + `"`),
		"cty":                          headed(`{"alg":"ES256","kid":"e","cty":"JWT"}`),
		"compressed":                   headed(`{"alg":"ES256","kid":"e","zip":"DEF"}`),
		"logout token":                 headed(`{"alg":"ES256","kid":"e","typ":"logout+jwt"}`),
		"typ no string":                headed(`{"alg":"ES256","kid":"e","typ":7}`),
		"crit":                         headed(`{"alg":"ES256","kid":"e","crit":["exp"],"exp":1}`),
		"empty crit":                   headed(`{"alg":"ES256","kid":"e","crit":[]}`),
		"b64 false":                    headed(`{"alg":"ES256","kid":"e","b64":false}`),
		"b64 false in crit":            headed(`{"alg":"ES256","kid":"e","b64":false,"crit":["b64"]}`),
		"embedded jwk":                 byOther(`{"alg":"ES256","kid":"mine","jwk":` + ownKey.String() + `}`),
		"embedded jwk, kid known":      byOther(`{"alg":"ES256","kid":"e","jwk":` + jwkOf("e", other).String() + `}`),
		"jku":                          byOther(`{"alg":"ES256","kid":"mine","jku":"` + trap.URL + `"}`),
		"x5u":                          byOther(`{"alg":"ES256","kid":"mine","x5u":"` + trap.URL + `"}`),
		"alg none":                     seg(`{"alg":"none","kid":"e"}`) + "." + parts[1] + ".",
		"alg none, signature kept":     seg(`{"alg":"none","kid":"e"}`) + "." + parts[1] + "." + parts[2],
		"alg nOnE":                     seg(`{"alg":"nOnE"}`) + "." + parts[1] + ".AAAA",
		"alg missing":                  headed(`{"kid":"e"}`),
		"alg empty":                    headed(`{"alg":"","kid":"e"}`),
		"alg an array":                 headed(`{"alg":["ES256"],"kid":"e"}`),
		"alg in lower case":            headed(`{"alg":"es256","kid":"e"}`),
		"alg twice":                    headed(`{"alg":"ES256","kid":"e","alg":"ES256"}`),
		"alg twice, escaped":           headed(`{"alg":"ES256","kid":"e","\u0061lg":"none"}`),
		"HS256 with the public PEM":    forge("HS256", publicPEM, `{"alg":"HS256","kid":"r"}`, good),
		"HS256 with the public DER":    forge("HS256", der, `{"alg":"HS256","kid":"r"}`, good),
		"HS256 with an oct key":        forge("HS256", secret, `{"alg":"HS256","kid":"oct"}`, good),
		"RS512":                        forge("RS512", rsaA, `{"alg":"RS512","kid":"r"}`, good),
		"PS384":                        forge("PS384", rsaA, `{"alg":"PS384","kid":"r"}`, good),
		"ES512":                        forge("ES512", p521, `{"alg":"ES512","kid":"p521"}`, good),
		"ES256K":                       headed(`{"alg":"ES256K","kid":"e"}`),
		"EdDSA":                        edInput + "." + b64.EncodeToString(ed25519.Sign(edPrivate, []byte(edInput))),
		"EdDSA key under ES256":        byOther(`{"alg":"ES256","kid":"ed"}`),
		"RS256 under an EC kid":        forge("RS256", rsaA, `{"alg":"RS256","kid":"e"}`, good),
		"ES256 under an RSA kid":       headed(`{"alg":"ES256","kid":"r"}`),
		"ES256 with a P-384 key":       forge("ES256", ecA384, `{"alg":"ES256","kid":"f"}`, good),
		"ES384 with a P-256 key":       forge("ES384", ecA, `{"alg":"ES384","kid":"e"}`, good),
		"key has another alg":          forge("RS256", rsaA, `{"alg":"RS256","kid":"only384"}`, good),
		"encryption key":               forge("ES256", encryption, `{"alg":"ES256","kid":"enc"}`, good),
		"key_ops without verify":       forge("ES256", encryption, `{"alg":"ES256","kid":"ops"}`, good),
		"weak RSA key":                 forge("RS256", weak, `{"alg":"RS256","kid":"weak"}`, good),
		"published private key":        forge("ES256", leaked, `{"alg":"ES256","kid":"leaked"}`, good),
		"point off the curve":          byOther(`{"alg":"ES256","kid":"off"}`),
		"two keys with the kid":        forge("ES256", twin1, `{"alg":"ES256","kid":"twin"}`, good),
		"no kid, several keys":         headed(`{"alg":"ES256"}`),
		"kid unknown":                  headed(`{"alg":"ES256","kid":"unheard-of"}`),
		"kid empty":                    headed(`{"alg":"ES256","kid":""}`),
		"kid a number":                 headed(`{"alg":"ES256","kid":1}`),
		"kid null":                     headed(`{"alg":"ES256","kid":null}`),
		"kid with path traversal":      headed(`{"alg":"ES256","kid":"../../../../dev/null"}`),
		"kid with SQL":                 headed(`{"alg":"ES256","kid":"e' OR '1'='1"}`),
		"kid in another case":          headed(`{"alg":"ES256","kid":"E"}`),
		"signature stripped":           parts[0] + "." + parts[1] + ".",
		"signature and dot stripped":   parts[0] + "." + parts[1],
		"signature altered":            flip(valid, len(parts[0])+len(parts[1])+10),
		"signature re-encoded":         malleable,
		"signature cut":                valid[:len(valid)-4],
		"signature zero":               parts[0] + "." + parts[1] + "." + b64.EncodeToString(make([]byte, 64)),
		"signature of another token":   sealed(parts[0], parts[1], foreign[2]),
		"payload altered":              sealed(parts[0], seg(strings.Replace(good, subject, "admin-1", 1)), parts[2]),
		"header altered":               sealed(seg(`{"alg":"ES256","kid":"e","typ":"jwt"}`), parts[1], parts[2]),
		"another key":                  byOther(es),
		"B's key for A, B's kid":       forge("RS256", rsaB, `{"alg":"RS256","kid":"b"}`, good),
		"B's key for A, A's kid":       forge("RS256", rsaB, `{"alg":"RS256","kid":"r"}`, good),
		"A's key for B":                forB("RS256", rsaA, `{"alg":"RS256","kid":"r"}`),
		"alg that B does not use":      forB("RS384", rsaB, `{"alg":"RS384","kid":"b"}`),
		"iss unknown":                  signed(goodClaims().With("iss", "https://evil.example")),
		"iss with a slash":             signed(goodClaims().With("iss", issuerName+"/")),
		"iss in upper case":            signed(goodClaims().With("iss", strings.ToUpper(issuerName))),
		"iss missing":                  signed(goodClaims().Without("iss")),
		"iss an array":                 signed(goodClaims().With("iss", []string{issuerName})),
		"iss twice":                    payload(strings.TrimSuffix(good, "}") + `,"iss":"` + issuerName + `"}`),
		"ISS beside iss missing":       signed(goodClaims().Without("iss").With("ISS", issuerName)),
		"aud of somebody else":         signed(goodClaims().With("aud", "https://other.example")),
		"aud with a slash":             signed(goodClaims().With("aud", audience+"/")),
		"aud missing":                  signed(goodClaims().Without("aud")),
		"aud null":                     signed(goodClaims().With("aud", nil)),
		"aud empty array":              signed(goodClaims().With("aud", []string{})),
		"aud array without ours":       signed(goodClaims().With("aud", []string{"urn:x", "urn:y"})),
		"aud array with a number":      signed(goodClaims().With("aud", []any{audience, 1})),
		"aud an object":                signed(goodClaims().With("aud", map[string]string{"a": audience})),
		"sub missing":                  signed(goodClaims().Without("sub")),
		"sub empty":                    signed(goodClaims().With("sub", "")),
		"sub null":                     signed(goodClaims().With("sub", nil)),
		"sub a number":                 signed(goodClaims().With("sub", 7)),
		"sub twice":                    payload(strings.TrimSuffix(good, "}") + `,"sub":"admin"}`),
		"sub with a broken escape":     literal("sub", `"client-\ud800"`),
		"sub with a NUL":               literal("sub", `"client\u0000"`),
		"exp missing":                  signed(goodClaims().Without("exp")),
		"exp null":                     signed(goodClaims().With("exp", nil)),
		"expired by 60 s":              signed(goodClaims().With("exp", unix(-60*time.Second))),
		"expired by 61 s":              signed(goodClaims().With("exp", unix(-61*time.Second))),
		"exp zero":                     literal("exp", "0"),
		"exp a string":                 literal("exp", fmt.Sprintf("%q", fmt.Sprint(unix(time.Minute)))),
		"exp with a fraction":          literal("exp", fmt.Sprintf("%d.5", unix(time.Minute))),
		"exp negative":                 literal("exp", "-1"),
		"exp 1e308":                    literal("exp", "1e308"),
		"exp 1e999":                    literal("exp", "1e999"),
		"exp beyond int64":             literal("exp", "18446744073709551615"),
		"exp in milliseconds":          literal("exp", fmt.Sprint(start().UnixMilli())),
		"exp true":                     literal("exp", "true"),
		"exp twice":                    payload(strings.TrimSuffix(good, "}") + fmt.Sprintf(`,"exp":%d}`, unix(time.Hour))),
		"nbf 61 s ahead":               signed(goodClaims().With("nbf", unix(61*time.Second))),
		"nbf a string":                 signed(goodClaims().With("nbf", "1")),
		"iat 61 s ahead":               signed(goodClaims().With("iat", unix(61*time.Second))),
		"iat null":                     signed(goodClaims().With("iat", nil)),
		"scope an object":              signed(goodClaims().With("scope", map[string]any{})),
		"scope an array with null":     signed(goodClaims().With("scope", []any{"system/*.rs", nil})),
		"granular scope":               signed(goodClaims().With("scope", "system/Patient.rs system/Observation.rs?a=b")),
		"granular scope in an array":   signed(goodClaims().With("scope", []string{"system/*.rs", "user/Group.rs?x=y"})),
		"another OKP key in the clear": edInput + "." + b64.EncodeToString(edPublic),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := v.Verify(t.Context(), raw)
			if !errors.Is(err, token.ErrInvalid) {
				t.Fatalf("got %+v and error %v, want ErrInvalid", p, err)
			}
			if errors.Is(err, export.ErrUnavailable) {
				t.Errorf("%v is both invalid and unavailable", err)
			}
			if p.Owner != (export.Owner{}) || p.Scopes.MayRead("Patient") {
				t.Errorf("a principal came with the error: %+v", p)
			}
			for _, part := range append(strings.Split(raw, "."), subject) {
				if len(part) > 6 && strings.Contains(err.Error(), part) {
					t.Errorf("the error holds a part of the token: %v", err)
				}
			}
		})
	}
	if n := trap.asked.Load(); n != 0 {
		t.Errorf("a URL from a token was fetched %d times", n)
	}
	if n := server.asked.Load(); n != 1 {
		t.Errorf("%d requests to issuer A, want 1", n)
	}
}

func TestVerifyNamesTheGranularScope(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	v := verifier(t, newClock(), issuerAt(serveKeys(t, jwks(jwkOf("k", key))).URL))
	_, err := v.Verify(t.Context(), sign("ES256", "k", key, goodClaims().With("scope", "system/Observation.rs?a=b")))
	if !errors.Is(err, token.ErrInvalid) || !errors.Is(err, token.ErrGranularScope) {
		t.Errorf("got %v, want ErrInvalid and ErrGranularScope", err)
	}
}

func TestVerifyMaxLifetime(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	server := serveKeys(t, jwks(jwkOf("k", key)))
	v := verifierWith(t, token.Config{
		Issuers: []token.Issuer{issuerAt(server.URL)}, Now: newClock().Now, MaxLifetime: 5 * time.Minute,
	})
	unix := func(d time.Duration) int64 { return start().Add(d).Unix() }
	for name, test := range map[string]struct {
		claims members
		ok     bool
	}{
		"as long as allowed":      {goodClaims(), true},
		"a second longer":         {goodClaims().With("exp", unix(301*time.Second)), false},
		"long, almost over":       {goodClaims().With("iat", unix(-time.Hour)).With("exp", unix(time.Minute)), false},
		"no iat":                  {goodClaims().Without("iat"), true},
		"no iat, longer and skew": {goodClaims().Without("iat").With("exp", unix(361*time.Second)), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), sign("ES256", "k", key, test.claims))
			if (err == nil) != test.ok || err != nil && !errors.Is(err, token.ErrInvalid) {
				t.Errorf("error %v, want accepted %v", err, test.ok)
			}
		})
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
		"negative skew":        {Issuers: []token.Issuer{good}, Skew: -1},
		"huge skew":            {Issuers: []token.Issuer{good}, Skew: time.Hour},
		"negative lifetime":    {Issuers: []token.Issuer{good}, MaxLifetime: -1},

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

// The API starts while the issuer is down: the first token causes the first fetch.
func TestNewVerifierFetchesNothing(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	verifier(t, newClock(), issuerAt(server.URL))
}
