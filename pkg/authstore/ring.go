package authstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// tail is how long a key is published after its last signature: the lifetime of a token (5 minutes), plus the skew of a
// verifier's clock (at most 5 minutes), plus the age of its cached key set (5 minutes).
const tail = 15 * time.Minute

// ring is the key ring in Redis, ordered by when the keys begin to sign. Times are ms by the clock of Redis.
type ring struct {
	Keys []ringKeyEntry `json:"keys"`
}

// ringKeyEntry is one key. It signs until the next one begins.
type ringKeyEntry struct {
	KID    string `json:"kid"`
	Signs  int64  `json:"signs"`  // when it begins to sign
	Sealed []byte `json:"sealed"` // the encrypted private key
}

func parseRing(text string) (ring, error) {
	var r ring
	if text == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return r, fmt.Errorf("malformed key ring: %w", err)
	}
	inOrder := slices.IsSortedFunc(r.Keys, func(a, b ringKeyEntry) int { return int(max(-1, min(1, a.Signs-b.Signs))) })
	if len(r.Keys) == 0 || !inOrder {
		return r, errors.New("malformed key ring: no keys, or not in order")
	}
	return r, nil
}

// step returns the ring for the given time, and whether it differs from r. It removes keys whose last token has
// expired, and adds the next key early enough for every verifier to fetch it. An empty ring gets a key that signs at once:
// no verifier has an older set. newKey makes a key that begins to sign at the given time.
func (r ring) step(now time.Time, schedule Schedule, newKey func(signs int64) (ringKeyEntry, error)) (ring, bool, error) {
	ms := now.UnixMilli()
	var kept []ringKeyEntry
	for i, key := range r.Keys {
		replaced := i+1 < len(r.Keys) && r.Keys[i+1].Signs+tail.Milliseconds() <= ms
		if !replaced {
			kept = append(kept, key)
		}
	}
	changed := len(kept) < len(r.Keys)

	var signs int64
	switch {
	case len(kept) == 0:
		signs = ms
	case kept[len(kept)-1].Signs+(schedule.Rotate-schedule.Publish).Milliseconds() <= ms:
		signs = max(kept[len(kept)-1].Signs+schedule.Rotate.Milliseconds(), ms+schedule.Publish.Milliseconds())
	default:
		return ring{Keys: kept}, changed, nil
	}
	added, err := newKey(signs)
	if err != nil {
		return ring{}, false, err
	}
	return ring{Keys: append(kept, added)}, true, nil
}

// signing returns the index of the key that signs at a time: the last one that has begun. If none has, such as after a
// clock was set back, it is the first one: it is published, so its tokens verify.
func (r ring) signing(now time.Time) int {
	for i := len(r.Keys) - 1; i > 0; i-- {
		if r.Keys[i].Signs <= now.UnixMilli() {
			return i
		}
	}
	return 0
}
