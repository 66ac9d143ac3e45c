package token_test

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// FuzzVerify: only the signed token gives a principal; every other one is ErrInvalid.
func FuzzVerify(f *testing.F) {
	key := ecKey(elliptic.P256())
	v := verifier(f, newClock(), issuerAt(serveKeys(f, jwks(jwkOf("k", key))).URL))
	good := sign("ES256", "k", key, goodClaims())
	f.Add(good)
	for _, seed := range []string{"", "..", "null", "eyJhbGciOiJub25lIn0.e30.", "e30.e30.e30", good[:len(good)-1]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		_, err := v.Verify(t.Context(), raw)
		if (err == nil) != (raw == good) {
			t.Errorf("error %v for %q", err, raw)
		}
		if err != nil && (!errors.Is(err, token.ErrInvalid) || errors.Is(err, export.ErrUnavailable)) {
			t.Errorf("error %v is not ErrInvalid", err)
		}
	})
}

// FuzzIntrospection: only a response with active true, aud, sub and exp gives a principal, with this subject and expiry.
func FuzzIntrospection(f *testing.F) {
	for _, seed := range []string{
		active().String(), `{"active":false}`, `{"active":true}`, "", "null", active().Without("aud").String(),
		active().With("aud", []string{audience, "x"}).String(), active().With("cnf", nil).String(),
		`{"active":"true"` + active().Without("active").String()[1:], active().String() + "{}",
	} {
		f.Add(seed)
	}
	var answer string
	transport := func(*http.Request) (*http.Response, error) { return respond(answer) }
	f.Fuzz(func(t *testing.T, given string) {
		answer = given
		p, err := introspectingWith(t, newClock(), transport).Verify(t.Context(), opaque)
		if err != nil {
			if errors.Is(err, token.ErrInvalid) == errors.Is(err, export.ErrUnavailable) {
				t.Errorf("error %v is not one of ErrInvalid and ErrUnavailable", err)
			}
			return
		}
		// Not a struct: it would accept SUB for sub.
		var members map[string]any
		if err := json.Unmarshal([]byte(given), &members); err != nil {
			t.Fatalf("principal %+v of %q: %v", p, given, err)
		}
		_, aud := members["aud"]
		if want := (export.Owner{Issuer: issuerName, Subject: fmt.Sprint(members["sub"])}); members["active"] != true || !aud ||
			p.Owner != want || float64(p.Expires.Unix()) != members["exp"] {
			t.Errorf("principal %+v of %q", p, given)
		}
	})
}

// BenchmarkVerify measures the cost of verification in every request.
func BenchmarkVerify(b *testing.B) {
	rsa2048, p256, p384 := rsaKey(2048), ecKey(elliptic.P256()), ecKey(elliptic.P384())
	server := serveKeys(b, jwks(jwkOf("RS256", rsa2048), jwkOf("ES256", p256), jwkOf("ES384", p384)))
	v := verifier(b, newClock(), issuerAt(server.URL))
	for alg, key := range map[string]any{"RS256": rsa2048, "ES256": p256, "ES384": p384} {
		raw := sign(alg, alg, key, goodClaims())
		b.Run(alg, func(b *testing.B) {
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
