package tokenapi_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
)

// B-15, B-18 to B-20 and B-22 to B-24: each row gets invalid_client and consumes no jti.
func TestHostileAssertions(t *testing.T) {
	trap := tokentest.ServeKeys(t, string(jwks(jwkOf("mine", keys().spare))))
	ours := tokentest.ServeKeys(t, string(jwks(jwkOf("e", keys().ec), jwkOf("twin", keys().ec), jwkOf("twin", keys().ecB),
		jwkOf("weak", keys().weak), jwkOf("small", keys().ec256), jwkOf("enc", keys().spare).With("use", "enc"),
		jwkOf("only", keys().rsa).With("alg", "RS256"), members{"kty": "oct", "kid": "oct", "k": "c2VjcmV0"})))
	f := newFixture(t, nil)
	f.app(everything)
	f.register(token.Client{ID: "byurl", JWKSURL: ours.URL})
	f.other("b")
	f.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})

	ec := func(header, payload string) string { return forge("ES384", keys().ec, header, payload) }
	signed := func(c members) string { return f.asserted(c) }
	headed := func(header string) string { return ec(header, f.claims().String()) }
	at := func(d time.Duration) int64 { return start().Add(d).Unix() }
	byURL := func(alg string, key any, header string) string {
		return forge(alg, key, header, f.of("byurl").String())
	}
	byApp := func(alg string, key any, header string) string { return forge(alg, key, header, f.claims().String()) }
	jku := func(kid, url string) string { return fmt.Sprintf(`{"alg":"ES384","kid":%q,"jku":%s}`, kid, url) }
	trapped := fmt.Sprintf("%q", trap.URL)
	genuine := tokentest.Genuine{
		Alg: "ES384", KID: "e", Key: keys().ec, Claims: f.claims(), Now: f.clock.Now(), Trap: trap.URL,
	}
	hostile := genuine.Hostile()
	maps.Copy(hostile, map[string]string{
		"B-15 an access token":             headed(`{"alg":"ES384","kid":"e","typ":"at+jwt"}`),
		"B-18 aud the FHIR base":           signed(f.claims().With("aud", audience)),
		"B-18 aud the issuer and another":  signed(f.claims().With("aud", []string{f.base, "https://else.example"})),
		"B-19 iss is not sub":              signed(f.claims().With("sub", "b")),
		"B-19 iss of another":              signed(f.claims().With("iss", "b")),
		"B-19 iss and sub numbers":         signed(f.claims().With("iss", 7).With("sub", 7)),
		"B-19 unknown client":              signed(f.of("stranger")),
		"B-19 client in capitals":          signed(f.of("APP")),
		"B-20 exp too far ahead":           signed(f.claims().With("exp", at(6*time.Minute+time.Second))),
		"B-20 exp in a year":               signed(f.claims().With("exp", at(365*24*time.Hour))),
		"B-21 jti missing":                 signed(f.claims().Without("jti")),
		"B-21 jti empty":                   signed(f.claims().With("jti", "")),
		"B-21 jti a number":                signed(f.claims().With("jti", 1)),
		"B-22 kid missing":                 headed(`{"alg":"ES384"}`),
		"B-22 kid of the other type":       headed(`{"alg":"ES384","kid":"r"}`),
		"B-22 RS384 under an EC kid":       byApp("RS384", keys().rsa, `{"alg":"RS384","kid":"e"}`),
		"B-22 two keys with the kid":       byURL("ES384", keys().ec, `{"alg":"ES384","kid":"twin"}`),
		"B-22 a weak key":                  byURL("RS384", keys().weak, `{"alg":"RS384","kid":"weak"}`),
		"B-22 ES384 with a P-256 key":      byURL("ES384", keys().ec256, `{"alg":"ES384","kid":"small"}`),
		"B-22 an encryption key":           byURL("ES384", keys().spare, `{"alg":"ES384","kid":"enc"}`),
		"B-22 a key for another alg":       byURL("RS384", keys().rsa, `{"alg":"RS384","kid":"only"}`),
		"B-22 another client's key":        f.assertedByB(f.claims()),
		"B-22 the key of another client":   signed(f.of("b")),
		"B-22 a client with a secret":      signed(f.of("secret")),
		"B-23 HS256 with an oct key":       byURL("HS256", []byte("secret"), `{"alg":"HS256","kid":"oct"}`),
		"B-23 RS256":                       byApp("RS256", keys().rsa, `{"alg":"RS256","kid":"r"}`),
		"B-23 PS384":                       byApp("PS384", keys().rsa, `{"alg":"PS384","kid":"r"}`),
		"B-23 ES256":                       byApp("ES256", keys().ec256, `{"alg":"ES256","kid":"small"}`),
		"B-24 jku of another, inline keys": byApp("ES384", keys().spare, jku("mine", trapped)),
		"B-24 jku of another":              byURL("ES384", keys().spare, jku("mine", trapped)),
		"B-24 jku of another, good key":    byURL("ES384", keys().ec, jku("e", trapped)),
		"B-24 jku with a fragment":         byURL("ES384", keys().ec, jku("e", `"`+ours.URL+`#x"`)),
		"B-24 jku a number":                byURL("ES384", keys().ec, jku("e", "7")),
		"B-24 jku empty":                   byURL("ES384", keys().ec, jku("e", `""`)),
	})
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
	if n := trap.Asked(); n != 0 {
		t.Errorf("a URL from an assertion was fetched %d times", n)
	}
	// The valid assertion that the others are derived from is still accepted: none of them has consumed its jti.
	valid := genuine.Token()
	wantToken(t, f.post(f.form(valid, everything)), everything)
	wantToken(t, f.post(f.form(signed(f.of("byurl")), everything)), everything)
	for _, part := range []string{valid[strings.LastIndexByte(valid, '.')+1:], "byurl", "stranger", `"app"`, "jti-", trap.URL} {
		if strings.Contains(f.log.String(), part) {
			t.Errorf("the log contains %q", part)
		}
	}
}

// The response does not reveal which clients exist: it is byte-identical.
func TestResponseHidesWhichClientsExist(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	f.register(token.Client{ID: "secret", SecretHash: token.HashSecret("s")})
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	f.register(token.Client{ID: "unreachable", JWKSURL: down.URL})
	response := func(client string) string {
		r := f.post(f.form(f.assertedByB(f.of(client)), everything))
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
