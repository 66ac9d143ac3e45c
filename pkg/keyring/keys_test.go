package keyring_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/keyring"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// The ring with secrets alone is tested by pkg/authstore.

const (
	day    = 24 * time.Hour
	secret = "the secret of these tests, long enough"
	other  = "another secret, as long as it has to be"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func connect(t *testing.T) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(testenv.Redis(t))
	must(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { must(t, client.Close()) })
	return client
}

// open returns a ring that trusts Redis: keys sign for a week and are published for thirty days.
func open(t *testing.T, client *redis.Client, c *testenv.Clock, secrets ...string) *keyring.Keys {
	t.Helper()
	keys, err := keyring.New(client, keyring.Config{
		Name: "ring", Label: "test", Rotate: 7 * day, Publish: time.Hour, Tail: 30 * day, Secrets: secrets, TrustRedis: true,
		Now: c.Now,
	})
	must(t, err)
	return keys
}

func newClock() *testenv.Clock { return testenv.NewClock(time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)) }

func kids(keys []keyring.Key) (all []string) {
	for _, key := range keys {
		all = append(all, key.KID)
	}
	return all
}

// Private halves are removed an hour after the last signature, and public ones stay published until the tail has passed.
func TestPublicHalvesOutliveThePrivateOnes(t *testing.T) {
	for name, secrets := range map[string][]string{"encrypted": {secret}, "in plaintext": nil} {
		t.Run(name, func(t *testing.T) {
			client, c := connect(t), newClock()
			keys := open(t, client, c, secrets...)
			last := map[string]time.Time{} // when a key last signed
			firsts := map[string][]byte{}  // private halves
			for range 60 * 24 {
				signing, published, err := keys.Current(t.Context())
				must(t, err)
				last[signing.KID] = c.Now()
				if firsts[signing.KID], err = signing.Private.Bytes(); err != nil {
					t.Fatal(err)
				}
				for kid, at := range last {
					if ago := c.Now().Sub(at); slices.Contains(kids(published), kid) != (ago <= 30*day) {
						t.Fatalf("%s after its last signature, a key is published: %v", ago, ago > 30*day)
					}
				}
				for _, key := range published {
					if ago := c.Now().Sub(last[key.KID]); !last[key.KID].IsZero() && (key.Private == nil) != (ago > time.Hour) {
						t.Fatalf("%s after its last signature, the private half is there: %v", ago, key.Private != nil)
					}
				}
				c.Advance(time.Hour)
			}
			if len(last) != 9 {
				t.Errorf("%d keys have signed in 60 days", len(last))
			}
			text, err := client.Get(t.Context(), "ring").Bytes()
			must(t, err)
			var stored struct {
				Keys []struct{ Sealed, Plain []byte }
			}
			must(t, json.Unmarshal(text, &stored))
			held := 0
			for _, key := range stored.Keys {
				if len(key.Sealed)+len(key.Plain) > 0 {
					held++
				}
				if (len(key.Plain) > 0) && secrets != nil {
					t.Error("a private half is in plaintext")
				}
				for _, private := range firsts {
					if secrets != nil && bytes.Contains(key.Sealed, private) {
						t.Error("a private half is in plaintext")
					}
				}
			}
			if held > 2 {
				t.Errorf("%d private halves are stored", held)
			}
		})
	}
}

// Secrets can be introduced and replaced while replicas run. Without the secret of the key that signs, the ring is not used
// and not changed; once that key has signed its last, nothing needs its secret.
func TestSecretsChange(t *testing.T) {
	client, c := connect(t), newClock()
	first, _, err := open(t, client, c).Current(t.Context())
	must(t, err)
	keys := open(t, client, c, secret)
	if again, _, err := keys.Current(t.Context()); err != nil || again.KID != first.KID {
		t.Fatalf("a key in plaintext is not used with a secret: %v", err)
	}
	for range 8 {
		_, _, err := keys.Current(t.Context())
		must(t, err)
		c.Advance(day)
	}
	before := client.Get(t.Context(), "ring").Val()
	for _, strange := range []*keyring.Keys{open(t, client, c), open(t, client, c, other)} {
		if _, _, err := strange.Current(t.Context()); err == nil || errors.Is(err, export.ErrUnavailable) {
			t.Errorf("without the secret: %v", err)
		}
	}
	if client.Get(t.Context(), "ring").Val() != before {
		t.Error("a replica without the secret has changed the ring")
	}
	both := open(t, client, c, other, secret)
	for range 9 {
		_, _, err := both.Current(t.Context())
		must(t, err)
		c.Advance(day)
	}
	_, published, err := open(t, client, c, other).Current(t.Context())
	must(t, err)
	if !slices.Contains(kids(published), first.KID) || len(published) < 3 {
		t.Errorf("published after all changes: %v, without %s", kids(published), first.KID)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := keyring.New(nil, keyring.Config{}); err == nil {
		t.Error("accepted a ring that would store keys in plaintext")
	}
	if _, err := keyring.New(nil, keyring.Config{Secrets: []string{"short"}, TrustRedis: true}); err == nil {
		t.Error("accepted a short secret")
	}
}

// While Redis is down the keys stay in use; a ring that cannot be decrypted ends their use.
func TestRefresh(t *testing.T) {
	client, c := connect(t), newClock()
	keys := open(t, client, c, secret)
	if _, err := keys.JWKS(); !errors.Is(err, export.ErrUnavailable) || keys.Check(t.Context()) == nil {
		t.Fatalf("before the first read: %v", err)
	}
	must(t, keys.Refresh(t.Context()))
	must(t, keys.Check(t.Context()))
	set, err := keys.JWKS()
	must(t, err)
	signing, _, err := keys.Current(t.Context())
	must(t, err)
	if text := string(set); !strings.Contains(text, signing.KID) || strings.Contains(text, `"d"`) {
		t.Errorf("published: %s", text)
	}
	must(t, client.Set(t.Context(), "ring", "x", 0).Err())
	if err := keys.Refresh(t.Context()); err == nil || keys.Check(t.Context()) == nil {
		t.Errorf("a malformed ring: %v", err)
	}
	// Redis has lost its data: a new key.
	must(t, client.Del(t.Context(), "ring").Err())
	must(t, keys.Refresh(t.Context()))
	must(t, keys.Check(t.Context()))
}
