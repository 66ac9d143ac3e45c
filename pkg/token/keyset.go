package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"slices"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
)

// keySet holds the keys of a JWKS that can verify signatures.
type keySet []publicKey

type publicKey struct {
	kid string
	alg string // the only algorithm of the key; "" for any that fits
	key crypto.PublicKey
}

// Limits of an RSA modulus, in bits. Shorter keys are weak; longer keys make verification slow enough for an attack.
const (
	minModulus = 2048
	maxModulus = 8192
)

// errUnknownKey is the ErrInvalid after which a newer key set is fetched, because it may have the key.
var errUnknownKey = invalid(RuleKey, "no such key")

// parseKeySet reads a JWKS. It skips keys that cannot be used or understood, as RFC 7517 section 5 requires.
func parseKeySet(data []byte) (keySet, error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil || document.Keys == nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	set := make(keySet, 0, len(document.Keys))
	for _, raw := range document.Keys {
		parsed, err := jwk.ParseKey(raw)
		if err != nil {
			continue
		}
		if key, ok := verifying(parsed); ok {
			set = append(set, key)
		}
	}
	return set, nil
}

// verifying returns the key if it is valid and published for verifying signatures.
func verifying(parsed jwk.Key) (publicKey, bool) {
	if use := parsed.KeyUsage(); use != "" && use != string(jwk.ForSignature) {
		return publicKey{}, false
	}
	if ops, present := parsed.Get(jwk.KeyOpsKey); present {
		list, ok := ops.(jwk.KeyOperationList)
		if !ok || !slices.Contains(list, jwk.KeyOpVerify) {
			return publicKey{}, false
		}
	}
	found := publicKey{kid: parsed.KeyID()}
	if _, present := parsed.Get(jwk.AlgorithmKey); present {
		found.alg = parsed.Algorithm().String()
	}
	// A published private key (jwk.RSAPrivateKey, jwk.ECDSAPrivateKey) or a symmetric one is refused: anyone could have
	// signed with it.
	switch parsed.(type) {
	case jwk.RSAPublicKey:
		var key rsa.PublicKey
		if parsed.Raw(&key) != nil || key.E < 3 || key.E%2 == 0 ||
			key.N.BitLen() < minModulus || key.N.BitLen() > maxModulus {
			return publicKey{}, false
		}
		found.key = &key
	case jwk.ECDSAPublicKey:
		var key ecdsa.PublicKey
		if parsed.Raw(&key) != nil {
			return publicKey{}, false
		}
		if _, err := key.ECDH(); err != nil { // not a point on its curve
			return publicKey{}, false
		}
		found.key = &key
	default:
		return publicKey{}, false
	}
	return found, true
}

// find returns the one key that has the kid and fits the algorithm. A token without a kid gets the set's only fitting key.
// Two such keys are refused (SMART: "if more than one key is found, the verification fails"). Errors are ErrInvalid.
func (s keySet) find(alg, kid string) (crypto.PublicKey, error) {
	var fitting []crypto.PublicKey
	named := false
	for _, candidate := range s {
		if kid != "" && candidate.kid != kid {
			continue
		}
		named = true
		if candidate.fits(alg) {
			fitting = append(fitting, candidate.key)
		}
	}
	switch {
	case len(fitting) == 1:
		return fitting[0], nil
	case len(fitting) > 1:
		return nil, invalid(RuleKey, "several keys fit")
	case named && kid != "":
		return nil, invalid(RuleKey, "the key is not for the algorithm")
	}
	return nil, errUnknownKey
}

// fits reports whether the key can be used with the algorithm: its own alg, if any, is the same, and its type and curve
// are those of RFC 7518 section 3.1.
func (k publicKey) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		return alg == jwa.RS256.String() || alg == jwa.RS384.String() || alg == jwa.PS256.String()
	case *ecdsa.PublicKey:
		return alg == jwa.ES256.String() && key.Curve == elliptic.P256() ||
			alg == jwa.ES384.String() && key.Curve == elliptic.P384()
	}
	return false
}
