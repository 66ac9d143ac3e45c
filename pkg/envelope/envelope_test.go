package envelope_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/envelope"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// master returns a line with a random master key.
func master(id string) string {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // it never fails
	return id + ":" + base64.StdEncoding.EncodeToString(secret) + "\n"
}

func parse(t testing.TB, lines ...string) *envelope.Keys {
	t.Helper()
	keys, err := envelope.ParseKeys(strings.Join(lines, ""))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestParseKeysRefuses(t *testing.T) {
	const secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I="
	for what, test := range map[string]struct{ text, wantErr string }{
		"no id":         {secret, "key 1"},
		"empty id":      {":" + secret, "key 1"},
		"odd id":        {"a/b:" + secret, "key 1"},
		"long id":       {strings.Repeat("a", 65) + ":" + secret, "key 1"},
		"short key":     {"a:c2VjcmV0", "key 1"},
		"no key":        {"a:", "key 1"},
		"no base64":     {"a:" + strings.Repeat("!", 44), "key 1"},
		"the second":    {"a:" + secret + "\nb:c2VjcmV0", "key 2"},
		"an id twice":   {"a:" + secret + "\na:" + secret, "key 2"},
		"all at once":   {"a:c2VjcmV0\nb:c2VjcmV0", "key 2"},
		"a line broken": {"a:\n" + secret, "key 2"},
	} {
		_, err := envelope.ParseKeys(test.text)
		if err == nil || !strings.Contains(err.Error(), test.wantErr) {
			t.Errorf("%s: %v, want an error about %s", what, err, test.wantErr)
		} else if strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: the error contains the secret: %v", what, err)
		}
	}
	if keys := parse(t, "\n"); !keys.Empty() {
		t.Error("blank text was parsed as a key")
	}
	if keys := parse(t, master("2026-11"), "\n", master("a.b_c")); keys.Empty() {
		t.Error("two keys were not parsed")
	}
}

// records is a fake job store with wrapped keys. down, if set, is the error of all lookups.
type records struct {
	wrapped map[export.JobID][]byte
	owner   export.Owner // of all jobs; zero: alice
	down    error
	lookups int
}

func (r *records) look(_ context.Context, job export.JobID) ([]byte, export.Owner, error) {
	r.lookups++
	if r.owner == (export.Owner{}) {
		r.owner = alice()
	}
	if r.down != nil {
		return nil, r.owner, r.down
	}
	wrapped, there := r.wrapped[job]
	if !there {
		return nil, r.owner, fmt.Errorf("job %s: %w", job, export.ErrNotFound)
	}
	return wrapped, r.owner, nil
}

func alice() export.Owner { return export.Owner{Issuer: "urn:issuer", Subject: "alice"} }

func manifest(job export.JobID) string { return export.ManifestKey(job, 1) }

func TestEachJobHasItsOwnKey(t *testing.T) {
	keys := parse(t, master("a"))
	one, other := export.NewJobID(), export.NewJobID()
	store := &records{wrapped: map[export.JobID][]byte{one: keys.New(one, alice()), other: keys.New(other, alice())}}
	ring := envelope.NewRing(keys, store.look, time.Now)
	first, err := ring.Key(t.Context(), manifest(one))
	if err != nil || len(first) != 32 {
		t.Fatalf("a key of %d bytes, %v", len(first), err)
	}
	second, err := ring.Key(t.Context(), manifest(other))
	if err != nil || bytes.Equal(first, second) {
		t.Errorf("two jobs have the same key, or %v", err)
	}
	again, err := envelope.NewRing(keys, store.look, time.Now).Key(t.Context(), export.FileKey(one, "Patient", "x"))
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("the job's key differs between two processes, or %v", err)
	}
	if bytes.Contains(store.wrapped[one], first) {
		t.Error("the wrapped key contains the plaintext key")
	}
}

func TestAWrappedKeyIsBoundToItsJob(t *testing.T) {
	keys := parse(t, master("a"), master("b"))
	job, thief := export.NewJobID(), export.NewJobID()
	wrapped := keys.New(job, alice())
	ask := func(job export.JobID, keys *envelope.Keys, wrapped []byte) error {
		store := &records{wrapped: map[export.JobID][]byte{job: wrapped}}
		key, err := envelope.NewRing(keys, store.look, time.Now).Key(t.Context(), manifest(job))
		if err == nil && key == nil {
			return errors.New("it was taken for a plaintext job")
		}
		return err
	}
	if err := ask(job, keys, wrapped); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"another job":               ask(thief, keys, wrapped),
		"another key of that id":    ask(job, parse(t, master("a")), wrapped),
		"the other key's id":        ask(job, keys, bytes.Replace(wrapped, []byte("\x01a"), []byte("\x01b"), 1)),
		"one byte":                  ask(job, keys, wrapped[:1]),
		"without its end":           ask(job, keys, wrapped[:len(wrapped)-1]),
		"without key":               ask(job, keys, wrapped[:10]),
		"an id longer than the key": ask(job, keys, []byte{1, 255, 'a'}),
	} {
		if err == nil || errors.Is(err, export.ErrUnavailable) || errors.Is(err, export.ErrNotFound) {
			t.Errorf("%s: %v, want an error of its own", what, err)
		}
	}
	for at := range wrapped {
		changed := bytes.Clone(wrapped)
		changed[at] ^= 0x10
		if ask(job, keys, changed) == nil {
			t.Errorf("accepted a wrapped key with byte %d changed", at)
		}
	}
	// An unknown master key is temporary.
	if err := ask(job, parse(t, master("c")), wrapped); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("no such master key: %v, want ErrUnavailable", err)
	}
	if err := ask(job, parse(t), wrapped); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("no master key at all: %v, want ErrUnavailable", err)
	}
}

// wrappedByTheFirstVersion is a key of the job and the master key of the test below.
const wrappedByTheFirstVersion = "AQFhGZTtrxkPMSwjNEzvnOesCKyDWHxmB7um0HSRvMr/s4P57xMm+Co+8YFB/MlbLZbRUn17qtebk2WKUNKo"

// A job whose owner was changed in Redis cannot be read. Keys that earlier versions wrapped are bound to the job alone.
func TestAWrappedKeyIsBoundToItsOwner(t *testing.T) {
	keys, job := parse(t, "a:"+strings.Repeat("A", 43)+"="), export.JobID(strings.Repeat("a", 26))
	ask := func(owner export.Owner, wrapped []byte) error {
		store := &records{wrapped: map[export.JobID][]byte{job: wrapped}, owner: owner}
		key, err := envelope.NewRing(keys, store.look, time.Now).Key(t.Context(), manifest(job))
		if err == nil && key == nil {
			return errors.New("it was taken for a plaintext job")
		}
		return err
	}
	wrapped := keys.New(job, alice())
	if err := ask(alice(), wrapped); err != nil {
		t.Fatal(err)
	}
	for _, owner := range []export.Owner{
		{Issuer: "urn:issuer", Subject: "bob"}, {Issuer: "urn:other", Subject: "alice"}, {Issuer: "urn:issueralice"},
	} {
		if err := ask(owner, wrapped); err == nil || errors.Is(err, export.ErrUnavailable) || errors.Is(err, export.ErrNotFound) {
			t.Errorf("owner %+v: %v, want an error of its own", owner, err)
		}
	}
	// The first version cannot be claimed for a key of the second.
	if ask(alice(), append([]byte{1}, wrapped[1:]...)) == nil {
		t.Error("the owner of a wrapped key can be ignored")
	}
	old, err := base64.StdEncoding.DecodeString(wrappedByTheFirstVersion)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(alice(), old); err != nil {
		t.Errorf("a key of the first version: %v", err)
	}
}

func TestRotation(t *testing.T) {
	old, fresh := master("old"), master("fresh")
	before, after := export.NewJobID(), export.NewJobID()
	wrapped := map[export.JobID][]byte{before: parse(t, old).New(before, alice())}
	rotated := parse(t, fresh, old)
	wrapped[after] = rotated.New(after, alice())
	store := &records{wrapped: wrapped}
	ring := envelope.NewRing(rotated, store.look, time.Now)
	for what, job := range map[string]export.JobID{"before": before, "after": after} {
		if _, err := ring.Key(t.Context(), manifest(job)); err != nil {
			t.Errorf("a job from %s the rotation: %v", what, err)
		}
	}
	// Without the old master key, every key that it wrapped is unreadable.
	ring = envelope.NewRing(parse(t, fresh), store.look, time.Now)
	if _, err := ring.Key(t.Context(), manifest(after)); err != nil {
		t.Errorf("the first key does not wrap: %v", err)
	}
	if _, err := ring.Key(t.Context(), manifest(before)); err == nil {
		t.Error("unwrapped a key without its master key")
	}
}

func TestAJobWithoutAKeyIsInPlaintext(t *testing.T) {
	job := export.NewJobID()
	store := &records{wrapped: map[export.JobID][]byte{job: nil}}
	ring := envelope.NewRing(parse(t, master("a")), store.look, time.Now)
	for range 2 {
		if key, err := ring.Key(t.Context(), manifest(job)); key != nil || err != nil {
			t.Errorf("key of %d bytes, %v", len(key), err)
		}
	}
	if store.lookups != 1 {
		t.Errorf("%d lookups for a plaintext job, want 1", store.lookups)
	}
	for _, object := range []string{"", "x", "jobs/", "jobs/x/y", "jobs/" + string(job), "other/" + string(job) + "/x"} {
		if key, err := ring.Key(t.Context(), object); key != nil || err == nil {
			t.Errorf("object %q: a key of %d bytes, %v, want an error", object, len(key), err)
		}
	}
}

// vault holds a ring, its clock, and an encrypted job.
type vault struct {
	*records
	keys *envelope.Keys
	ring *envelope.Ring
	job  export.JobID
	now  time.Time
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{keys: parse(t, master("a")), job: export.NewJobID(), now: time.Unix(1_700_000_000, 0)}
	v.records = &records{wrapped: map[export.JobID][]byte{v.job: v.keys.New(v.job, alice())}}
	v.ring = envelope.NewRing(v.keys, v.look, func() time.Time { return v.now })
	if err := v.after(t, 0); err != nil {
		t.Fatal(err)
	}
	return v
}

// after looks up the job's key once more time has passed.
func (v *vault) after(t *testing.T, passed time.Duration) error {
	v.now = v.now.Add(passed)
	_, err := v.ring.Key(t.Context(), manifest(v.job))
	return err
}

func TestAPurgeCountsSoon(t *testing.T) {
	v := newVault(t)
	delete(v.wrapped, v.job)
	if err := v.after(t, envelope.Fresh-time.Millisecond); err != nil || v.lookups != 1 {
		t.Errorf("a fresh key: %v after %d lookups", err, v.lookups)
	}
	if err := v.after(t, time.Millisecond); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("after the purge: %v, want ErrNotFound", err)
	}
	v.down = export.ErrUnavailable
	if err := v.after(t, 0); err == nil || errors.Is(err, export.ErrNotFound) {
		t.Errorf("a purged key is used again: %v", err)
	}
}

func TestAShortOutage(t *testing.T) {
	v := newVault(t)
	v.down = fmt.Errorf("redis: %w", export.ErrUnavailable)
	if err := v.after(t, envelope.Spare-time.Millisecond); err != nil {
		t.Errorf("in a short outage: %v", err)
	}
	if err := v.after(t, time.Millisecond); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("in a long outage: %v, want ErrUnavailable", err)
	}
	v.down = nil
	if err := v.after(t, 0); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

// With more jobs than the cache holds, keys are looked up again.
func TestManyJobs(t *testing.T) {
	v := newVault(t)
	var jobs []export.JobID
	for range 1000 {
		job := export.NewJobID()
		jobs = append(jobs, job)
		v.wrapped[job] = v.keys.New(job, alice())
	}
	for range 2 {
		for _, job := range jobs {
			if _, err := v.ring.Key(t.Context(), manifest(job)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if v.lookups < 1500 {
		t.Errorf("%d lookups for 1000 jobs twice: all keys are cached", v.lookups)
	}
}
