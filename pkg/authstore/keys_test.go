package authstore_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/keyring"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

const (
	secret = "the secret of these tests, long enough"
	other  = "another secret, as long as it has to be"
)

var daily = authstore.Schedule{Rotate: 24 * time.Hour, Publish: 15 * time.Minute}

// replica opens the key ring with its own connection.
func replica(t *testing.T, url string, c *testenv.Clock, secrets ...string) *keyring.Keys {
	t.Helper()
	keys, err := open(t, url, c.Now).Keys(daily, secrets[0], secrets[1:]...)
	must(t, err)
	return keys
}

func current(t *testing.T, keys *keyring.Keys) (string, []string) {
	t.Helper()
	signing, published, err := keys.Current(t.Context())
	must(t, err)
	var kids []string
	for _, key := range published {
		kids = append(kids, key.KID)
	}
	if signing.Private == nil || !slices.Contains(kids, signing.KID) {
		t.Fatalf("%s signs and is not among the published %v", signing.KID, kids)
	}
	return signing.KID, kids
}

// Three days of the ring, minute by minute: every key is published 15 minutes before it signs and 15 minutes afterwards,
// signs for a day, and at most two keys are published.
func TestRotation(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		c := newClock()
		keys := replica(t, url, c, secret)
		first, kids := current(t, keys)
		if len(kids) != 1 {
			t.Fatalf("%d keys at the first start", len(kids))
		}
		published := map[string]time.Time{first: c.Now()} // when first published
		var signed []string
		began := map[string]time.Time{}
		ended := map[string]time.Time{}
		for range 3 * 24 * 60 {
			signing, kids := current(t, keys)
			if len(kids) > 2 {
				t.Fatalf("%d keys are published", len(kids))
			}
			for _, kid := range kids {
				if published[kid].IsZero() {
					published[kid] = c.Now()
				}
			}
			if len(signed) == 0 || signed[len(signed)-1] != signing {
				if len(signed) > 0 {
					last := signed[len(signed)-1]
					ended[last] = c.Now()
					if d := c.Now().Sub(began[last]); d != 24*time.Hour {
						t.Errorf("a key has signed for %s", d)
					}
					if d := c.Now().Sub(published[signing]); d < 15*time.Minute {
						t.Errorf("a key signs %s after it was published", d)
					}
				}
				signed = append(signed, signing)
				began[signing] = c.Now()
			}
			for kid, at := range ended {
				if d := c.Now().Sub(at); slices.Contains(kids, kid) != (d < 15*time.Minute) {
					t.Errorf("%s after its last token, a key is published: %v", d, slices.Contains(kids, kid))
				}
			}
			c.Advance(time.Minute)
		}
		if len(signed) != 3 {
			t.Errorf("%d keys have signed in three days", len(signed))
		}
	})
}

// After a long stop the old key signs until the next one has been published long enough.
func TestRotationAfterALongStop(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		c := newClock()
		keys := replica(t, url, c, secret)
		first, _ := current(t, keys)
		c.Advance(1000 * time.Hour)
		if signing, kids := current(t, keys); signing != first || len(kids) != 2 {
			t.Errorf("%s signs of %v, want %s and a second one", signing, kids, first)
		}
		c.Advance(15 * time.Minute)
		if signing, _ := current(t, keys); signing == first {
			t.Error("the old key still signs")
		}
	})
}

// Replicas that rotate at the same time add one key.
func TestConcurrentReplicasAddOneKey(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		c := newClock()
		for round := 1; round <= 2; round++ {
			var mu sync.Mutex
			seen := map[string]bool{}
			var all sync.WaitGroup
			for range 8 {
				keys := replica(t, url, c, secret)
				all.Go(func() {
					_, published, err := keys.Current(t.Context())
					if err != nil && !errors.Is(err, export.ErrUnavailable) { // too many conflicts: the caller retries
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					for _, key := range published {
						seen[key.KID] = true
					}
				})
			}
			all.Wait()
			if len(seen) != round {
				t.Errorf("%d keys in round %d", len(seen), round)
			}
			c.Advance(24*time.Hour - 15*time.Minute)
		}
	})
}

// The private keys in Redis cannot be used without the secret.
func TestSeals(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		c := newClock()
		signing, _, err := replica(t, url, c, secret).Current(t.Context())
		must(t, err)
		private, err := signing.Private.Bytes()
		must(t, err)
		text, err := raw(t, url).Get(t.Context(), "sluice:auth:keys").Bytes()
		must(t, err)
		if bytes.Contains(text, private) || !bytes.Contains(text, []byte(signing.KID)) {
			t.Errorf("the ring has the key in plaintext, or is not the ring: %s", text)
		}
		for name, strange := range map[string]*keyring.Keys{
			"another secret": replica(t, url, c, other), "another one": replica(t, url, c, other, other+"x"),
		} {
			if _, _, err := strange.Current(t.Context()); err == nil || errors.Is(err, export.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// A replica with another secret does not change the ring, even when a rotation is due.
		c.Advance(48 * time.Hour)
		if _, _, err := replica(t, url, c, other).Current(t.Context()); err == nil {
			t.Error("the ring opens with another secret")
		}
		after, err := raw(t, url).Get(t.Context(), "sluice:auth:keys").Bytes()
		must(t, err)
		if !bytes.Equal(text, after) {
			t.Error("a replica with another secret has changed the ring")
		}
		// A key does not decrypt under another kid.
		renamed := strings.Replace(string(text), signing.KID, strings.Repeat("a", len(signing.KID)), 1)
		must(t, raw(t, url).Set(t.Context(), "sluice:auth:keys", renamed, 0).Err())
		if _, _, err := replica(t, url, c, secret).Current(t.Context()); err == nil {
			t.Error("a key decrypts under another kid")
		}
		// A writer of Redis cannot add a key, whose tokens would verify.
		plain := fmt.Sprintf(`{"keys":[{"kid":"a","signs":1,"plain":%q}]}`, base64.StdEncoding.EncodeToString(private))
		half, err := signing.Public.Bytes()
		must(t, err)
		public := strings.Replace(string(text), `[`, fmt.Sprintf(`[{"kid":"a","signs":1,"public":%q},`,
			base64.StdEncoding.EncodeToString(half)), 1)
		for _, broken := range []string{"x", "{}", `{"keys":[]}`, `{"keys":[{"kid":"b","signs":2},{"kid":"a","signs":1}]}`, plain, public} {
			must(t, raw(t, url).Set(t.Context(), "sluice:auth:keys", broken, 0).Err())
			if _, _, err := replica(t, url, c, secret).Current(t.Context()); err == nil {
				t.Errorf("the ring %s is accepted", broken)
			}
		}
	})
}

// The secret is changed in the three steps of docs/auth.md while replicas with both secrets run.
func TestSecretChange(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		c := newClock()
		first, _ := current(t, replica(t, url, c, secret))
		knowsBoth, changed := replica(t, url, c, secret, other), replica(t, url, c, other, secret)
		for range 4 {
			c.Advance(12 * time.Hour)
			a, aKids := current(t, changed)
			b, bKids := current(t, knowsBoth)
			if a != b || !slices.Equal(aKids, bKids) {
				t.Errorf("one signs with %s, the other with %s", a, b)
			}
		}
		c.Advance(24 * time.Hour)
		for range 3 { // removes every key that the first secret encrypted
			current(t, changed)
			c.Advance(24 * time.Hour)
		}
		current(t, changed)
		c.Advance(time.Hour)
		current(t, changed)
		if last, _ := current(t, replica(t, url, c, other)); last == first {
			t.Error("the first key still signs")
		}
	})
}

func TestKeysRefuses(t *testing.T) {
	store := open(t, "redis://127.0.0.1:1", nil)
	for name, test := range map[string]struct {
		schedule authstore.Schedule
		secret   string
	}{
		"a short secret":         {daily, "short"},
		"no secret":              {daily, ""},
		"rotates too often":      {authstore.Schedule{Rotate: time.Minute, Publish: 15 * time.Minute}, secret},
		"publishes too late":     {authstore.Schedule{Rotate: time.Hour, Publish: time.Minute}, secret},
		"publishes far too soon": {authstore.Schedule{Rotate: time.Hour, Publish: time.Hour}, secret},
	} {
		if _, err := store.Keys(test.schedule, test.secret); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := store.Keys(daily, secret, "short"); err == nil {
		t.Error("a short previous secret: accepted")
	}
}
