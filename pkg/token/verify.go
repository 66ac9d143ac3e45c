package token

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// ErrInvalid says that a token is no good: the answer is 401. The text after it names the rule that the token broke,
// never any part of the token.
var ErrInvalid = errors.New("invalid token")

// Principal is who a verified token speaks for and what it may read.
type Principal struct {
	Owner   export.Owner
	Scopes  Scopes
	Expires time.Time // the exp claim; the token is accepted up to Config.Skew longer
}

// Verify returns the principal of a token, ErrInvalid when the token is no good, or export.ErrUnavailable when its
// issuer cannot say (503). What the token says of itself is checked before any key is looked for, so that a token
// which cannot pass causes no fetch.
func (v *Verifier) Verify(ctx context.Context, raw string) (Principal, error) {
	if v.opaque != nil && v.opaque.takes(raw) {
		return v.verifyOpaque(ctx, raw)
	}
	t, err := parse(raw)
	if err != nil {
		return Principal{}, err
	}
	iss, ok := v.issuers[t.claims.issuer]
	if !ok || iss.keys == nil {
		return Principal{}, invalid("unknown issuer")
	}
	verifier, ok := iss.verifiers[t.alg]
	if !ok {
		return Principal{}, invalid("algorithm not accepted")
	}
	if err := v.checkTimes(t.claims); err != nil {
		return Principal{}, err
	}
	if !intersect(t.claims.audiences, iss.audiences) {
		return Principal{}, invalid("made for another audience")
	}
	claimed, err := iss.principal(t.claims)
	if err != nil {
		return Principal{}, err
	}
	key, err := iss.keys.find(ctx, t.alg, t.kid)
	if err != nil {
		return Principal{}, fmt.Errorf("keys of issuer %q: %w", iss.name, err)
	}
	if verifier.Verify(t.signed, t.signature, key) != nil {
		return Principal{}, invalid("signature does not verify") // the library's reason adds nothing but risk
	}
	return claimed, nil
}

// verifyOpaque is Verify for a token that only its issuer can read. An answer may be up to a minute old, and times go on
// meanwhile.
func (v *Verifier) verifyOpaque(ctx context.Context, raw string) (Principal, error) {
	known, err := v.opaque.find(ctx, raw)
	if err != nil {
		return Principal{}, err
	}
	if err := v.checkTimes(known.claims); err != nil {
		return Principal{}, err
	}
	return known.principal, nil
}

func (v *Verifier) checkTimes(c claims) error {
	now := v.now()
	switch {
	case !now.Before(c.expires.Add(v.skew)):
		return invalid("expired")
	case now.Add(v.skew).Before(c.notBefore):
		return invalid("not valid yet")
	case now.Add(v.skew).Before(c.issuedAt):
		return invalid("issued in the future")
	}
	if v.maxLifetime == 0 {
		return nil
	}
	issued, slack := c.issuedAt, time.Duration(0)
	if issued.IsZero() {
		issued, slack = now, v.skew
	}
	if c.expires.Sub(issued) > v.maxLifetime+slack {
		return invalid("valid for too long")
	}
	return nil
}

func intersect(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}

func invalid(rule string) error { return fmt.Errorf("%w: %s", ErrInvalid, rule) }
