// Package tokentest builds key sets and tokens byte by byte with the standard library's cryptography, so that a verifier
// is not tested with the library that it uses. It panics on errors.
package tokentest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512 for crypto.Hash
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
)

var b64 = base64.RawURLEncoding

// Members are the members of a JSON object.
type Members map[string]any

// With returns a copy in which the member has the value.
func (m Members) With(name string, value any) Members {
	changed := maps.Clone(m)
	changed[name] = value
	return changed
}

// Without returns a copy without the member.
func (m Members) Without(name string) Members {
	changed := maps.Clone(m)
	delete(changed, name)
	return changed
}

// String returns the object as JSON.
func (m Members) String() string { return string(must(json.Marshal(m))) }

// RSA returns a new key.
func RSA(bits int) *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, bits)) }

// EC returns a new key on the curve.
func EC(curve elliptic.Curve) *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(curve, rand.Reader)) }

// JWK returns the public half of a key as a member of a JWKS.
func JWK(kid string, key crypto.Signer) Members {
	switch public := key.Public().(type) {
	case *rsa.PublicKey:
		return Members{
			"kty": "RSA", "kid": kid, "n": b64.EncodeToString(public.N.Bytes()),
			"e": b64.EncodeToString(big.NewInt(int64(public.E)).Bytes()),
		}
	case *ecdsa.PublicKey:
		point := must(public.Bytes()) // 4, x, y
		half := len(point) / 2
		return Members{
			"kty": "EC", "kid": kid, "crv": public.Curve.Params().Name,
			"x": b64.EncodeToString(point[1 : 1+half]), "y": b64.EncodeToString(point[1+half:]),
		}
	case ed25519.PublicKey:
		return Members{"kty": "OKP", "kid": kid, "crv": "Ed25519", "x": b64.EncodeToString(public)}
	}
	panic(fmt.Sprintf("no JWK for %T", key))
}

// JWKS returns a key set.
func JWKS(keys ...Members) string { return string(must(json.Marshal(map[string]any{"keys": keys}))) }

// Forge signs any header and payload with the algorithm, which may differ from the alg of the header.
func Forge(alg string, key any, header, payload string) string {
	input := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload))
	return input + "." + b64.EncodeToString(signature(alg, key, input))
}

func signature(alg string, key any, input string) []byte {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:5]]
	h := hash.New()
	h.Write([]byte(input))
	digest := h.Sum(nil)
	switch alg[:2] {
	case "RS":
		return must(rsa.SignPKCS1v15(rand.Reader, key.(*rsa.PrivateKey), hash, digest))
	case "PS":
		return must(rsa.SignPSS(rand.Reader, key.(*rsa.PrivateKey), hash, digest,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
	case "ES":
		private := key.(*ecdsa.PrivateKey)
		size := (private.Curve.Params().BitSize + 7) / 8
		r, s, err := ecdsa.Sign(rand.Reader, private, digest)
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case "HS":
		mac := hmac.New(sha256.New, key.([]byte))
		mac.Write([]byte(input))
		return mac.Sum(nil)
	}
	panic("cannot sign with " + alg)
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
