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

// keySet is what of a JWKS can verify signatures.
type keySet []publicKey

type publicKey struct {
	kid string
	alg string // the only algorithm that the key is for; "" when the set does not say
	key crypto.PublicKey
}

// RSA moduli outside these bounds are too weak, or take so long to verify that a token becomes an attack.
const (
	leastModulus = 2048
	mostModulus  = 8192
)

// parseKeySet reads a JWKS. Keys in it that cannot be used or understood are passed over, as RFC 7517 section 5
// demands; what is no JWKS at all is an error.
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
			continue // RFC 7517 section 5
		}
		if key, ok := verifying(parsed); ok {
			set = append(set, key)
		}
	}
	return set, nil
}

// verifying returns the key when it is sound and published for verifying signatures.
func verifying(parsed jwk.Key) (publicKey, bool) {
	if use := parsed.KeyUsage(); use != "" && use != string(jwk.ForSignature) {
		return publicKey{}, false
	}
	if ops, there := parsed.Get(jwk.KeyOpsKey); there {
		list, ok := ops.(jwk.KeyOperationList)
		if !ok || !slices.Contains(list, jwk.KeyOpVerify) {
			return publicKey{}, false
		}
	}
	found := publicKey{kid: parsed.KeyID()}
	if _, there := parsed.Get(jwk.AlgorithmKey); there {
		found.alg = parsed.Algorithm().String()
	}
	// A published private key (jwk.RSAPrivateKey, jwk.ECDSAPrivateKey) proves nothing about who signed, and a
	// symmetric one even less.
	switch parsed.(type) {
	case jwk.RSAPublicKey:
		var key rsa.PublicKey
		if parsed.Raw(&key) != nil || key.E < 3 || key.E%2 == 0 ||
			key.N.BitLen() < leastModulus || key.N.BitLen() > mostModulus {
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

// find returns the one key that answers to the kid and fits the algorithm. A token without a kid gets the set's only
// fitting key. Two answers are none (SMART: "if more than one key is found, the verification fails").
func (s keySet) find(alg, kid string) (crypto.PublicKey, error) {
	var fitting []crypto.PublicKey
	named := false
	for _, candidate := range s {
		if kid != "" && candidate.kid != kid {
			continue
		}
		named = true
		if (candidate.alg == "" || candidate.alg == alg) && fits(alg, candidate.key) {
			fitting = append(fitting, candidate.key)
		}
	}
	switch {
	case len(fitting) == 1:
		return fitting[0], nil
	case len(fitting) > 1:
		return nil, invalid("several keys answer to it")
	case named && kid != "":
		return nil, invalid("its key is not for its algorithm")
	}
	return nil, errUnknownKey
}

// fits reports whether the key is of the type, and on the curve, that the algorithm is defined for (RFC 7518 3.1).
func fits(alg string, key crypto.PublicKey) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return alg == jwa.RS256.String() || alg == jwa.RS384.String() || alg == jwa.PS256.String()
	case *ecdsa.PublicKey:
		return alg == jwa.ES256.String() && key.Curve == elliptic.P256() ||
			alg == jwa.ES384.String() && key.Curve == elliptic.P384()
	}
	return false
}
