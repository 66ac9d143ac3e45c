package authstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// UseOnce records that the issuer used the id, for as long as is given, and reports whether this is its first use. An
// id is kept as a digest: one of 8 KiB takes no more room than a short one. When the error is not nil nobody knows
// whether it was recorded: the id is spent, and nothing may be given for it.
func (s *Store) UseOnce(ctx context.Context, issuer, id string, keep time.Duration) (bool, error) {
	err := s.redis.SetArgs(ctx, usedPrefix+digest(issuer, id), "", redis.SetArgs{
		Mode: "NX", TTL: max(keep, time.Second),
	}).Err()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, redisclient.Unavailable("record an assertion", err)
	}
	return true, nil
}

// digest is 32 bytes that stand for the texts, whatever they hold: each goes in with its length.
func digest(texts ...string) string {
	h := sha256.New()
	for _, text := range texts {
		_ = binary.Write(h, binary.BigEndian, uint64(len(text))) // a hash takes everything
		h.Write([]byte(text))
	}
	return string(h.Sum(nil))
}
