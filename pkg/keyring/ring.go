package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// forget is how long the private half of a key is kept after its last signature: longer than a process uses a key that it
// has read.
const forget = time.Hour

// ring is the key ring in Redis, ordered by when the keys begin to sign. Times are ms by the clock of Redis.
type ring struct {
	Keys []entry `json:"keys"`
}

// entry is one key. It signs until the next one begins.
type entry struct {
	KID    string `json:"kid"`
	Signs  int64  `json:"signs"`            // when it begins to sign
	Sealed []byte `json:"sealed,omitempty"` // the encrypted private half
	Plain  []byte `json:"plain,omitempty"`  // the private half, of a ring without secrets
	Public []byte `json:"public,omitempty"` // the public half, once the private one is forgotten
}

func parseRing(text string) (ring, error) {
	var r ring
	if text == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return r, fmt.Errorf("malformed key ring: %w", err)
	}
	inOrder := slices.IsSortedFunc(r.Keys, func(a, b entry) int { return int(max(-1, min(1, a.Signs-b.Signs))) })
	if len(r.Keys) == 0 || !inOrder || r.Keys[len(r.Keys)-1].Public != nil {
		return r, errors.New("malformed key ring: no keys, not in order, or none that can sign")
	}
	return r, nil
}

// step returns the ring for the given time, and whether it differs from r. It removes keys whose last signature is older
// than the tail, forgets the private halves of those that have not signed for an hour, and adds the next key early enough
// for every verifier to fetch it. An empty ring gets a key that signs at once: no verifier has an older set. opened are
// the keys of r; newKey makes a key that begins to sign at the given time.
func (r ring) step(now time.Time, cfg Config, opened []Key, newKey func(signs int64) (entry, error)) (ring, bool, error) {
	ms := now.UnixMilli()
	var kept []entry
	changed := false
	for i, key := range r.Keys {
		ended := func(ago time.Duration) bool {
			return i+1 < len(r.Keys) && r.Keys[i+1].Signs+ago.Milliseconds() <= ms
		}
		if ended(cfg.Tail) {
			changed = true
			continue
		}
		if cfg.TrustRedis && key.Public == nil && ended(forget) {
			public, err := opened[i].Public.Bytes()
			if err != nil {
				return ring{}, false, fmt.Errorf("public half of a signing key: %w", err)
			}
			key, changed = entry{KID: key.KID, Signs: key.Signs, Public: public}, true
		}
		kept = append(kept, key)
	}

	var signs int64
	switch {
	case len(kept) == 0:
		signs = ms
	case kept[len(kept)-1].Signs+(cfg.Rotate-cfg.Publish).Milliseconds() <= ms:
		signs = max(kept[len(kept)-1].Signs+cfg.Rotate.Milliseconds(), ms+cfg.Publish.Milliseconds())
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
// clock was set back, it is the first one with a private half: it is published, so its signatures verify.
func (r ring) signing(now time.Time) int {
	first := len(r.Keys) - 1
	for i := first; i >= 0 && r.Keys[i].Public == nil; i-- {
		if first = i; r.Keys[i].Signs <= now.UnixMilli() {
			break
		}
	}
	return first
}
