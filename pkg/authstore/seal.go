package authstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// leastSecret is the least length of a secret for seals, in bytes.
const leastSecret = 32

var errSeal = errors.New("the seal of a signing key does not open with the secret given")

// seal opens and closes seals with the key of one secret.
type seal struct{ aead cipher.AEAD }

func newSeal(secret string) (seal, error) {
	if len(secret) < leastSecret {
		return seal{}, fmt.Errorf("shorter than %d bytes", leastSecret)
	}
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "sluice token service: signing keys, version 1", 32)
	if err != nil {
		return seal{}, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return seal{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return seal{}, err
	}
	return seal{aead}, nil
}

// newKey makes a P-256 key. Its kid is sealed in with it: nobody can give the key of one name to another.
func (s seal) newKey(signs int64) (ringKeyEntry, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return ringKeyEntry{}, fmt.Errorf("make a signing key: %w", err)
	}
	secret, err := private.Bytes()
	if err != nil {
		return ringKeyEntry{}, fmt.Errorf("make a signing key: %w", err)
	}
	kid := strings.ToLower(rand.Text())
	sealed := s.aead.Seal(nil, nil, secret, []byte(kid)) //nolint:gosec // this AEAD makes its nonce by itself
	return ringKeyEntry{KID: kid, Signs: signs, Sealed: sealed}, nil
}

func (s seal) open(key ringKeyEntry) (*ecdsa.PrivateKey, error) {
	secret, err := s.aead.Open(nil, nil, key.Sealed, []byte(key.KID))
	if err != nil {
		return nil, errSeal
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret)
	if err != nil {
		return nil, fmt.Errorf("a signing key is none: %w", err)
	}
	return private, nil
}
