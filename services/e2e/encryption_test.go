package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-fhir/sluice/pkg/envelope"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// masterKeys writes master keys with these ids into a file and returns the setting that names it. The first key wraps;
// equal ids have equal keys.
func masterKeys(t *testing.T, secrets map[string]string, ids ...string) (setting string) {
	t.Helper()
	var lines strings.Builder
	for _, id := range ids {
		if secrets[id] == "" {
			secret := make([]byte, 32)
			_, _ = rand.Read(secret) // it never fails
			secrets[id] = id + ":" + base64.StdEncoding.EncodeToString(secret) + "\n"
		}
		lines.WriteString(secrets[id])
	}
	file := filepath.Join(t.TempDir(), "keys")
	check.Must(t, os.WriteFile(file, []byte(lines.String()), 0o600))
	return "SLUICE_ENVELOPE_KEYS_FILE=" + file
}

// TestAnEncryptedExport checks all data sent to the object store, and the data that a client downloads.
func TestAnEncryptedExport(t *testing.T) {
	t.Parallel()
	data := generated(t, 20)
	population := expect.Read(t, data)
	people := population.Members("all")
	needles := [][]byte{[]byte(`"resourceType"`), []byte("ndjson"), {0x1f, 0x8b, 0x08}}
	for id := range people {
		needles = append(needles, []byte(id))
	}
	watch := newWatch(t, testenv.ObjectStore(t).Endpoint, needles)
	keys := masterKeys(t, map[string]string{}, "2026-11")
	s := deploy(t, setup{
		data: data, workers: 2, endpoint: watch.endpoint, api: []string{keys},
		worker: []string{keys, "SLUICE_FILE_BYTES=200000"},
	})
	m := s.wait(s.kickoff("all", ""), 2*time.Minute)
	expect.SameLines(t, "all", s.lines(m.Output), population.Export(people))

	found, bodies := watch.result()
	if found != "" || bodies == 0 {
		t.Errorf("%d objects and parts were sent, and %q was found in one", bodies, found)
	}
	outside := s.bucket()
	for _, key := range s.settledKeys() {
		content := get(t, outside, s.s3.Bucket, key)
		for _, needle := range needles {
			if len(needle) > 3 && bytes.Contains(content, needle) {
				t.Errorf("%s holds %q", key, needle)
			}
		}
	}

	// A resumed download equals a complete one, and both match the digest.
	largest := slices.MaxFunc(m.Output, func(a, b fileItem) int { return a.Count - b.Count })
	whole, header := s.gzipped(largest.URL, "", "")
	sum := sha256.Sum256(whole)
	if want := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"; header.Get("Repr-Digest") != want {
		t.Errorf("Repr-Digest %s, the bytes have %s", header.Get("Repr-Digest"), want)
	}
	if header.Get("Content-Length") != strconv.Itoa(len(whole)) {
		t.Errorf("Content-Length %s of %d bytes", header.Get("Content-Length"), len(whole))
	}
	for _, from := range []int{1, len(whole) / 2, len(whole) - 1} {
		rest, _ := s.gzipped(largest.URL, "bytes="+strconv.Itoa(from)+"-", header.Get("ETag"))
		if !bytes.Equal(rest, whole[from:]) {
			t.Errorf("resumed at %d of %d: the %d bytes differ", from, len(whole), len(rest))
		}
	}
}

// gzipped downloads a file, or with the file's ETag a range of it, as it is stored.
func (s *stack) gzipped(url, span, etag string) ([]byte, http.Header) {
	s.t.Helper()
	header := http.Header{"Accept-Encoding": {"gzip"}}
	want := http.StatusOK
	if span != "" {
		header.Set("Range", span)
		header.Set("If-Range", etag)
		want = http.StatusPartialContent
	}
	resp := s.request(http.MethodGet, url, "everything", header)
	content, err := io.ReadAll(resp.Body)
	check.Must(s.t, err)
	if resp.StatusCode != want {
		s.t.Fatalf("%s of a file: %s", span, resp.Status)
	}
	return content, resp.Header
}

// TestMasterKeysAreRotated replaces the first key of every process while one export is done and another is running, and
// then removes the old one.
func TestMasterKeysAreRotated(t *testing.T) {
	t.Parallel()
	data := generated(t, 6)
	population := expect.Read(t, data)
	want := population.Export(population.Members("all"))
	secrets := map[string]string{}
	s := deploy(t, setup{data: data, api: []string{masterKeys(t, secrets, "old")}})
	worker := s.startWorker(masterKeys(t, secrets, "old"))
	finished := s.kickoff("all", "")
	s.wait(finished, time.Minute)
	worker.stop()
	pending := s.kickoff("all", "") // its key is wrapped, and no unit has started

	// A worker without the key waits for it.
	keyless := s.startWorker()
	check.Eventually(t, time.Minute, "the worker waits for the master key", func() bool {
		_, waits := keyless.Find(func(e map[string]any) bool { return e["msg"] == "unit waits for an unavailable dependency" })
		return waits
	})
	keyless.stop()

	replace := func(setting string) {
		s.api.stop()
		s.apiEnv = append(slices.DeleteFunc(s.apiEnv, func(entry string) bool {
			return strings.HasPrefix(entry, "SLUICE_ENVELOPE_KEYS_FILE=")
		}), setting)
		s.restartAPI()
	}
	both := masterKeys(t, secrets, "fresh", "old")
	replace(both)
	s.startWorker(both)
	after := s.kickoff("all", "")
	for what, status := range map[string]string{"finished before": finished, "under way": pending, "begun after": after} {
		expect.SameLines(t, what, s.lines(s.wait(status, 2*time.Minute).Output), want)
	}

	replace(masterKeys(t, secrets, "fresh"))
	expect.SameLines(t, "with the fresh key alone", s.lines(s.wait(after, time.Minute).Output), want)
	for what, status := range map[string]string{"finished before": finished, "under way": pending} {
		if resp := s.request(http.MethodGet, status, "everything", nil); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s, without the old key: %s, want 503", what, resp.Status)
		}
	}
}

// TestAPurgeDestroysCopies keeps a copy of every object of a job, like a backup of the bucket.
func TestAPurgeDestroysCopies(t *testing.T) {
	t.Parallel()
	data := generated(t, 6)
	secrets := map[string]string{}
	setting := masterKeys(t, secrets, "a")
	s := deploy(t, setup{data: data, workers: 1, api: []string{setting}, worker: []string{setting},
		scheduler: []string{"SLUICE_EXPIRE_EVERY=1s"}})
	status := s.kickoff("all", "")
	s.wait(status, time.Minute)

	jobs, err := jobstore.Open(s.redis, nil)
	check.Must(t, err)
	defer jobs.Close()
	keys, err := envelope.ParseKeys(secrets["a"])
	check.Must(t, err)
	open := func() error { // without cached keys
		store, err := objects.Open(objects.Config{
			Endpoint: s.s3.Endpoint, AccessKey: s.s3.AccessKey, SecretKey: s.s3.SecretKey, Bucket: s.s3.Bucket,
			Keys: envelope.NewRing(keys, jobs.Key, time.Now).Key,
		})
		check.Must(t, err)
		defer store.Close()
		var problems []error
		for _, key := range s.objectKeys() {
			problems = append(problems, read(t.Context(), store, key))
		}
		return errors.Join(problems...)
	}
	copies, outside := map[string][]byte{}, s.bucket()
	for _, key := range s.settledKeys() {
		copies[key] = get(t, outside, s.s3.Bucket, key)
	}
	if err := open(); err != nil || len(copies) == 0 {
		t.Fatalf("before the purge: %d objects, %v", len(copies), err)
	}

	if resp := s.request(http.MethodDelete, status, "everything", nil); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("DELETE: %s", resp.Status)
	}
	id, err := export.ParseJobID(status[strings.LastIndexByte(status, '/')+1:])
	check.Must(t, err)
	check.Eventually(t, time.Minute, "the job is purged", func() bool {
		there, err := jobs.Exists(t.Context(), id)
		return err == nil && !there
	})
	for key, content := range copies {
		_, err := outside.PutObject(t.Context(), s.s3.Bucket, key, bytes.NewReader(content), int64(len(content)),
			minio.PutObjectOptions{})
		check.Must(t, err)
		if err := open(); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("restored copy of %s: %v, want ErrNotFound", key, err)
		}
		check.Must(t, outside.RemoveObject(t.Context(), s.s3.Bucket, key, minio.RemoveObjectOptions{}))
	}
}

func read(ctx context.Context, store *objects.Store, key string) error {
	body, err := store.Open(ctx, key, 0, -1)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, body)
	return errors.Join(err, body.Close())
}

// bucket is a plain client of the object store.
func (s *stack) bucket() *minio.Client {
	s.t.Helper()
	client, err := minio.New(strings.TrimPrefix(s.s3.Endpoint, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(s.s3.AccessKey, s.s3.SecretKey, ""),
	})
	check.Must(s.t, err)
	return client
}

func get(t *testing.T, client *minio.Client, bucket, key string) []byte {
	t.Helper()
	object, err := client.GetObject(t.Context(), bucket, key, minio.GetObjectOptions{})
	check.Must(t, err)
	content, err := io.ReadAll(object)
	check.Must(t, errors.Join(err, object.Close()))
	return content
}

// watch is a proxy of the object store that searches every request body.
type watch struct {
	endpoint string

	mu     sync.Mutex
	found  string
	bodies int
}

func newWatch(t *testing.T, endpoint string, needles [][]byte) *watch {
	t.Helper()
	target, err := url.Parse(endpoint)
	check.Must(t, err)
	w := &watch{}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // the signature covers it
	}}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/jobs/") {
			content, err := io.ReadAll(r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			w.look(content, needles)
			r.Body = io.NopCloser(bytes.NewReader(content))
		}
		forward.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	w.endpoint = server.URL
	return w
}

func (w *watch) look(content []byte, needles [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bodies++
	for _, needle := range needles {
		// The three bytes of gzip's magic also occur by chance, so they only count at the start.
		if len(needle) > 3 && bytes.Contains(content, needle) || bytes.HasPrefix(content, needle) {
			w.found = string(needle)
		}
	}
}

func (w *watch) result() (found string, bodies int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found, w.bodies
}
