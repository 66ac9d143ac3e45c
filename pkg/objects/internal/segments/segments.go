// Package segments implements the stored form of encrypted objects: a header and segments of 64 KiB of plaintext, each
// sealed with AES-256-GCM. Ranges can be read without the bytes before them, and no unauthenticated byte is returned.
//
//	header   8 bytes  "sluice", version 1, binary logarithm of the segment size (16)
//	        32 bytes  salt, random for each object
//	segment  64 KiB of plaintext and a tag of 16 bytes; the last one may be shorter, and is empty in an empty object
//
// The key of an object is HKDF-SHA256 of the job's data key with the salt, and with the first 8 bytes of the header
// and the object's name as info. So segments of other objects and objects under other names do not open. The nonce of
// a segment is its number, 11 bytes big-endian, and 1 for the last segment or 0 for any other (the STREAM construction
// of Hoang, Reyhanitabar, Rogaway and Vizar): missing, repeated, reordered or appended segments are detected. Nonces
// cannot repeat, because each key seals one object. ADR-0008 compares this with libraries.
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
	// Size is the plaintext size of a segment in bytes; the last one may be shorter.
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

// StoredSize returns the stored size of plain bytes of plaintext.
func StoredSize(plain int64) int64 {
	return HeaderSize + plain + tagSize*max((plain+Size-1)/Size, 1)
}

// plainSize is the inverse of StoredSize. The result is unauthenticated.
func plainSize(stored int64) (int64, error) {
	body := stored - HeaderSize
	whole, rest := body/sealedSize, body%sealedSize
	switch {
	case body < tagSize, rest > 0 && rest < tagSize, rest == tagSize && whole > 0:
		return 0, errors.New("invalid size of an encrypted object")
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
