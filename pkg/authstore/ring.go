package authstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// tail is how long a key is still published after it has signed its last token: as long as a token may live (5
// minutes), as a verifier's clock may be off (5 minutes at most) and as it may keep a key set (5 minutes, then the key
// that is not there any more would only be missed by a token that has ended).
const tail = 15 * time.Minute

// ring is the key ring as Redis holds it, the key that signs last at the end. Every instant is in ms by Redis' clock.
type ring struct {
	Keys []ringKeyEntry `json:"keys"`
}

// ringKeyEntry is one key. It signs from its own instant until that of the next one.
type ringKeyEntry struct {
	KID    string `json:"kid"`
	Signs  int64  `json:"signs"`  // when it begins to sign
	Sealed []byte `json:"sealed"` // the private key
}

func parseRing(text string) (ring, error) {
	var r ring
	if text == "" {
		return r, nil
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return r, fmt.Errorf("the key ring cannot be read: %w", err)
	}
	inOrder := slices.IsSortedFunc(r.Keys, func(a, b ringKeyEntry) int { return int(max(-1, min(1, a.Signs-b.Signs))) })
	if len(r.Keys) == 0 || !inOrder {
		return r, errors.New("the key ring cannot be read: no keys, or not in order")
	}
	return r, nil
}

// step brings the ring up to an instant: keys whose last token is dead go, and the next key comes so long before it
// signs that every verifier has it by then. It reports whether anything changed. A ring without keys gets one that signs
// at once: nobody holds an older set. newKey makes a key that is to sign from an instant on.
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

// signing returns the index of the key that signs at an instant: the newest whose time has come. When none's has, as
// after a clock was set back, it is the first: it is published, so its tokens are accepted.
func (r ring) signing(now time.Time) int {
	for i := len(r.Keys) - 1; i > 0; i-- {
		if r.Keys[i].Signs <= now.UnixMilli() {
			return i
		}
	}
	return 0
}
