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

// B-15, B-18 to B-20 and B-22 to B-24: every one of these is invalid_client, and spends nothing.
func TestHostileAssertions(t *testing.T) {
	var fetched atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fetched.Add(1)
		_, _ = rw.Write(jwks(jwkOf("mine", keys().spare)))
	}))
	defer trap.Close()
	ours := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = rw.Write(jwks(jwkOf("e", keys().ec), jwkOf("twin", keys().ec), jwkOf("twin", keys().ecB),
			jwkOf("weak", keys().weak), jwkOf("small", keys().ec256), jwkOf("enc", keys().spare).with("use", "enc"),
			jwkOf("only", keys().rsa).with("alg", "RS256"), members{"kty": "oct", "kid": "oct", "k": "c2VjcmV0"}))
	}))
	defer ours.Close()
	w := newWorld(t, nil)
	w.app(everything)
	w.register(token.Client{ID: "byurl", JWKSURL: ours.URL})
	w.register(token.Client{ID: "b", JWKS: jwks(jwkOf("e", keys().ecB))})
	w.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})

	der, err := x509.MarshalPKIXPublicKey(keys().rsa.Public())
	must(t, err)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ec := func(header, payload string) string { return forge("ES384", keys().ec, header, payload) }
	good := `{"alg":"ES384","kid":"e","typ":"JWT"}`
	signed := func(c members) string { return ec(good, c.String()) }
	headed := func(header string) string { return ec(header, w.claims().String()) }
	at := func(d time.Duration) int64 { return start().Add(d).Unix() }
	of := func(client string) members { return w.claims().with("iss", client).with("sub", client) }
	literal := func(name, value string) string {
		return ec(good, strings.TrimSuffix(w.claims().without(name).String(), "}")+`,"`+name+`":`+value+`}`)
	}
	valid := w.asserted(nil)
	parts := strings.Split(valid, ".")
	seg := func(s string) string { return b64.EncodeToString([]byte(s)) }
	hostile := map[string]string{
		"B-15 one part":                    "x",
		"B-15 three empty parts":           "..",
		"B-15 JSON":                        `{"iss":"app"}`,
		"B-15 a JWE":                       "eyJhbGciOiJSU0EtT0FFUCJ9.AAAA.AAAA.AAAA.AAAA",
		"B-15 payload no JSON":             ec(good, "not JSON"),
		"B-15 payload an array":            ec(good, "[]"),
		"B-15 larger than 8 KiB":           signed(w.claims().with("pad", strings.Repeat("x", 9000))),
		"B-15 an access token":             headed(`{"alg":"ES384","kid":"e","typ":"at+jwt"}`),
		"B-15 a logout token":              headed(`{"alg":"ES384","kid":"e","typ":"logout+jwt"}`),
		"B-15 crit":                        headed(`{"alg":"ES384","kid":"e","crit":["exp"],"exp":1}`),
		"B-15 b64":                         headed(`{"alg":"ES384","kid":"e","b64":false}`),
		"B-15 nested":                      ec(`{"alg":"ES384","kid":"e","cty":"JWT"}`, valid),
		"B-15 compressed":                  headed(`{"alg":"ES384","kid":"e","zip":"DEF"}`),
		"B-15 a member twice":              ec(good, strings.TrimSuffix(w.claims().String(), "}")+`,"sub":"b"}`),
		"B-15 padded":                      valid + "=",
		"B-18 aud of another server":       signed(w.claims().with("aud", otherURL)),
		"B-18 aud the FHIR base":           signed(w.claims().with("aud", audience)),
		"B-18 aud the issuer":              signed(w.claims().with("aud", w.base)),
		"B-18 aud with a slash":            signed(w.claims().with("aud", w.url+"/")),
		"B-18 aud missing":                 signed(w.claims().without("aud")),
		"B-18 aud an empty array":          signed(w.claims().with("aud", []string{})),
		"B-18 aud an array without us":     signed(w.claims().with("aud", []string{otherURL})),
		"B-18 aud an object":               signed(w.claims().with("aud", members{"a": w.url})),
		"B-19 iss is not sub":              signed(w.claims().with("sub", "b")),
		"B-19 iss of another":              signed(w.claims().with("iss", "b")),
		"B-19 iss missing":                 signed(w.claims().without("iss")),
		"B-19 sub missing":                 signed(w.claims().without("sub")),
		"B-19 sub a number":                signed(w.claims().with("iss", 7).with("sub", 7)),
		"B-19 unknown client":              signed(of("nobody")),
		"B-19 client with a NUL":           literal("sub", `"app\u0000"`),
		"B-19 client in capitals":          signed(of("APP")),
		"B-20 expired":                     signed(w.claims().with("exp", at(-time.Minute))),
		"B-20 exp too far ahead":           signed(w.claims().with("exp", at(6*time.Minute+time.Second))),
		"B-20 exp in a year":               signed(w.claims().with("exp", at(365*24*time.Hour))),
		"B-20 exp missing":                 signed(w.claims().without("exp")),
		"B-20 exp a string":                literal("exp", fmt.Sprintf("%q", fmt.Sprint(at(time.Minute)))),
		"B-20 exp a fraction":              literal("exp", fmt.Sprintf("%d.5", at(time.Minute))),
		"B-20 exp 1e308":                   literal("exp", "1e308"),
		"B-20 exp negative":                literal("exp", "-1"),
		"B-20 exp null":                    signed(w.claims().with("exp", nil)),
		"B-20 nbf ahead":                   signed(w.claims().with("nbf", at(61*time.Second))),
		"B-20 iat ahead":                   signed(w.claims().with("iat", at(61*time.Second))),
		"B-21 jti missing":                 signed(w.claims().without("jti")),
		"B-21 jti empty":                   signed(w.claims().with("jti", "")),
		"B-21 jti a number":                signed(w.claims().with("jti", 1)),
		"B-22 another key":                 forge("ES384", keys().ecB, good, w.claims().String()),
		"B-22 payload altered":             parts[0] + "." + seg(w.claims().with("x", 1).String()) + "." + parts[2],
		"B-22 header altered":              seg(`{"alg":"ES384","kid":"e"}`) + "." + parts[1] + "." + parts[2],
		"B-22 signature zero":              parts[0] + "." + parts[1] + "." + b64.EncodeToString(make([]byte, 96)),
		"B-22 signature missing":           parts[0] + "." + parts[1] + ".",
		"B-22 signature cut":               valid[:len(valid)-4],
		"B-22 kid unknown":                 headed(`{"alg":"ES384","kid":"unheard-of"}`),
		"B-22 kid missing":                 headed(`{"alg":"ES384"}`),
		"B-22 kid empty":                   headed(`{"alg":"ES384","kid":""}`),
		"B-22 kid a path":                  headed(`{"alg":"ES384","kid":"../../dev/null"}`),
		"B-22 kid of the other type":       headed(`{"alg":"ES384","kid":"r"}`),
		"B-22 RS384 under an EC kid":       forge("RS384", keys().rsa, `{"alg":"RS384","kid":"e"}`, w.claims().String()),
		"B-22 two keys with the kid":       ec(`{"alg":"ES384","kid":"twin"}`, of("byurl").String()),
		"B-22 a weak key":                  forge("RS384", keys().weak, `{"alg":"RS384","kid":"weak"}`, of("byurl").String()),
		"B-22 ES384 with a P-256 key":      forge("ES384", keys().ec256, `{"alg":"ES384","kid":"small"}`, of("byurl").String()),
		"B-22 an encryption key":           forge("ES384", keys().spare, `{"alg":"ES384","kid":"enc"}`, of("byurl").String()),
		"B-22 a key for another alg":       forge("RS384", keys().rsa, `{"alg":"RS384","kid":"only"}`, of("byurl").String()),
		"B-22 the key of another client":   ec(good, of("b").String()),
		"B-22 a client with a secret":      ec(good, of("secret").String()),
		"B-22 embedded jwk":                forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","jwk":`+jwkOf("mine", keys().spare).String()+`}`, w.claims().String()),
		"B-22 x5u":                         forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","x5u":"`+trap.URL+`"}`, w.claims().String()),
		"B-23 alg none":                    seg(`{"alg":"none","kid":"e"}`) + "." + parts[1] + ".",
		"B-23 alg none, signature kept":    seg(`{"alg":"none","kid":"e"}`) + "." + parts[1] + "." + parts[2],
		"B-23 alg missing":                 headed(`{"kid":"e"}`),
		"B-23 alg in lower case":           headed(`{"alg":"es384","kid":"e"}`),
		"B-23 alg twice":                   headed(`{"alg":"none","kid":"e","alg":"ES384"}`),
		"B-23 HS256 with the public PEM":   forge("HS256", publicPEM, `{"alg":"HS256","kid":"r"}`, w.claims().String()),
		"B-23 HS384 with the public DER":   forge("HS256", der, `{"alg":"HS384","kid":"r"}`, w.claims().String()),
		"B-23 HS256 with an oct key":       forge("HS256", []byte("secret"), `{"alg":"HS256","kid":"oct"}`, of("byurl").String()),
		"B-23 RS256":                       forge("RS256", keys().rsa, `{"alg":"RS256","kid":"r"}`, w.claims().String()),
		"B-23 PS384":                       forge("PS384", keys().rsa, `{"alg":"PS384","kid":"r"}`, w.claims().String()),
		"B-23 ES256":                       forge("ES256", keys().ec256, `{"alg":"ES256","kid":"small"}`, of("byurl").String()),
		"B-24 jku of another, inline keys": forge("ES384", keys().spare, `{"alg":"ES384","kid":"mine","jku":"`+trap.URL+`"}`, w.claims().String()),
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
			r := w.post(w.form(assertion, everything))
			wantError(t, r, 400, "invalid_client")
			for _, part := range append(strings.Split(assertion, "."), "app", "nobody", "byurl", "jti-") {
				if part != "" && strings.Contains(r.raw, part) && len(part) > 2 {
					t.Errorf("the answer repeats %q: %s", part, r.raw)
				}
			}
		})
	}
	if n := fetched.Load(); n != 0 {
		t.Errorf("a URL from an assertion was fetched %d times", n)
	}
	// The one that the others are altered from is good, and none of them has spent it.
	wantToken(t, w.post(w.form(valid, everything)), everything)
	wantToken(t, w.post(w.form(ec(good, of("byurl").String()), everything)), everything)
	for _, part := range []string{parts[2], "byurl", "nobody", `"app"`, "jti-", trap.URL} {
		if strings.Contains(w.log.String(), part) {
			t.Errorf("the log holds %q", part)
		}
	}
}

// Nobody finds out by the answer which clients there are: it is the same, byte for byte.
func TestUnknownClientsAreNotTold(t *testing.T) {
	w := newWorld(t, nil)
	w.app(everything)
	w.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	w.register(token.Client{ID: "unreachable", JWKSURL: down.URL})
	answer := func(client string) string {
		claims := w.claims().with("iss", client).with("sub", client)
		r := w.post(w.form(forge("ES384", keys().ecB, `{"alg":"ES384","kid":"e"}`, claims.String()), everything))
		r.header.Del("Date")
		header, err := json.Marshal(r.header)
		must(t, err)
		return fmt.Sprintf("%d %s %s", r.status, header, r.raw)
	}
	want := answer("nobody")
	for _, client := range []string{"app", "secret", "unreachable"} {
		if got := answer(client); got != want {
			t.Errorf("%s: %s, want %s", client, got, want)
		}
	}
}
