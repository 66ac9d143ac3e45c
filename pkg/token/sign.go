package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
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
	alg     string
	kid     string
	private crypto.Signer // *ecdsa.PrivateKey or *rsa.PrivateKey
	signer  jws.Signer
}

// NewSigner returns the signer for a private key on P-256 (ES256) or P-384 (ES384).
func NewSigner(private *ecdsa.PrivateKey, kid string) (*Signer, error) {
	if private == nil || kid == "" {
		return nil, errors.New("signer: needs a key and a kid")
	}
	for _, alg := range []string{jwa.ES256.String(), jwa.ES384.String()} {
		if (publicKey{key: &private.PublicKey}).fits(alg) {
			return newSigner(alg, private, kid)
		}
	}
	return nil, errors.New("signer: the key is on neither P-256 nor P-384")
}

func newSigner(alg string, private crypto.Signer, kid string) (*Signer, error) {
	signer, err := jws.NewSigner(jwa.SignatureAlgorithm(alg))
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return &Signer{alg: alg, private: private, kid: kid, signer: signer}, nil
}

// ParseSigner reads a private key, a JWK with a kid, for one of the algorithms. Errors do not hold the key.
func ParseSigner(data []byte, algorithms ...string) (*Signer, error) {
	key, err := jwk.ParseKey(data)
	if err != nil {
		return nil, errors.New("not a JSON Web Key")
	}
	if key.KeyID() == "" {
		return nil, errors.New("the key has no kid")
	}
	var raw any
	if err := key.Raw(&raw); err != nil {
		return nil, errors.New("not a valid key")
	}
	public, err := jwk.PublicKeyOf(key)
	if err != nil {
		return nil, errors.New("not a valid key")
	}
	if err := public.Remove(jwk.KeyOpsKey); err != nil { // those of the private half, such as sign
		return nil, errors.New("not a valid key")
	}
	private, isPrivate := raw.(crypto.Signer)
	usable, ok := verifying(public)
	for _, alg := range algorithms {
		if isPrivate && ok && usable.fits(alg) {
			return newSigner(alg, private, key.KeyID())
		}
	}
	return nil, fmt.Errorf("not a private key for %s (RSA: 2048 to 8192 bits, ES256: P-256, ES384: P-384)",
		strings.Join(algorithms, " or "))
}

// Sign returns a compact JWS with the claims and a header of alg, kid and typ.
func (s *Signer) Sign(typ string, claims map[string]any) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": s.alg, "kid": s.kid, "typ": typ})
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := s.signer.Sign([]byte(input), s.private)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// PublicJWK is the public half of a key on an elliptic curve, as a member of a JWKS.
func (s *Signer) PublicJWK() (map[string]string, error) {
	public, ok := s.private.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("public key: not on an elliptic curve")
	}
	point, err := public.Bytes() // 4, x, y
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	half := len(point) / 2
	return map[string]string{
		"kty": "EC", "crv": public.Curve.Params().Name, "use": "sig", "alg": s.alg, "kid": s.kid,
		"x": base64.RawURLEncoding.EncodeToString(point[1 : 1+half]),
		"y": base64.RawURLEncoding.EncodeToString(point[1+half:]),
	}, nil
}

// SignAssertion returns an assertion of the client for a token endpoint. It has a random jti and expires after a minute.
func (s *Signer) SignAssertion(client, endpoint string, now time.Time) (string, error) {
	const lifetime = time.Minute
	return s.Sign("JWT", map[string]any{
		"iss": client, "sub": client, "aud": endpoint, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(lifetime).Unix(),
	})
}

// NewKey makes a key pair on P-256 or P-384 and returns the private JWK and the JWKS with its public half.
func NewKey(curve elliptic.Curve) (private, jwks []byte, err error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	signer, err := NewSigner(key, strings.ToLower(rand.Text()))
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	members, err := signer.PublicJWK()
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	secret, err := key.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	if jwks, err = json.MarshalIndent(map[string]any{"keys": []any{members}}, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	members["d"] = base64.RawURLEncoding.EncodeToString(secret)
	if private, err = json.MarshalIndent(members, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return append(private, '\n'), append(jwks, '\n'), nil
}
