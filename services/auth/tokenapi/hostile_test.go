package tokenapi_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// B-15, B-18 to B-20 and B-22 to B-24: each of these is invalid_client and uses up no jti.
func TestHostileAssertions(t *testing.T) {
	var fetched atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fetched.Add(1)
		_, _ = rw.Write(jwks(jwkOf("mine", keys().spare)))
	}))
	defer trap.Close()
	ours := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = rw.Write(jwks(jwkOf("e", keys().ec), jwkOf("twin", keys().ec), jwkOf("twin", keys().ecB),
			jwkOf("weak", keys().weak), jwkOf("small", keys().ec256), jwkOf("enc", keys().spare).With("use", "enc"),
			jwkOf("only", keys().rsa).With("alg", "RS256"), members{"kty": "oct", "kid": "oct", "k": "c2VjcmV0"}))
	}))
	defer ours.Close()
	f := newFixture(t, nil)
	f.app(everything)
	f.register(token.Client{ID: "byurl", JWKSURL: ours.URL})
	f.register(token.Client{ID: "b", JWKS: jwks(jwkOf("e", keys().ecB))})
	f.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})

	der, err := x509.MarshalPKIXPublicKey(keys().rsa.Public())
	must(t, err)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ec := func(header, payload string) string { return forge("ES384", keys().ec, header, payload) }
	good := ecHeader
	signed := func(c members) string { return ec(good, c.String()) }
	headed := func(header string) string { return ec(header, f.claims().String()) }
	at := func(d time.Duration) int64 { return start().Add(d).Unix() }
	of := func(client string) members { return f.claims().With("iss", client).With("sub", client) }
	literal := func(name, value string) string {
		return ec(good, strings.TrimSuffix(f.claims().Without(name).String(), "}")+`,"`+name+`":`+value+`}`)
	}
	valid := f.asserted(nil)
	parts := strings.Split(valid, ".")
	seg := func(s string) string { return b64.EncodeToString([]byte(s)) }
	hostile := map[string]string{
		"B-15 one part":                    "x",
		"B-15 three empty parts":           "..",
		"B-15 JSON":                        `{"iss":"app"}`,
		"B-15 a JWE":                       "eyJhbGciOiJSU0EtT0FFUCJ9.AAAA.AAAA.AAAA.AAAA",
		"B-15 payload no JSON":             ec(good, "not JSON"),
		"B-15 payload an array":            ec(good, "[]"),
		"B-15 larger than 8 KiB":           signed(f.claims().With("pad", strings.Repeat("x", 9000))),
		"B-15 an access token":             headed(`{"alg":"ES384","kid":"e","typ":"at+jwt"}`),
		"B-15 a logout token":              headed(`{"alg":"ES384","kid":"e","typ":"logout+jwt"}`),
		"B-15 crit":                        headed(`{"alg":"ES384","kid":"e","crit":["exp"],"exp":1}`),
		"B-15 b64":                         headed(`{"alg":"ES384","kid":"e","b64":false}`),
		"B-15 nested":                      ec(`{"alg":"ES384","kid":"e","cty":"JWT"}`, valid),
		"B-15 compressed":                  headed(`{"alg":"ES384","kid":"e","zip":"DEF"}`),
		"B-15 a member twice":              ec(good, strings.TrimSuffix(f.claims().String(), "}")+`,"sub":"b"}`),
		"B-15 padded":                      valid + "=",
		"B-18 aud of another server":       signed(f.claims().With("aud", otherURL)),
		"B-18 aud the FHIR base":           signed(f.claims().With("aud", audience)),
		"B-18 aud the issuer":              signed(f.claims().With("aud", f.base)),
		"B-18 aud with a slash":            signed(f.claims().With("aud", f.url+"/")),
		"B-18 aud missing":                 signed(f.claims().Without("aud")),
		"B-18 aud an empty array":          signed(f.claims().With("aud", []string{})),
		"B-18 aud an array without us":     signed(f.claims().With("aud", []string{otherURL})),
		"B-18 aud an object":               signed(f.claims().With("aud", members{"a": f.url})),
		"B-19 iss is not sub":              signed(f.claims().With("sub", "b")),
		"B-19 iss of another":              signed(f.claims().With("iss", "b")),
		"B-19 iss missing":                 signed(f.claims().Without("iss")),
		"B-19 sub missing":                 signed(f.claims().Without("sub")),
		"B-19 sub a number":                signed(f.claims().With("iss", 7).With("sub", 7)),
		"B-19 unknown client":              signed(of("stranger")),
		"B-19 client with a NUL":           literal("sub", `"app\u0000"`),
		"B-19 client in capitals":          signed(of("APP")),
		"B-20 expired":                     signed(f.claims().With("exp", at(-time.Minute))),
		"B-20 exp too far ahead":           signed(f.claims().With("exp", at(6*time.Minute+time.Second))),
		"B-20 exp in a year":               signed(f.claims().With("exp", at(365*24*time.Hour))),
		"B-20 exp missing":                 signed(f.claims().Without("exp")),
		"B-20 exp a string":                literal("exp", fmt.Sprintf("%q", fmt.Sprint(at(time.Minute)))),
		"B-20 exp a fraction":              literal("exp", fmt.Sprintf("%d.5", at(time.Minute))),
		"B-20 exp 1e308":                   literal("exp", "1e308"),
		"B-20 exp negative":                literal("exp", "-1"),
		"B-20 exp null":                    signed(f.claims().With("exp", nil)),
		"B-20 nbf ahead":                   signed(f.claims().With("nbf", at(61*time.Second))),
		"B-20 iat ahead":                   signed(f.claims().With("iat", at(61*time.Second))),
		"B-21 jti missing":                 signed(f.claims().Without("jti")),
		"B-21 jti empty":                   signed(f.claims().With("jti", "")),
		"B-21 jti a number":                signed(f.claims().With("jti", 1)),
		"B-22 another key":                 forge("ES384", keys().ecB, good, f.claims().String()),
		"B-22 payload altered":             parts[0] + "." + seg(f.claims().With("x", 1).String()) + "." + parts[2],
		"B-22 header altered":              seg(`{"alg":"ES384","kid":"e"}`) + "." + parts[1] + "." + parts[2],
		"B-22 signature zero":              parts[0] + "." + parts[1] + "." + b64.EncodeToString(make([]byte, 96)),
		"B-22 signature missing":           parts[0] + "." + parts[1] + ".",
		"B-22 signature cut":               valid[:len(valid)-4],
		"B-22 kid unknown":                 headed(`{"alg":"ES384","kid":"unheard-of"}`),
		"B-22 kid missing":                 headed(`{"alg":"ES384"}`),
		"B-22 kid empty":                   headed(`{"alg":"ES384","kid":""}`),
		"B-22 kid a path":                  headed(`{"alg":"ES384","kid":"../../dev/null"}`),
		"B-22 kid of the other type":       headed(`{"alg":"ES384","kid":"r"}`),
		"B-22 RS384 under an EC kid":       forge("RS384", keys().rsa, `{"alg":"RS384","kid":"e"}`, f.claims().String()),
		"B-22 two keys with the kid":       ec(`{"alg":"ES384","kid":"twin"}`, of("byurl").String()),
		"B-22 a weak key":                  forge("RS384", keys().weak, `{"alg":"RS384","kid":"weak"}`, of("byurl").String()),
		"B-22 ES384 with a P-256 key":      forge("ES384", keys().ec256, `{"alg":"ES384","kid":"small"}`, of("byurl").String()),
		"B-22 an encryption key":           forge("ES384", keys().spare, `{"alg":"ES384","kid":"enc"}`, of("byurl").String()),
		"B-22 a key for another alg":       forge("RS384", keys().rsa, `{"alg":"RS384","kid":"only"}`, of("byurl").String()),
		"B-22 the key of another client":   ec(good, of("b").String()),
		"B-22 a client with a secret":      ec(good, of("secret").String()),
		"B-22 embedded jwk":                forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","jwk":`+jwkOf("mine", keys().spare).String()+`}`, f.claims().String()),
		"B-22 x5u":                         forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","x5u":"`+trap.URL+`"}`, f.claims().String()),
		"B-23 alg none":                    seg(`{"alg":"none","kid":"e"}`) + "." + parts[1] + ".",
		"B-23 alg none, signature kept":    seg(`{"alg":"none","kid":"e"}`) + "." + parts[1] + "." + parts[2],
		"B-23 alg missing":                 headed(`{"kid":"e"}`),
		"B-23 alg in lower case":           headed(`{"alg":"es384","kid":"e"}`),
		"B-23 alg twice":                   headed(`{"alg":"none","kid":"e","alg":"ES384"}`),
		"B-23 HS256 with the public PEM":   forge("HS256", publicPEM, `{"alg":"HS256","kid":"r"}`, f.claims().String()),
		"B-23 HS384 with the public DER":   forge("HS256", der, `{"alg":"HS384","kid":"r"}`, f.claims().String()),
		"B-23 HS256 with an oct key":       forge("HS256", []byte("secret"), `{"alg":"HS256","kid":"oct"}`, of("byurl").String()),
		"B-23 RS256":                       forge("RS256", keys().rsa, `{"alg":"RS256","kid":"r"}`, f.claims().String()),
		"B-23 PS384":                       forge("PS384", keys().rsa, `{"alg":"PS384","kid":"r"}`, f.claims().String()),
		"B-23 ES256":                       forge("ES256", keys().ec256, `{"alg":"ES256","kid":"small"}`, of("byurl").String()),
		"B-24 jku of another, inline keys": forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","jku":"`+trap.URL+`"}`, f.claims().String()),
		"B-24 jku of another":              forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","jku":"`+trap.URL+`"}`, of("byurl").String()),
		"B-24 jku of another, good key":    ec(`{"alg":"ES384","kid":"e","jku":"`+trap.URL+`"}`, of("byurl").String()),
		"B-24 jku with a fragment":         ec(`{"alg":"ES384","kid":"e","jku":"`+ours.URL+`#x"}`, of("byurl").String()),
		"B-24 jku a number":                ec(`{"alg":"ES384","kid":"e","jku":7}`, of("byurl").String()),
		"B-24 jku empty":                   ec(`{"alg":"ES384","kid":"e","jku":""}`, of("byurl").String()),
	}
	if len(hostile) < 40 {
		t.Fatalf("%d hostile assertions", len(hostile))
	}
	for name, assertion := range hostile {
		t.Run(name, func(t *testing.T) {
			r := f.post(f.form(assertion, everything))
			wantError(t, r, 400, "invalid_client")
			for _, part := range append(strings.Split(assertion, "."), "app", "stranger", "byurl", "jti-") {
				if part != "" && strings.Contains(r.raw, part) && len(part) > 2 {
					t.Errorf("the response repeats %q: %s", part, r.raw)
				}
			}
		})
	}
	if n := fetched.Load(); n != 0 {
		t.Errorf("a URL from an assertion was fetched %d times", n)
	}
	// The assertion that the others are derived from is accepted, and none of them has used it up.
	wantToken(t, f.post(f.form(valid, everything)), everything)
	wantToken(t, f.post(f.form(ec(good, of("byurl").String()), everything)), everything)
	for _, part := range []string{parts[2], "byurl", "stranger", `"app"`, "jti-", trap.URL} {
		if strings.Contains(f.log.String(), part) {
			t.Errorf("the log holds %q", part)
		}
	}
}

// The response does not show which clients exist: it is the same, byte for byte.
func TestResponseHidesWhichClientsExist(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	f.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	f.register(token.Client{ID: "unreachable", JWKSURL: down.URL})
	response := func(client string) string {
		claims := f.claims().With("iss", client).With("sub", client)
		r := f.post(f.form(f.assertedByB(claims), everything))
		r.header.Del("Date")
		header, err := json.Marshal(r.header)
		must(t, err)
		return fmt.Sprintf("%d %s %s", r.status, header, r.raw)
	}
	want := response("unknown")
	for _, client := range []string{"app", "secret", "unreachable"} {
		if got := response(client); got != want {
			t.Errorf("%s: %s, want %s", client, got, want)
		}
	}
}
