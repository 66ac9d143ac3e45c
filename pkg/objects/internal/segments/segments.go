// Package segments is the form that an encrypted object is stored in: a header and segments of 64 KiB of plaintext, each
// sealed by AES-256-GCM, so that a range is read without what lies before it and no byte comes out unauthenticated.
//
//	header   8 bytes  "sluice", version 1, binary logarithm of the segment size (16)
//	        32 bytes  salt, random for each object
//	segment  64 KiB of plaintext and a tag of 16 bytes; the last one may be shorter, and is empty in an empty object
//
// The key of an object is HKDF-SHA256 of its job's data key, with the salt, and with the first 8 bytes of the header and
// the object's name as info. So a segment opens in no other object, and an object under no other name. The nonce of a
// segment is its number, 11 bytes big-endian, and 1 for the last segment or 0 for any other (the STREAM construction of
// Hoang, Reyhanitabar, Rogaway and Vizar): segments that are missing, repeated, in another order or behind the end do not
// open. Nonces cannot repeat, because each key seals one object.
//
// It does no I/O of its own and knows neither where objects are nor where keys come from.
package segments

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// KeySize is the size of a data key in bytes.
	KeySize = 32
	// Size is how many bytes of plaintext a segment holds; the last one may hold fewer.
	Size = 1 << 16
	// HeaderSize is the size of the header in bytes.
	HeaderSize = prefixSize + saltSize

	tagSize    = 16
	sealedSize = Size + tagSize
	saltSize   = 32
	nonceSize  = 12

	prefix     = "sluice\x01\x10"
	prefixSize = 8
)

// StoredSize is the size of the stored form of so many bytes of plaintext.
func StoredSize(plain int64) int64 {
	return HeaderSize + plain + tagSize*max((plain+Size-1)/Size, 1)
}

// plainSize is how many bytes of plaintext an object of that stored size holds, if it is what it claims to be.
func plainSize(stored int64) (int64, error) {
	body := stored - HeaderSize
	whole, rest := body/sealedSize, body%sealedSize
	switch {
	case body < tagSize, rest > 0 && rest < tagSize, rest == tagSize && whole > 0:
		return 0, errors.New("its size is none that an encrypted object can have")
	case rest > 0:
		return whole*Size + rest - tagSize, nil
	}
	return whole * Size, nil
}

// objectKey returns the cipher of one object. The salt is the rest of the header.
func objectKey(dataKey, salt []byte, name string) (cipher.AEAD, error) {
	if len(dataKey) != KeySize {
		return nil, fmt.Errorf("the data key has %d bytes, not %d", len(dataKey), KeySize)
	}
	key, err := hkdf.Key(sha256.New, dataKey, salt, prefix+name, KeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// nonce writes the nonce of a segment into n.
func nonce(n *[nonceSize]byte, segment int64, last bool) {
	binary.BigEndian.PutUint64(n[3:], uint64(segment)) //nolint:gosec // sizes are not negative
	n[nonceSize-1] = 0
	if last {
		n[nonceSize-1] = 1
	}
}
