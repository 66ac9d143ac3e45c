package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/big"
	"strings"

	"github.com/lestrrat-go/jwx/v2/jwa"
)

// Detached signs a stream of any length: a JWS in compact form without its payload (RFC 7515 appendix F). Write the
// payload, then call Signature. It keeps a hash of what was written, not the payload, which the JOSE library would need.
type Detached struct {
	signer  *Signer
	input   signingInput
	protect string // the encoded header
}

// ManifestType is the typ of the signature of a manifest. Nothing else is signed with its key.
const ManifestType = "sluice-manifest"

// half is the bytes of each of the two numbers of a signature on P-256 (RFC 7518 section 3.4).
const half = 32

// Detach returns a Detached whose header has alg, kid and typ. The key must be on P-256.
func (s *Signer) Detach(typ string) (*Detached, error) {
	if s.alg != jwa.ES256 {
		return nil, fmt.Errorf("sign: the key is for %s, not ES256", s.alg)
	}
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		KID string `json:"kid"`
		Typ string `json:"typ"`
	}{s.alg.String(), s.kid, typ})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	d := &Detached{signer: s, protect: base64.RawURLEncoding.EncodeToString(header)}
	d.input = newSigningInput(d.protect)
	return d, nil
}

// Write adds to the payload. It never fails.
func (d *Detached) Write(p []byte) (int, error) { return d.input.Write(p) }

// Signature ends the payload and returns the JWS, as in "eyJ...fQ..MEUC...", of about 200 characters.
func (d *Detached) Signature() (string, error) {
	sum, err := d.input.sum()
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	der, err := d.signer.private.Sign(rand.Reader, sum, crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	var numbers struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &numbers); err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	raw := make([]byte, 2*half)
	numbers.R.FillBytes(raw[:half])
	numbers.S.FillBytes(raw[half:])
	return d.protect + ".." + base64.RawURLEncoding.EncodeToString(raw), nil
}

// VerifyDetached checks the JWS of Detached.Signature over a payload, of which it keeps nothing, and returns the kid of the
// key. jwks is the key set, typ the typ that the header must have. Errors are ErrInvalid, or of the reader.
func VerifyDetached(signature string, jwks []byte, typ string, payload io.Reader) (kid string, err error) {
	parts := strings.Split(signature, ".")
	if len(signature) > maxToken || len(parts) != 3 || parts[1] != "" {
		return "", invalid(RuleMalformed, "not a detached JWS")
	}
	header, err1 := decodeSegment(parts[0])
	raw, err2 := decodeSegment(parts[2])
	if err := errors.Join(err1, err2); err != nil {
		return "", invalid(RuleMalformed, "not a detached JWS")
	}
	var t parsed
	if err := t.readHeader(header); err != nil {
		return "", err
	}
	switch {
	case t.alg != jwa.ES256.String() || len(raw) != 2*half:
		return "", invalid(RuleAlgorithm, "not ES256")
	case t.typ != typ:
		return "", invalid(RuleKind, "typ is not "+typ)
	case t.kid == "":
		return "", invalid(RuleKey, "no kid")
	}
	keys, err := parseKeySet(jwks)
	if err != nil {
		return "", invalid(RuleKey, err.Error())
	}
	found, err := keys.find(t.alg, t.kid)
	if err != nil {
		return "", err
	}
	input := newSigningInput(parts[0])
	if _, err := io.Copy(input, payload); err != nil {
		return "", err
	}
	sum, err := input.sum()
	if err != nil {
		return "", err
	}
	key, ok := found.(*ecdsa.PublicKey) // always: it fits the algorithm
	r, n := new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])
	if !ok || !ecdsa.Verify(key, sum, r, n) {
		return "", invalid(RuleSignature, "signature does not verify")
	}
	return t.kid, nil
}

// signingInput hashes what a JWS signs: the encoded header, a dot, and the encoded payload (RFC 7515 section 5.1).
type signingInput struct {
	hash    hash.Hash
	encoder io.WriteCloser
}

func newSigningInput(header string) signingInput {
	sum := sha256.New()
	sum.Write([]byte(header + ".")) // a hash never fails
	return signingInput{hash: sum, encoder: base64.NewEncoder(base64.RawURLEncoding, sum)}
}

func (i signingInput) Write(p []byte) (int, error) { return i.encoder.Write(p) }

func (i signingInput) sum() ([]byte, error) {
	err := i.encoder.Close()
	return i.hash.Sum(nil), err
}
