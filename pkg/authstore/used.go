package authstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// UseOnce records for the given time that the issuer used the id, and reports whether this is the first use. An id is
// stored as a digest, so that its length does not matter. After an error the use may have been recorded, and the caller
// must treat the id as used.
func (s *Store) UseOnce(ctx context.Context, issuer, id string, keep time.Duration) (bool, error) {
	key, use := usedPrefix+digest(issuer, id), rand.Text()
	err := s.redis.SetArgs(ctx, key, use, redis.SetArgs{Mode: "NX", TTL: max(keep, time.Second)}).Err()
	recorded := use
	if errors.Is(err, redis.Nil) {
		// The client repeats a command whose answer was lost, so this very use may be the recorded one.
		if recorded, err = s.redis.Get(ctx, key).Result(); errors.Is(err, redis.Nil) { // it has expired since
			return false, nil
		}
	}
	if err != nil {
		return false, redisclient.Unavailable("record an assertion", err)
	}
	return recorded == use, nil
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
