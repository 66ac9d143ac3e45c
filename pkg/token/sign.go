package token

import (
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
	alg     jwa.SignatureAlgorithm
	private any // *ecdsa.PrivateKey or *rsa.PrivateKey
	kid     string
	signer  jws.Signer
}

// NewSigner returns the signer of a private key on P-256 (ES256) or P-384 (ES384) under a kid.
func NewSigner(private *ecdsa.PrivateKey, kid string) (*Signer, error) {
	switch {
	case private == nil || kid == "":
		return nil, errors.New("signer: wants a key and a kid")
	case private.Curve == elliptic.P256():
		return newSigner(jwa.ES256, private, kid)
	case private.Curve == elliptic.P384():
		return newSigner(jwa.ES384, private, kid)
	}
	return nil, errors.New("signer: the key is on neither P-256 nor P-384")
}

func newSigner(alg jwa.SignatureAlgorithm, private any, kid string) (*Signer, error) {
	signer, err := jws.NewSigner(alg)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return &Signer{alg: alg, private: private, kid: kid, signer: signer}, nil
}

// Sign returns a compact JWS with the claims and a header of alg, kid and typ.
func (s *Signer) Sign(typ string, claims map[string]any) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": s.alg.String(), "kid": s.kid, "typ": typ})
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
func PublicJWK(public *ecdsa.PublicKey, alg, kid string) (map[string]string, error) {
	point, err := public.Bytes() // 4, x, y
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	half := len(point) / 2
	return map[string]string{
		"kty": "EC", "crv": public.Curve.Params().Name, "use": "sig", "alg": alg, "kid": kid,
		"x": base64.RawURLEncoding.EncodeToString(point[1 : 1+half]),
		"y": base64.RawURLEncoding.EncodeToString(point[1+half:]),
	}, nil
}

// ReadSigner reads a client's private key, a JWK with a kid, for RS384 or ES384. Errors never quote it.
func ReadSigner(data []byte) (*Signer, error) {
	key, err := jwk.ParseKey(data)
	if err != nil {
		return nil, errors.New("not a JSON Web Key")
	}
	if key.KeyID() == "" {
		return nil, errors.New("the key has no kid")
	}
	var private any
	var alg jwa.SignatureAlgorithm
	switch key.(type) {
	case jwk.ECDSAPrivateKey:
		alg = jwa.ES384
	case jwk.RSAPrivateKey:
		alg = jwa.RS384
	default:
		return nil, errors.New("not a private key for RS384 or ES384")
	}
	if err := key.Raw(&private); err != nil {
		return nil, errors.New("not a sound private key")
	}
	public, err := jwk.PublicKeyOf(key)
	if err != nil {
		return nil, errors.New("not a sound private key")
	}
	// A key_ops of the private half says sign, and is no business of the public one.
	if err := public.Remove(jwk.KeyOpsKey); err != nil {
		return nil, errors.New("not a sound private key")
	}
	usable, ok := verifying(public)
	if !ok || !fits(alg.String(), usable.key) || usable.alg != "" && usable.alg != alg.String() {
		return nil, errors.New("not a private key for RS384 (2048 to 8192 bits) or ES384 (P-384)")
	}
	return newSigner(alg, private, key.KeyID())
}

// SignAssertion returns an assertion of the client for the token endpoint at the URL, with a jti of its own, that is good
// for a minute from now on.
func (s *Signer) SignAssertion(client, endpoint string, now time.Time) (string, error) {
	const life = time.Minute
	return s.Sign("JWT", map[string]any{
		"iss": client, "sub": client, "aud": endpoint, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(life).Unix(),
	})
}

// NewClientKey makes a key pair on P-384 for a client and returns the private JWK, which stays with the client, and the
// JWKS to register.
func NewClientKey() (private, jwks []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	kid := strings.ToLower(rand.Text())
	public, err := PublicJWK(&key.PublicKey, jwa.ES384.String(), kid)
	if err != nil {
		return nil, nil, err
	}
	secret, err := key.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	if jwks, err = json.MarshalIndent(map[string]any{"keys": []any{public}}, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	public["d"] = base64.RawURLEncoding.EncodeToString(secret)
	if private, err = json.MarshalIndent(public, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return append(private, '\n'), append(jwks, '\n'), nil
}
