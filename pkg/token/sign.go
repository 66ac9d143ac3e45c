package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// Signer signs with one private key. Its methods may be called from any goroutine.
type Signer struct {
	alg     jwa.SignatureAlgorithm
	kid     string
	private crypto.Signer // *ecdsa.PrivateKey or *rsa.PrivateKey
}

// NewSigner returns the signer for a private key on P-256 (ES256) or P-384 (ES384).
func NewSigner(private *ecdsa.PrivateKey, kid string) (*Signer, error) {
	if private == nil || kid == "" {
		return nil, errors.New("signer: needs a key and a kid")
	}
	for _, alg := range []jwa.SignatureAlgorithm{jwa.ES256, jwa.ES384} {
		if (publicKey{key: &private.PublicKey}).fits(alg.String()) {
			return &Signer{alg: alg, private: private, kid: kid}, nil
		}
	}
	return nil, errors.New("signer: the key is on neither P-256 nor P-384")
}

// ParseSigner reads a private key, a JWK with a kid, for one of the algorithms. Errors do not contain the key.
func ParseSigner(data []byte, algorithms ...string) (*Signer, error) {
	key, err := jwk.ParseKey(data)
	if err != nil {
		return nil, errors.New("not a JSON Web Key")
	}
	if key.KeyID() == "" {
		return nil, errors.New("the key has no kid")
	}
	var raw any
	public, err := jwk.PublicKeyOf(key)
	// The public half still has the key_ops of the private key, such as sign.
	if err != nil || key.Raw(&raw) != nil || public.Remove(jwk.KeyOpsKey) != nil {
		return nil, errors.New("not a valid key")
	}
	private, isPrivate := raw.(crypto.Signer)
	usable, ok := verifying(public)
	for _, alg := range algorithms {
		if isPrivate && ok && usable.fits(alg) {
			return &Signer{alg: jwa.SignatureAlgorithm(alg), private: private, kid: key.KeyID()}, nil
		}
	}
	return nil, fmt.Errorf("not a private key for %s (RSA: 2048 to 8192 bits, ES256: P-256, ES384: P-384)",
		strings.Join(algorithms, " or "))
}

// Sign returns a compact JWS with the claims and a header of alg, kid and typ.
func (s *Signer) Sign(typ string, claims map[string]any) (string, error) {
	header := jws.NewHeaders()
	payload, err := json.Marshal(claims)
	err = errors.Join(err, header.Set(jws.TypeKey, typ), header.Set(jws.KeyIDKey, s.kid))
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	signed, err := jws.Sign(payload, jws.WithKey(s.alg, s.private, jws.WithProtectedHeaders(header)))
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return string(signed), nil
}

// PublicJWK returns the public half of the key, as a member of a JWKS.
func (s *Signer) PublicJWK() (json.RawMessage, error) {
	return keyJSON(s.private.Public(), s.kid, s.alg)
}

// PublicJWK returns a public key on P-256 as a member of a JWKS.
func PublicJWK(public *ecdsa.PublicKey, kid string) (json.RawMessage, error) {
	return keyJSON(public, kid, jwa.ES256)
}

// keyJSON returns one half of a key as JSON.
func keyJSON(half any, kid string, alg jwa.SignatureAlgorithm) (json.RawMessage, error) {
	key, err := jwk.FromRaw(half)
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	for name, value := range map[string]any{
		jwk.KeyUsageKey: jwk.ForSignature, jwk.AlgorithmKey: alg, jwk.KeyIDKey: kid,
	} {
		if err := key.Set(name, value); err != nil {
			return nil, fmt.Errorf("write key: %w", err)
		}
	}
	return json.Marshal(key)
}

// SignAssertion returns an assertion of the client for a token endpoint. It has a random jti and expires after a minute.
func (s *Signer) SignAssertion(client, endpoint string, now time.Time) (string, error) {
	const lifetime = time.Minute
	return s.Sign("JWT", map[string]any{
		"iss": client, "sub": client, "aud": endpoint, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(lifetime).Unix(),
	})
}

// NewKey generates a key pair on P-256 or P-384 and returns the private JWK and the JWKS with its public half.
func NewKey(curve elliptic.Curve) (private, jwks []byte, err error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	signer, err := NewSigner(key, strings.ToLower(rand.Text()))
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	secret, err := keyJSON(key, signer.kid, signer.alg)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	public, err := signer.PublicJWK()
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	private, err1 := json.MarshalIndent(secret, "", "  ")
	jwks, err2 := json.MarshalIndent(map[string]any{"keys": []any{public}}, "", "  ")
	return append(private, '\n'), append(jwks, '\n'), errors.Join(err1, err2)
}
