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

// minSecret is the minimum length of a secret, in bytes.
const minSecret = 32

var errSeal = errors.New("a signing key cannot be decrypted with this secret")

// seal encrypts and decrypts private keys with one secret.
type seal struct{ aead cipher.AEAD }

func newSeal(secret string) (seal, error) {
	if len(secret) < minSecret {
		return seal{}, fmt.Errorf("shorter than %d bytes", minSecret)
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

// newKey makes a P-256 key. Its kid is authenticated with it, so that a key cannot be stored under another kid.
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
	sealed := s.aead.Seal(nil, nil, secret, []byte(kid)) //nolint:gosec // this AEAD generates its nonce
	return ringKeyEntry{KID: kid, Signs: signs, Sealed: sealed}, nil
}

func (s seal) open(key ringKeyEntry) (*ecdsa.PrivateKey, error) {
	secret, err := s.aead.Open(nil, nil, key.Sealed, []byte(key.KID))
	if err != nil {
		return nil, errSeal
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret)
	if err != nil {
		return nil, fmt.Errorf("malformed signing key: %w", err)
	}
	return private, nil
}
