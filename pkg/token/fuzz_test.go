package token_test

import (
	"crypto/elliptic"
	"errors"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// FuzzVerify: whatever comes as a token, there is an answer, and only a signed one makes a principal.
func FuzzVerify(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	v := verifier(f, newClock(), issuerAt(serveKeys(f, jwks(jwkOf(f, "k", key))).URL))
	good := sign(f, "ES256", "k", key, goodClaims())
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

// BenchmarkVerify measures what every request pays.
func BenchmarkVerify(b *testing.B) {
	rsa2048, p256, p384 := rsaKey(b, 2048), ecKey(b, elliptic.P256()), ecKey(b, elliptic.P384())
	server := serveKeys(b, jwks(jwkOf(b, "RS256", rsa2048), jwkOf(b, "ES256", p256), jwkOf(b, "ES384", p384)))
	v := verifier(b, newClock(), issuerAt(server.URL))
	for alg, key := range map[string]any{"RS256": rsa2048, "ES256": p256, "ES384": p384} {
		raw := sign(b, alg, alg, key, goodClaims())
		b.Run(alg, func(b *testing.B) {
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
