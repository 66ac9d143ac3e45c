package objects_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
)

// oneKey encrypts every object under the same data key.
func oneKey(b byte) objects.Keys {
	dataKey := bytes.Repeat([]byte{b}, segments.KeySize)
	return func(context.Context, string) ([]byte, error) { return dataKey, nil }
}

// TestEncryptedStoreOnMinIO runs the contract suite on an encrypted store.
func TestEncryptedStoreOnMinIO(t *testing.T) {
	objectstest.Run(t, func(t *testing.T) objects.Config {
		cfg := place(t)
		cfg.Keys = oneKey(1)
		return cfg
	})
}

// shelf is a bucket with direct access to its stored objects.
type shelf struct {
	t       *testing.T
	cfg     objects.Config
	outside *minio.Client
}

func newShelf(t *testing.T) shelf {
	t.Helper()
	cfg := place(t)
	cfg.PartSize = objects.MinPartSize
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	outside, err := minio.New(strings.TrimPrefix(cfg.Endpoint, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Transport: transport,
	})
	must(t, err)
	s := shelf{t: t, cfg: cfg, outside: outside}
	must(t, s.store(nil).EnsureBucket(t.Context()))
	return s
}

func (s shelf) store(keys objects.Keys) *objects.Store {
	s.t.Helper()
	cfg := s.cfg
	cfg.Keys = keys
	store, err := objects.Open(cfg)
	must(s.t, err)
	s.t.Cleanup(store.Close)
	return store
}

func (s shelf) stored(key string) []byte {
	s.t.Helper()
	object, err := s.outside.GetObject(s.t.Context(), s.cfg.Bucket, key, minio.GetObjectOptions{})
	must(s.t, err)
	content, err := io.ReadAll(object)
	must(s.t, errors.Join(err, object.Close()))
	return content
}

// plant writes bytes to the key directly, without the Store.
func (s shelf) plant(key string, content []byte) {
	s.t.Helper()
	_, err := s.outside.PutObject(s.t.Context(), s.cfg.Bucket, key, bytes.NewReader(content), int64(len(content)),
		minio.PutObjectOptions{})
	must(s.t, err)
}

func TestWhatIsStoredIsNotWhatWasWritten(t *testing.T) {
	s := newShelf(t)
	store := s.store(oneKey(1))
	line := []byte(`{"resourceType":"Patient","id":"synthetic-1"}` + "\n")
	for _, lines := range []int{1, 10_000, 150_000} { // one segment, several, two parts
		plain := bytes.Repeat(line, lines)
		key := fmt.Sprintf("jobs/a/Patient/%d", lines)
		stored := put(t, store, key, plain)
		if !stored.Encrypted || stored.Size != int64(len(plain)) {
			t.Errorf("Commit: %+v, want %d encrypted bytes", stored, len(plain))
		}
		outside := s.stored(key)
		if bytes.Contains(outside, []byte("synthetic-1")) || bytes.Contains(outside, []byte("Patient")) {
			t.Errorf("%d lines: plaintext is stored", lines)
		}
		if want := segments.StoredSize(int64(len(plain))); int64(len(outside)) != want {
			t.Errorf("%d lines: %d bytes are stored, want %d", lines, len(outside), want)
		}
		var listed int64
		must(t, store.List(t.Context(), key, func(o objects.Info) error { listed += o.Size; return nil }))
		if listed != int64(len(outside)) {
			t.Errorf("%d lines: listed with %d bytes, want %d", lines, listed, len(outside))
		}
	}
	if stored := put(t, s.store(nil), "jobs/b/plain", nil); stored.Encrypted {
		t.Errorf("Commit without a key: %+v", stored)
	}
}

// TestTamperedObjectsAreRefused: a Store never returns bytes that were not written. Package segments tests this for every
// byte.
func TestTamperedObjectsAreRefused(t *testing.T) {
	const whole = segments.HeaderSize + 3*(segments.Size+16)
	s := newShelf(t)
	store := s.store(oneKey(1))
	plain := bytes.Repeat([]byte("0123456789abcdef"), 3*segments.Size/16)
	for _, key := range []string{"jobs/a/x", "jobs/a/y", "jobs/b/x"} {
		put(t, store, key, plain)
	}
	good := s.stored("jobs/a/x")
	if len(good) != whole {
		t.Fatalf("%d bytes are stored, want %d", len(good), whole)
	}
	flipped := bytes.Clone(good)
	flipped[whole-100] ^= 1
	for what, stored := range map[string][]byte{
		"one bit is flipped":                   flipped,
		"it is cut at a segment":               good[:whole-segments.Size-16],
		"it is cut inside a segment":           good[:whole-100],
		"only the header is left":              good[:segments.HeaderSize],
		"it is longer":                         append(bytes.Clone(good), good[whole-segments.Size-16:]...),
		"it is an object of the same job":      s.stored("jobs/a/y"),
		"it is an object of another job":       s.stored("jobs/b/x"),
		"it was written under another key":     s.written(oneKey(2), "jobs/a/x", plain),
		"it is in plaintext":                   plain,
		"it is in plaintext, and short":        []byte("{}\n"),
		"it is empty":                          nil,
		"an end that no key made is all of it": append(bytes.Clone(good[:segments.HeaderSize]), make([]byte, 16)...),
	} {
		s.plant("jobs/a/x", stored)
		for _, from := range []int64{0, whole / 2, 3 * segments.Size} {
			got, err := readAll(t, store, "jobs/a/x", from)
			if err == nil {
				t.Errorf("%s, read from %d: no error", what, from)
			} else if errors.Is(err, export.ErrNotFound) || errors.Is(err, export.ErrUnavailable) {
				t.Errorf("%s, read from %d: %v, want an error that is not an outage", what, from, err)
			}
			if !bytes.HasPrefix(plain[from:], got) {
				t.Errorf("%s, read from %d: bytes that were not written", what, from)
			}
		}
	}
	s.plant("jobs/a/x", good)
	if got, err := readAll(t, store, "jobs/a/x", 0); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("the original object: %d bytes, which differ, or error %v", len(got), err)
	}
}

// written returns the stored form of an object that is written with the keys.
func (s shelf) written(keys objects.Keys, key string, plain []byte) []byte {
	s.t.Helper()
	put(s.t, s.store(keys), key, plain)
	return s.stored(key)
}

// Without its key an object cannot be written, read or described, and is never taken for plaintext.
func TestKeysThatCannotBeHad(t *testing.T) {
	s := newShelf(t)
	s.written(oneKey(1), "jobs/a/there", []byte("x"))
	for _, cause := range []error{export.ErrNotFound, export.ErrUnavailable, errors.New("something else")} {
		store := s.store(func(context.Context, string) ([]byte, error) { return nil, cause })
		for act, err := range map[string]error{
			"Open": func() error { _, err := store.Open(t.Context(), "jobs/a/there", 0, -1); return err }(),
			"Stat": func() error { _, err := store.Stat(t.Context(), "jobs/a/there"); return err }(),
			"Write": func() error {
				_, err := store.Create(t.Context(), "jobs/a/new", "").Write([]byte("x"))
				return err
			}(),
			"Commit": func() error { _, err := store.Create(t.Context(), "jobs/a/new", "").Commit(); return err }(),
		} {
			if !errors.Is(err, cause) {
				t.Errorf("%s without a key: %v, want %v", act, err, cause)
			}
		}
		must(t, store.List(t.Context(), "jobs/", func(o objects.Info) error {
			if o.Key != "jobs/a/there" {
				t.Errorf("%s was written without a key", o.Key)
			}
			return nil
		}))
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	store := s.store(func(ctx context.Context, _ string) ([]byte, error) {
		return nil, fmt.Errorf("%w: %w", export.ErrUnavailable, ctx.Err())
	})
	_, err := store.Open(ended, "jobs/a/there", 0, -1)
	if !errors.Is(err, context.Canceled) || errors.Is(err, export.ErrUnavailable) {
		t.Errorf("Open after a cancel: %v", err)
	}
	if n, err := store.DeletePrefix(t.Context(), "jobs/a/"); n != 1 || err != nil {
		t.Errorf("DeletePrefix needs a key: %d, %v", n, err)
	}
}

// Reading a range transfers the header and only the segments of the range.
func TestARangeTransfersItsSegments(t *testing.T) {
	s := newShelf(t)
	plain := make([]byte, 64*segments.Size)
	s.written(oneKey(1), "jobs/a/long", plain)
	proxy := objectstest.NewProxy(t, s.cfg.Endpoint)
	s.cfg.Endpoint = proxy.Endpoint()
	store := s.store(oneKey(1))
	for _, test := range []struct{ offset, length, requests, bytes int64 }{
		{0, 10, 1, segments.HeaderSize + segments.Size + 16},
		{40*segments.Size + 5, 10, 2, segments.HeaderSize + segments.Size + 16},
		{40*segments.Size - 5, 10, 2, segments.HeaderSize + 2*(segments.Size+16)},
	} {
		var transferred atomic.Int64
		proxy.OnReply(func(reply *http.Response) error { transferred.Add(reply.ContentLength); return nil })
		before := proxy.Requests()
		body, err := store.Open(t.Context(), "jobs/a/long", test.offset, test.length)
		must(t, err)
		got, err := io.ReadAll(body)
		must(t, errors.Join(err, body.Close()))
		requests := int64(proxy.Requests() - before)
		if int64(len(got)) != test.length || requests != test.requests || transferred.Load() != test.bytes {
			t.Errorf("[%d, +%d]: %d bytes, in %d requests with %d bytes in total, want %d with %d",
				test.offset, test.length, len(got), requests, transferred.Load(), test.requests, test.bytes)
		}
	}
}

func readAll(t *testing.T, store *objects.Store, key string, offset int64) ([]byte, error) {
	t.Helper()
	body, err := store.Open(t.Context(), key, offset, -1)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(body)
	return got, errors.Join(err, body.Close())
}

func put(t *testing.T, store *objects.Store, key string, plain []byte) objects.Stored {
	t.Helper()
	w := store.Create(t.Context(), key, "")
	_, err := w.Write(plain)
	must(t, err)
	stored, err := w.Commit()
	must(t, err)
	return stored
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
