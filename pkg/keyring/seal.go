package keyring

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

// seal encrypts and decrypts private keys with one secret. The zero seal stores them in plaintext.
type seal struct{ aead cipher.AEAD }

func newSeal(secret, label string) (seal, error) {
	if len(secret) < minSecret {
		return seal{}, fmt.Errorf("shorter than %d bytes", minSecret)
	}
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, label, 32)
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

// CheckSecret returns an error for a secret that cannot encrypt signing keys.
func CheckSecret(secret string) error {
	_, err := newSeal(secret, "")
	return err
}

// newKey makes a P-256 key. Its kid is authenticated with it, so that a key cannot be stored under another kid.
func (s seal) newKey(signs int64) (entry, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return entry{}, fmt.Errorf("make a signing key: %w", err)
	}
	return s.store(strings.ToLower(rand.Text()), signs, private)
}

// store returns the entry of a key.
func (s seal) store(kid string, signs int64, private *ecdsa.PrivateKey) (entry, error) {
	secret, err := private.Bytes()
	if err != nil {
		return entry{}, fmt.Errorf("encode a signing key: %w", err)
	}
	stored := entry{KID: kid, Signs: signs}
	if s.aead == nil {
		stored.Plain = secret
	} else {
		stored.Sealed = s.aead.Seal(nil, nil, secret, []byte(kid)) //nolint:gosec // this AEAD generates its nonce
	}
	return stored, nil
}

// open returns the private half of an entry. The zero seal opens what is in plaintext, the others what is encrypted.
func (s seal) open(key entry) (*ecdsa.PrivateKey, error) {
	secret := key.Plain
	if (s.aead == nil) != (key.Plain != nil) {
		return nil, errSeal
	}
	if s.aead != nil {
		var err error
		if secret, err = s.aead.Open(nil, nil, key.Sealed, []byte(key.KID)); err != nil {
			return nil, errSeal
		}
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret)
	if err != nil {
		return nil, fmt.Errorf("malformed signing key: %w", err)
	}
	return private, nil
}
