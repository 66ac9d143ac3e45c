package authstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// UseOnce records for the given time that the issuer used the id, and reports whether this is the first use. An id is stored
// as a digest, so that its length does not matter. After an error the use may have been recorded, and the caller must
// treat the id as used.
func (s *Store) UseOnce(ctx context.Context, issuer, id string, keep time.Duration) (bool, error) {
	err := s.redis.SetArgs(ctx, usedPrefix+digest(issuer, id), "", redis.SetArgs{
		Mode: "NX", TTL: max(keep, time.Second),
	}).Err()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, unavailable("record an assertion", err)
	}
	return true, nil
}

// digest hashes the texts, each with its length, so that different lists have different digests.
func digest(texts ...string) string {
	h := sha256.New()
	for _, text := range texts {
		_ = binary.Write(h, binary.BigEndian, uint64(len(text))) // a hash never fails
		h.Write([]byte(text))
	}
	return string(h.Sum(nil))
}
