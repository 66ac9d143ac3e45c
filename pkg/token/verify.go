package token

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Principal is the owner of a verified token and what the token may read.
type Principal struct {
	Owner   export.Owner
	Scopes  Scopes
	Expires time.Time // the exp claim; the token is accepted for a minute longer
}

// Verify returns the principal of a token, ErrInvalid when the token is refused, or export.ErrUnavailable when its issuer
// cannot be reached (503). It checks the claims before it looks up the key, so that a token that is refused anyway
// causes no fetch.
func (v *Verifier) Verify(ctx context.Context, raw string) (Principal, error) {
	if v.opaque != nil && v.opaque.applies(raw) {
		return v.verifyOpaque(ctx, raw)
	}
	t, err := parse(raw, "jwt", "at+jwt")
	if err != nil {
		return Principal{}, err
	}
	iss, ok := v.issuers[t.claims.issuer]
	if !ok || iss.keys == nil {
		return Principal{}, invalid(RuleIssuer, "unknown issuer")
	}
	if !slices.Contains(iss.Algorithms, t.alg) {
		return Principal{}, invalid(RuleAlgorithm, "algorithm not accepted")
	}
	if err := t.claims.check(v.now()); err != nil {
		return Principal{}, err
	}
	if !intersect(t.claims.audiences, iss.Audiences) {
		return Principal{}, invalid(RuleAudience, "issued for another audience")
	}
	claimed, err := iss.principal(t.claims)
	if err != nil {
		return Principal{}, err
	}
	key, err := iss.keys.find(ctx, t.alg, t.kid)
	if err != nil {
		return Principal{}, fmt.Errorf("keys of issuer %q: %w", iss.Name, err)
	}
	if err := t.verify(key); err != nil {
		return Principal{}, err
	}
	return claimed, nil
}

// verifyOpaque verifies a token by introspection. It checks the times at each use, because the verdict may be cached.
func (v *Verifier) verifyOpaque(ctx context.Context, raw string) (Principal, error) {
	found, err := v.opaque.find(ctx, raw)
	if err != nil {
		return Principal{}, err
	}
	if err := found.claims.check(v.now()); err != nil {
		return Principal{}, err
	}
	return found.principal, nil
}

func intersect(a, b []string) bool {
	return slices.ContainsFunc(a, func(x string) bool { return slices.Contains(b, x) })
}
