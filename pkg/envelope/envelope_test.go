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
		t.Error("nothing is a key")
	}
	if keys := parse(t, master("2026-11"), "\n", master("a.b_c")); keys.Empty() {
		t.Error("two keys are none")
	}
}

// records is a job store with wrapped keys, and an error for all lookups.
type records struct {
	wrapped map[export.JobID][]byte
	down    error
	lookups int
}

func (r *records) look(_ context.Context, job export.JobID) ([]byte, error) {
	r.lookups++
	if r.down != nil {
		return nil, r.down
	}
	wrapped, there := r.wrapped[job]
	if !there {
		return nil, fmt.Errorf("job %s: %w", job, export.ErrNotFound)
	}
	return wrapped, nil
}

func manifest(job export.JobID) string { return export.ManifestKey(job, 1) }

func TestEachJobHasItsOwnKey(t *testing.T) {
	keys := parse(t, master("a"))
	one, other := export.NewJobID(), export.NewJobID()
	store := &records{wrapped: map[export.JobID][]byte{one: keys.New(one), other: keys.New(other)}}
	ring := envelope.NewRing(keys, store.look, nil)
	first, err := ring.Key(t.Context(), manifest(one))
	if err != nil || len(first) != 32 {
		t.Fatalf("a key of %d bytes, %v", len(first), err)
	}
	second, err := ring.Key(t.Context(), manifest(other))
	if err != nil || bytes.Equal(first, second) {
		t.Errorf("two jobs have the same key, or %v", err)
	}
	again, err := envelope.NewRing(keys, store.look, nil).Key(t.Context(), export.FileKey(one, "Patient", "x"))
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("the job's key differs between two processes, or %v", err)
	}
	if bytes.Contains(store.wrapped[one], first) {
		t.Error("the wrapped key holds the key")
	}
}

func TestAWrappedKeyIsBoundToItsJob(t *testing.T) {
	keys := parse(t, master("a"), master("b"))
	job, thief := export.NewJobID(), export.NewJobID()
	wrapped := keys.New(job)
	ask := func(job export.JobID, keys *envelope.Keys, wrapped []byte) error {
		store := &records{wrapped: map[export.JobID][]byte{job: wrapped}}
		key, err := envelope.NewRing(keys, store.look, nil).Key(t.Context(), manifest(job))
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
			t.Errorf("byte %d was changed and it was accepted", at)
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

func TestRotation(t *testing.T) {
	old, fresh := master("old"), master("fresh")
	before, after := export.NewJobID(), export.NewJobID()
	wrapped := map[export.JobID][]byte{before: parse(t, old).New(before)}
	rotated := parse(t, fresh, old)
	wrapped[after] = rotated.New(after)
	store := &records{wrapped: wrapped}
	ring := envelope.NewRing(rotated, store.look, nil)
	for what, job := range map[string]export.JobID{"before": before, "after": after} {
		if _, err := ring.Key(t.Context(), manifest(job)); err != nil {
			t.Errorf("a job of %s the rotation: %v", what, err)
		}
	}
	// Once the old key is destroyed, so is every copy of what it has wrapped.
	ring = envelope.NewRing(parse(t, fresh), store.look, nil)
	if _, err := ring.Key(t.Context(), manifest(after)); err != nil {
		t.Errorf("the first key does not wrap: %v", err)
	}
	if _, err := ring.Key(t.Context(), manifest(before)); err == nil {
		t.Error("a destroyed master key unwraps")
	}
}

func TestAJobWithoutAKeyIsInPlaintext(t *testing.T) {
	job := export.NewJobID()
	store := &records{wrapped: map[export.JobID][]byte{job: nil}}
	ring := envelope.NewRing(parse(t, master("a")), store.look, nil)
	for range 2 {
		if key, err := ring.Key(t.Context(), manifest(job)); key != nil || err != nil {
			t.Errorf("key of %d bytes, %v", len(key), err)
		}
	}
	if store.lookups != 1 {
		t.Errorf("the job store was lookups %d times for what cannot change", store.lookups)
	}
	for _, object := range []string{"", "x", "jobs/", "jobs/x/y", "jobs/" + string(job), "other/" + string(job) + "/x"} {
		if key, err := ring.Key(t.Context(), object); key != nil || err == nil {
			t.Errorf("object %q: a key of %d bytes, %v, want an error", object, len(key), err)
		}
	}
}

func TestAPurgeCountsSoon(t *testing.T) {
	keys := parse(t, master("a"))
	job := export.NewJobID()
	store := &records{wrapped: map[export.JobID][]byte{job: keys.New(job)}}
	now := time.Unix(1_700_000_000, 0)
	ring := envelope.NewRing(keys, store.look, func() time.Time { return now })
	ask := func() error { _, err := ring.Key(t.Context(), manifest(job)); return err }
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	delete(store.wrapped, job)
	now = now.Add(envelope.Fresh - time.Millisecond)
	if err := ask(); err != nil || store.lookups != 1 {
		t.Errorf("a fresh key: %v, lookups for %d times", err, store.lookups)
	}
	now = now.Add(time.Millisecond)
	if err := ask(); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("after the purge: %v, want ErrNotFound", err)
	}
	store.down = export.ErrUnavailable
	if err := ask(); err == nil || errors.Is(err, export.ErrNotFound) {
		t.Errorf("what was found to be gone came back: %v", err)
	}
}

func TestAShortOutage(t *testing.T) {
	keys := parse(t, master("a"))
	job := export.NewJobID()
	store := &records{wrapped: map[export.JobID][]byte{job: keys.New(job)}}
	now := time.Unix(1_700_000_000, 0)
	ring := envelope.NewRing(keys, store.look, func() time.Time { return now })
	ask := func() error { _, err := ring.Key(t.Context(), manifest(job)); return err }
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	store.down = fmt.Errorf("redis: %w", export.ErrUnavailable)
	now = now.Add(envelope.Spare - time.Millisecond)
	if err := ask(); err != nil {
		t.Errorf("in a short outage: %v", err)
	}
	now = now.Add(time.Millisecond)
	if err := ask(); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("in a long outage: %v, want ErrUnavailable", err)
	}
	store.down = nil
	if err := ask(); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

// More jobs than are held at once only cost further looks.
func TestManyJobs(t *testing.T) {
	keys := parse(t, master("a"))
	store := &records{wrapped: map[export.JobID][]byte{}}
	var jobs []export.JobID
	for range 1000 {
		job := export.NewJobID()
		jobs = append(jobs, job)
		store.wrapped[job] = keys.New(job)
	}
	now := time.Unix(1_700_000_000, 0)
	ring := envelope.NewRing(keys, store.look, func() time.Time { return now })
	for range 2 {
		for _, job := range jobs {
			if _, err := ring.Key(t.Context(), manifest(job)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if store.lookups < 1500 {
		t.Errorf("1000 jobs were lookups for twice in %d looks: all keys are held", store.lookups)
	}
}
