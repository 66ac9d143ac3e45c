// Package objectstest is the suite that objects.Store passes on every server, and a Proxy that injects faults between a
// client and a real server.
package objectstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/internal/segments"
)

// partSize keeps the suite's multipart uploads small.
const partSize = objects.MinPartSize

// Run runs the suite on a real server. Each call of place returns a new bucket that does not exist yet.
func Run(t *testing.T, place func(t *testing.T) objects.Config) {
	t.Helper()
	s := suite{place: place}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Bucket", s.bucket},
		{"WriteAndRead", s.writeAndRead},
		{"SmallIsOneRequest", s.smallIsOneRequest},
		{"Ranges", s.ranges},
		{"Missing", s.missing},
		{"Overwrite", s.overwrite},
		{"WritersSideBySide", s.sideBySide},
		{"WriterEnds", s.writerEnds},
		{"Abort", s.abort},
		{"AbortFindsWhatComesBackToLife", s.abortLooksAgain},
		{"AbortWaitsForThePartOnItsWay", s.abortWaits},
		{"Cancel", s.cancel},
		{"CancelOnTheWay", s.cancelOnTheWay},
		{"Pitfall9StoreHoldsSomethingElse", s.storeLies},
		{"Pitfall9CorruptedOnTheWay", s.corrupted},
		{"LostAnswers", s.lostAnswers},
		{"OutageWhileWriting", s.outageWhileWriting},
		{"OutageWhileReading", s.outageWhileReading},
		{"Down", s.down},
		{"Hangs", s.hangs},
		{"SlowsDown", s.slowsDown},
		{"List", s.list},
		{"DeleteAll", s.deleteAll},
		{"Uploads", s.uploads},
		{"Pitfall16DeletePrefix", s.deletePrefix},
		{"DeletePrefixRefuses", s.deletePrefixRefuses},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // the test waits for the client's retries
			test.run(t)
		})
	}
}

type suite struct {
	place func(*testing.T) objects.Config
}

// open returns a store on an empty bucket.
func (s suite) open(t *testing.T) *objects.Store {
	t.Helper()
	store := connect(t, s.place(t))
	must(t, store.EnsureBucket(t.Context()))
	return store
}

// openBehind returns a store on an empty bucket behind a proxy, and the same bucket without one.
func (s suite) openBehind(t *testing.T) (store *objects.Store, proxy *Proxy, direct *objects.Store) {
	t.Helper()
	cfg := s.place(t)
	direct = connect(t, cfg)
	must(t, direct.EnsureBucket(t.Context()))
	proxy = NewProxy(t, cfg.Endpoint)
	cfg.Endpoint = proxy.Endpoint()
	return connect(t, cfg), proxy, direct
}

func connect(t *testing.T, cfg objects.Config) *objects.Store {
	t.Helper()
	cfg.PartSize = partSize
	store, err := objects.Open(cfg)
	must(t, err)
	t.Cleanup(store.Close)
	return store
}

func (s suite) bucket(t *testing.T) {
	ctx := t.Context()
	store := connect(t, s.place(t))
	if err := store.Check(ctx); !errors.Is(err, export.ErrUnavailable) {
		t.Fatalf("Check without a bucket: %v, want ErrUnavailable", err)
	}
	var group errgroup.Group
	for range 8 {
		group.Go(func() error { return store.EnsureBucket(ctx) })
	}
	must(t, group.Wait())
	must(t, store.EnsureBucket(ctx))
	must(t, store.Check(ctx))
}

func (s suite) writeAndRead(t *testing.T) {
	ctx := t.Context()
	store := s.open(t)
	for _, size := range []int{0, 1, partSize - 1, partSize, partSize + 1, 2 * partSize, 5*partSize/2 + 3} {
		key := fmt.Sprintf("jobs/a/Patient/%d.ndjson.gz", size)
		data := random(size)
		w := store.Create(ctx, key, "application/gzip")
		for chunk := range slices.Chunk(data, 1<<20+7) {
			n, err := w.Write(chunk)
			if err != nil || n != len(chunk) {
				t.Fatalf("size %d: Write: %d, %v", size, n, err)
			}
		}
		if _, err := store.Stat(ctx, key); !errors.Is(err, export.ErrNotFound) {
			t.Fatalf("size %d: visible before Commit: %v", size, err)
		}
		stored, err := w.Commit()
		must(t, err)
		sum := sha256.Sum256(data)
		want := objects.Stored{
			Key: key, Size: int64(size), SHA256: hex.EncodeToString(sum[:]), Encrypted: stored.Encrypted,
		}
		if stored != want {
			t.Errorf("size %d: Commit: %+v, want %+v", size, stored, want)
		}
		info, err := store.Stat(ctx, key)
		must(t, err)
		if info.Key != key || info.Size != int64(size) || info.Modified.IsZero() {
			t.Errorf("size %d: Stat: %+v", size, info)
		}
		if got := read(t, store, key, 0, -1); !bytes.Equal(got, data) {
			t.Errorf("size %d: read %d bytes that are not what was written", size, len(got))
		}
	}
	if uploads := uploadKeys(t, store); len(uploads) > 0 {
		t.Errorf("unfinished uploads of finished objects: %q", uploads)
	}
}

func (s suite) smallIsOneRequest(t *testing.T) {
	store, proxy, _ := s.openBehind(t)
	for _, size := range []int{0, 10, partSize} {
		before := proxy.Requests()
		put(t, store, "small", random(size))
		if n := proxy.Requests() - before; n != 2 { // the put and the confirmation
			t.Errorf("an object of %d bytes took %d requests, want 2", size, n)
		}
	}
}

func (s suite) ranges(t *testing.T) {
	store := s.open(t)
	data := random(partSize + 1000)
	put(t, store, "ranged", data)
	put(t, store, "empty", nil)
	size := int64(len(data))
	for _, test := range []struct{ offset, length, from, to int64 }{
		{0, -1, 0, size},
		{0, 1, 0, 1},
		{size - 1, 1, size - 1, size},
		{size - 1, -1, size - 1, size},
		{partSize - 5, 10, partSize - 5, partSize + 5}, // across two parts
		{100, 0, 0, 0},
		{0, size, 0, size},
		{10, size * 2, 10, size},
		{size, -1, 0, 0},
		{size, 10, 0, 0},
		{size + 10, 10, 0, 0},
	} {
		if got := read(t, store, "ranged", test.offset, test.length); !bytes.Equal(got, data[test.from:test.to]) {
			t.Errorf("Open(%d, %d): %d bytes, want [%d:%d]", test.offset, test.length, len(got), test.from, test.to)
		}
	}
	for _, test := range []struct{ offset, length int64 }{{0, -1}, {0, 0}, {0, 5}, {5, -1}} {
		if got := read(t, store, "empty", test.offset, test.length); len(got) > 0 {
			t.Errorf("Open(%d, %d) of an empty object: %d bytes", test.offset, test.length, len(got))
		}
	}
	if _, err := store.Open(t.Context(), "ranged", -1, 5); err == nil {
		t.Error("Open with a negative offset: no error")
	}
}

func (s suite) missing(t *testing.T) {
	ctx := t.Context()
	store := s.open(t)
	for _, length := range []int64{-1, 0, 5} {
		if _, err := store.Open(ctx, "nothing/here", 0, length); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("Open(length %d): %v, want ErrNotFound", length, err)
		}
	}
	if _, err := store.Stat(ctx, "nothing/here"); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("Stat: %v, want ErrNotFound", err)
	}
	must(t, store.Delete(ctx, "nothing/here"))
	must(t, store.AbortUpload(ctx, "nothing/here", abortedUpload(t, store)))
	if n, err := store.DeletePrefix(ctx, "nothing/"); n != 0 || err != nil {
		t.Errorf("DeletePrefix: %d, %v", n, err)
	}
	nothingLeft(t, store)
}

// abortedUpload returns the id of an aborted upload.
func abortedUpload(t *testing.T, store *objects.Store) string {
	t.Helper()
	w := store.Create(t.Context(), "nothing/here", "")
	write(t, w, random(partSize+1))
	id := ""
	must(t, store.Uploads(t.Context(), func(u objects.Upload) error { id = u.ID; return nil }))
	must(t, w.Abort())
	if id == "" {
		t.Fatal("a write of two parts has begun no upload")
	}
	return id
}

func (s suite) overwrite(t *testing.T) {
	ctx := t.Context()
	store := s.open(t)
	for _, size := range []int{100, partSize + 1, 10, 0} {
		data := random(size)
		put(t, store, "again", data)
		if got := read(t, store, "again", 0, -1); !bytes.Equal(got, data) {
			t.Errorf("after writing %d bytes over it: read %d bytes, which differ", size, len(got))
		}
	}
	must(t, store.Delete(ctx, "again"))
	must(t, store.Delete(ctx, "again"))
	nothingLeft(t, store)
}

// sideBySide runs more writers than there are slots for sending while filling.
func (s suite) sideBySide(t *testing.T) {
	store := s.open(t)
	var group errgroup.Group
	sums := make([]string, 5)
	for i := range sums {
		group.Go(func() error {
			data := random(2*partSize + i)
			sum := sha256.Sum256(data)
			sums[i] = hex.EncodeToString(sum[:])
			stored, err := attempt(t.Context(), store, fmt.Sprintf("side/%d", i), data)
			if err == nil && stored.SHA256 != sums[i] {
				err = fmt.Errorf("writer %d: the digest is not that of its bytes", i)
			}
			return err
		})
	}
	must(t, group.Wait())
	for i, want := range sums {
		sum := sha256.Sum256(read(t, store, fmt.Sprintf("side/%d", i), 0, -1))
		if hex.EncodeToString(sum[:]) != want {
			t.Errorf("object %d is not what its writer wrote", i)
		}
	}
}

func (s suite) writerEnds(t *testing.T) {
	ctx := t.Context()
	store := s.open(t)

	w := store.Create(ctx, "committed", "")
	write(t, w, []byte("x"))
	_, err := w.Commit()
	must(t, err)
	if _, err := w.Write([]byte("y")); err == nil {
		t.Error("Write after Commit: no error")
	}
	if _, err := w.Commit(); err == nil {
		t.Error("Commit after Commit: no error")
	}
	must(t, w.Abort())
	if got := read(t, store, "committed", 0, -1); string(got) != "x" {
		t.Errorf("after Commit and Abort: %q", got)
	}

	w = store.Create(ctx, "aborted", "")
	must(t, w.Abort())
	must(t, w.Abort())
	if _, err := w.Write([]byte("y")); err == nil {
		t.Error("Write after Abort: no error")
	}
	if _, err := w.Commit(); err == nil {
		t.Error("Commit after Abort: no error")
	}
	if keys := objectKeys(t, store); !slices.Equal(keys, []string{"committed"}) {
		t.Errorf("objects: %q", keys)
	}
}

func (s suite) abort(t *testing.T) {
	store := s.open(t)
	for _, size := range []int{0, 100, partSize, partSize + 1, 3 * partSize} {
		w := store.Create(t.Context(), "aborted", "")
		write(t, w, random(size))
		must(t, w.Abort())
		nothingLeft(t, store)
	}
}

// abortLooksAgain: an upload of the key appears while another is aborted. Some stores create one for a late part.
func (s suite) abortLooksAgain(t *testing.T) {
	cfg := s.place(t)
	direct := connect(t, cfg)
	must(t, direct.EnsureBucket(t.Context()))
	var behind [2]*objects.Store
	var proxies [2]*Proxy
	for i := range behind {
		proxies[i] = NewProxy(t, cfg.Endpoint)
		through := cfg
		through.Endpoint = proxies[i].Endpoint()
		behind[i] = connect(t, through)
	}
	data := random(partSize + 1)
	w := unfinished(t, behind[0], proxies[0], "revived", data)
	aborted, revived := make(chan struct{}), make(chan struct{})
	var once sync.Once
	proxies[0].OnReply(func(reply *http.Response) error {
		if reply.Request.Method == http.MethodDelete {
			once.Do(func() { close(aborted); <-revived })
		}
		return nil
	})
	var group errgroup.Group
	group.Go(w.Abort)
	<-aborted
	other := unfinished(t, behind[1], proxies[1], "revived", data)
	close(revived)
	must(t, group.Wait())
	nothingLeft(t, direct)
	must(t, other.Abort())
}

// abortWaits delays the response to a part: an aborted write must not abort the upload before that response.
func (s suite) abortWaits(t *testing.T) {
	const late = 100 * time.Millisecond
	store, proxy, direct := s.openBehind(t)
	arrived, answered := make(chan struct{}), make(chan struct{})
	proxy.OnReply(func(reply *http.Response) error {
		switch {
		case reply.Request.URL.Query().Has("partNumber"):
			close(arrived)
			select {
			case <-reply.Request.Context().Done():
			case <-time.After(late):
				close(answered)
			}
		case reply.Request.Method == http.MethodDelete:
			select {
			case <-answered:
			default:
				t.Error("the upload was aborted before its part was answered")
			}
		}
		return nil
	})
	ctx, stop := context.WithCancel(t.Context())
	w := store.Create(ctx, "late", "")
	write(t, w, random(partSize+1))
	<-arrived
	stop()
	must(t, w.Abort())
	nothingLeft(t, direct)
}

func (s suite) cancel(t *testing.T) {
	store := s.open(t)
	for _, size := range []int{0, 100, partSize + 1, 3*partSize + 1} {
		for _, end := range []struct {
			name string
			call func(*objects.Writer) error
		}{
			{"Write", func(w *objects.Writer) error { _, err := w.Write([]byte("more")); return err }},
			{"Commit", func(w *objects.Writer) error { _, err := w.Commit(); return err }},
			{"Abort", func(w *objects.Writer) error { return errors.Join(w.Abort(), context.Canceled) }},
		} {
			ctx, stop := context.WithCancel(t.Context())
			w := store.Create(ctx, "cancelled", "")
			write(t, w, random(size))
			stop()
			if err := end.call(w); !errors.Is(err, context.Canceled) || errors.Is(err, export.ErrUnavailable) {
				t.Errorf("%s after %d bytes and a cancel: %v", end.name, size, err)
			}
			nothingLeft(t, store)
		}
	}
}

// cancelOnTheWay cancels the context at each request of a write, after the store has executed it.
func (s suite) cancelOnTheWay(t *testing.T) {
	for _, size := range []int{100, 2*partSize + 1} {
		for step := 1; ; step++ {
			store, proxy, direct := s.openBehind(t)
			ctx, stop := context.WithCancel(t.Context())
			reached := cancelAt(proxy, step, stop)
			_, err := attempt(ctx, store, "cancelled", random(size))
			stop()
			if !reached() {
				must(t, err)
				break // the write has fewer requests than that
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%d bytes, cancelled at request %d: %v", size, step, err)
			}
			nothingLeft(t, direct)
		}
	}
}

// cancelAt calls stop after the store has executed the step'th request, and withholds its response.
func cancelAt(proxy *Proxy, step int, stop func()) (reached func() bool) {
	var mu sync.Mutex
	count := 0
	proxy.OnReply(func(reply *http.Response) error {
		mu.Lock()
		count++
		now := count == step
		mu.Unlock()
		if !now {
			return nil
		}
		stop()
		if reply.Request.URL.Query().Has("uploads") {
			return nil // the writer waits for this response even when cancelled
		}
		<-reply.Request.Context().Done()
		return reply.Request.Context().Err()
	})
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		return count >= step
	}
}

// storeLies changes the checksum and size that the store reports: Commit must compare them.
func (s suite) storeLies(t *testing.T) {
	for _, size := range []int{0, 100, partSize + 1} {
		for header, value := range map[string]string{
			"X-Amz-Checksum-Crc32c": "yZRlqg==",
			"Content-Length":        "99",
		} {
			store, proxy, direct := s.openBehind(t)
			proxy.OnReply(func(reply *http.Response) error {
				if reply.Request.Method == http.MethodHead {
					reply.Header.Set(header, value)
				}
				return nil
			})
			if _, err := attempt(t.Context(), store, "lies", random(size)); err == nil {
				t.Errorf("%d bytes, store reports %s %s: committed", size, header, value)
			}
			nothingLeft(t, direct)
		}
	}
}

func (s suite) corrupted(t *testing.T) {
	for _, size := range []int{100, partSize + 1} {
		store, proxy, direct := s.openBehind(t)
		proxy.CorruptAfter(50)
		if _, err := attempt(t.Context(), store, "corrupted", random(size)); err == nil {
			t.Errorf("%d bytes, one bit flipped: committed", size)
		}
		nothingLeft(t, direct)
	}
}

// lostAnswers drops each response of a write once, so that the request is executed and repeated. The object must be
// complete, and no second upload may be left.
func (s suite) lostAnswers(t *testing.T) {
	for _, size := range []int{100, 2*partSize + 1} {
		for step := 1; ; step++ {
			store, proxy, direct := s.openBehind(t)
			var mu sync.Mutex
			count := 0
			proxy.OnReply(func(*http.Response) error {
				mu.Lock()
				defer mu.Unlock()
				if count++; count == step {
					return errors.New("lost")
				}
				return nil
			})
			data := random(size)
			put(t, store, "lost", data)
			if got := read(t, direct, "lost", 0, -1); !bytes.Equal(got, data) {
				t.Errorf("%d bytes, response %d lost: the object has %d bytes, which differ", size, step, len(got))
			}
			if uploads := uploadKeys(t, direct); len(uploads) > 0 {
				t.Errorf("%d bytes, response %d lost: unfinished uploads %q", size, step, uploads)
			}
			if count < step {
				break
			}
		}
	}
}

func (s suite) outageWhileWriting(t *testing.T) {
	for _, test := range []struct{ size, after int64 }{
		{100, 0},
		{2*partSize + 1, 50}, {2*partSize + 1, 2*partSize - 50}, {2*partSize + 1, 2 * partSize},
	} {
		t.Run(fmt.Sprintf("%d of %d bytes", test.after, test.size), func(t *testing.T) {
			t.Parallel() // most of it is waiting for retries
			store, proxy, direct := s.openBehind(t)
			proxy.FailAfter(test.after)
			w := store.Create(t.Context(), "broken", "")
			_, err := w.Write(random(int(test.size)))
			if err == nil {
				_, err = w.Commit()
			}
			unavailable(t, "write", err)
			if _, again := w.Write([]byte("more")); again != err { //nolint:errorlint // the same value
				t.Errorf("Write after an error: %v, want the same error", again)
			}
			left := objectKeys(t, direct)
			left = append(left, uploadKeys(t, direct)...)
			if err := w.Abort(); err == nil && len(left) > 0 {
				t.Errorf("Abort left %q and returned no error", left)
			}
			proxy.Mend()
			must(t, w.Abort())
			nothingLeft(t, direct)
		})
	}
}

func (s suite) outageWhileReading(t *testing.T) {
	store, proxy, direct := s.openBehind(t)
	put(t, direct, "read", random(6*partSize)) // more than the buffers of the connection
	r, err := store.Open(t.Context(), "read", 0, -1)
	must(t, err)
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatalf("before the outage: %v", err)
	}
	proxy.Break()
	_, err = io.Copy(io.Discard, r)
	unavailable(t, "read", err)
	must(t, r.Close())

	proxy.Mend()
	ctx, stop := context.WithCancel(t.Context())
	r, err = store.Open(ctx, "read", 0, -1)
	must(t, err)
	stop()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("read after a cancel: %v", err)
	}
	must(t, r.Close())
}

func (s suite) down(t *testing.T) {
	store, proxy, _ := s.openBehind(t)
	proxy.Break()
	var group sync.WaitGroup // most of it is waiting for retries
	for name, call := range calls(store) {
		group.Go(func() { unavailable(t, name, call(t.Context())) })
	}
	group.Wait()
	proxy.Mend()
	must(t, store.Check(t.Context()))
}

// hangs: the store accepts requests and never responds; every call ends with its context. The start of an upload ends by
// itself, which is an outage.
func (s suite) hangs(t *testing.T) {
	store, proxy, _ := s.openBehind(t)
	proxy.Hang()
	t.Run("start of an upload", func(t *testing.T) {
		t.Parallel() // it takes 20 s
		w := store.Create(t.Context(), "hangs", "")
		_, err := w.Write(random(partSize + 1))
		unavailable(t, "write", err)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, and no deadline of the caller has passed", err)
		}
	})
	for name, call := range calls(store) {
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := call(ctx)
		stop()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want DeadlineExceeded", name, err)
		}
		if name == "Check" {
			unavailable(t, name, err)
		}
	}
}

// slowsDown: the store refuses every request, and then the first attempt of every request.
func (s suite) slowsDown(t *testing.T) {
	store, proxy, direct := s.openBehind(t)
	const reply = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
	proxy.OnRequest(func(*http.Request) (int, string) { return http.StatusServiceUnavailable, reply })
	var replies atomic.Int64 // of the store
	proxy.OnReply(func(*http.Response) error { replies.Add(1); return nil })
	var group sync.WaitGroup // most of it is waiting for retries
	for name, call := range calls(store) {
		group.Go(func() {
			err := call(t.Context())
			unavailable(t, name, err)
			if err != nil && !strings.Contains(err.Error(), "503") {
				t.Errorf("%s: %v, want the status", name, err)
			}
		})
	}
	group.Wait()
	if n := replies.Load(); n != 0 {
		t.Errorf("%d requests have reached the store", n)
	}

	var attempted sync.Map
	proxy.OnRequest(func(r *http.Request) (int, string) {
		if _, again := attempted.LoadOrStore(r.Method+" "+r.URL.String(), true); again {
			return 0, ""
		}
		return http.StatusServiceUnavailable, reply
	})
	data := random(3 * partSize)
	put(t, store, "written", data)
	if got := read(t, direct, "written", 0, -1); !bytes.Equal(got, data) {
		t.Errorf("%d bytes are written, want %d", len(got), len(data))
	}
	proxy.Mend()
	must(t, store.Check(t.Context()))
}

// calls returns every method that sends a request.
func calls(store *objects.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"EnsureBucket": store.EnsureBucket,
		"Check":        store.Check,
		"Open":         func(ctx context.Context) error { _, err := store.Open(ctx, "jobs/a/x", 0, -1); return err },
		"Stat":         func(ctx context.Context) error { _, err := store.Stat(ctx, "jobs/a/x"); return err },
		"List": func(ctx context.Context) error {
			return store.List(ctx, "jobs/", func(objects.Info) error { return nil })
		},
		"DeleteAll": func(ctx context.Context) error { _, err := store.DeleteAll(ctx, "jobs/a/x", "jobs/a/y"); return err },
		"Uploads": func(ctx context.Context) error {
			return store.Uploads(ctx, func(objects.Upload) error { return nil })
		},
		"Delete":       func(ctx context.Context) error { return store.Delete(ctx, "jobs/a/x") },
		"DeletePrefix": func(ctx context.Context) error { _, err := store.DeletePrefix(ctx, "jobs/a/"); return err },
		"AbortUpload":  func(ctx context.Context) error { return store.AbortUpload(ctx, "jobs/a/x", "id") },
	}
}

func (s suite) list(t *testing.T) {
	ctx := t.Context()
	store := s.open(t)
	const many = 1050 // more than one page
	size := int64(4)  // List returns stored sizes
	var group errgroup.Group
	group.SetLimit(8)
	for i := range many {
		group.Go(func() error {
			stored, err := attempt(ctx, store, fmt.Sprintf("jobs/a/%04d", i), []byte("1234"))
			if i == 0 && stored.Encrypted {
				size = segments.StoredSize(4)
			}
			return err
		})
	}
	must(t, group.Wait())
	put(t, store, "jobs/b/other", nil)

	next := 0
	must(t, store.List(ctx, "jobs/a/", func(o objects.Info) error {
		if want := fmt.Sprintf("jobs/a/%04d", next); o.Key != want || o.Size != size || o.Modified.IsZero() {
			t.Errorf("object %d: %+v, want key %s and %d bytes", next, o, want, size)
		}
		next++
		return nil
	}))
	if next != many {
		t.Errorf("listed %d objects, want %d", next, many)
	}

	enough := errors.New("enough")
	seen := 0
	err := store.List(ctx, "", func(objects.Info) error {
		if seen++; seen == 3 {
			return enough
		}
		return nil
	})
	if err != enough || seen != 3 { //nolint:errorlint // as it is, not wrapped
		t.Errorf("List stopped by yield: %v after %d", err, seen)
	}

	// A truncated list must not look complete.
	ended, stop := context.WithCancel(ctx)
	err = store.List(ended, "jobs/a/", func(objects.Info) error { stop(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("List cancelled while running: %v", err)
	}
	if err := store.List(ended, "jobs/a/", func(objects.Info) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("List cancelled before: %v", err)
	}

	if n, err := store.DeletePrefix(ctx, "jobs/a/"); n != many || err != nil {
		t.Errorf("DeletePrefix: %d, %v, want %d", n, err, many)
	}
	if keys := objectKeys(t, store); !slices.Equal(keys, []string{"jobs/b/other"}) {
		t.Errorf("left: %q", keys)
	}
}

func (s suite) deleteAll(t *testing.T) {
	ctx := t.Context()
	behind, proxy, store := s.openBehind(t)
	keys := []string{"jobs/a/1", "jobs/a/2 & <3>", "jobs/b/1", "jobs/b/2"}
	for _, key := range keys {
		put(t, store, key, []byte("x"))
	}
	var after []string
	must(t, store.ListAfter(ctx, "jobs/", keys[1], func(o objects.Info) error { after = append(after, o.Key); return nil }))
	if !slices.Equal(after, keys[2:]) {
		t.Errorf("listed after %q: %q, want %q", keys[1], after, keys[2:])
	}
	ended, stop := context.WithCancel(ctx)
	stop()
	if n, err := store.DeleteAll(ended, keys...); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("DeleteAll with an ended context: %d, %v", n, err)
	}
	before := proxy.Requests()
	if _, err := behind.DeleteAll(ctx, append(slices.Clone(keys[:3]), "jobs/missing/1")...); err != nil {
		t.Errorf("DeleteAll: %v", err)
	}
	if n := proxy.Requests() - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	if got := objectKeys(t, store); !slices.Equal(got, keys[3:]) {
		t.Errorf("left: %q, want %q", got, keys[3:])
	}
}

func (s suite) uploads(t *testing.T) {
	ctx := t.Context()
	behind, proxy, store := s.openBehind(t)
	keys := []string{"jobs/a/1", "jobs/a/2", "jobs/b/1"}
	writers := map[string]*objects.Writer{}
	for _, key := range keys {
		writers[key] = unfinished(t, behind, proxy, key, random(partSize+1))
	}
	var found []objects.Upload
	must(t, store.Uploads(ctx, func(u objects.Upload) error { found = append(found, u); return nil }))
	if got := uploadKeys(t, store); !slices.Equal(got, keys) {
		t.Fatalf("Uploads: %q, want %q", got, keys)
	}
	for _, u := range found {
		if u.ID == "" || u.Started.IsZero() {
			t.Errorf("upload without an id or a start: %+v", u)
		}
		must(t, store.AbortUpload(ctx, u.Key, u.ID))
		must(t, store.AbortUpload(ctx, u.Key, u.ID))
	}
	for _, w := range writers {
		if _, err := w.Commit(); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("Commit of a swept upload: %v, want ErrNotFound", err)
		}
	}
	nothingLeft(t, store)
}

func (s suite) deletePrefix(t *testing.T) {
	ctx := t.Context()
	behind, proxy, store := s.openBehind(t)
	kept := []string{"jobs/ab/x", "jobs/b/x"}
	for _, key := range append([]string{"jobs/a/Patient/1", "jobs/a/_manifest/1", "jobs/a/x"}, kept...) {
		put(t, store, key, []byte("x"))
	}
	data := random(partSize + 1)
	inside := unfinished(t, behind, proxy, "jobs/a/Patient/2", data)
	outside := unfinished(t, behind, proxy, "jobs/ab/y", data)

	ended, stop := context.WithCancel(ctx)
	stop()
	if n, err := store.DeletePrefix(ended, "jobs/a/"); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("DeletePrefix with an ended context: %d, %v", n, err)
	}
	before := proxy.Requests()
	if n, err := behind.DeletePrefix(ctx, "jobs/a/"); n != 4 || err != nil {
		t.Errorf("DeletePrefix: %d, %v, want 3 objects and 1 upload", n, err)
	}
	if n := proxy.Requests() - before; n != 5 {
		t.Errorf("%d requests, want 5: the uploads of the bucket, an abort, a list, a delete, and a list that finds nothing", n)
	}
	if n, err := store.DeletePrefix(ctx, "jobs/a/"); n != 0 || err != nil {
		t.Errorf("DeletePrefix again: %d, %v", n, err)
	}
	if got := objectKeys(t, store); !slices.Equal(got, kept) {
		t.Errorf("left: %q, want %q", got, kept)
	}
	if got := uploadKeys(t, store); !slices.Equal(got, []string{"jobs/ab/y"}) {
		t.Errorf("uploads left: %q", got)
	}
	if _, err := inside.Commit(); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("Commit below a deleted prefix: %v, want ErrNotFound", err)
	}
	_, err := outside.Commit()
	must(t, err)
	if got := read(t, store, "jobs/ab/y", 0, -1); !bytes.Equal(got, data) {
		t.Error("an upload outside the prefix was aborted")
	}
}

// unfinished begins a write of two parts and returns when the store has the first one, because a part that arrives later
// may recreate an upload.
func unfinished(t *testing.T, store *objects.Store, proxy *Proxy, key string, data []byte) *objects.Writer {
	t.Helper()
	arrived := make(chan struct{})
	proxy.OnReply(func(reply *http.Response) error {
		if reply.Request.URL.Query().Has("partNumber") {
			close(arrived)
		}
		return nil
	})
	w := store.Create(t.Context(), key, "")
	write(t, w, data)
	<-arrived
	proxy.OnReply(nil)
	return w
}

func (s suite) deletePrefixRefuses(t *testing.T) {
	store := s.open(t)
	put(t, store, "jobs/a", []byte("x"))
	for _, prefix := range []string{"", "/", "jobs", "jobs/a"} {
		if n, err := store.DeletePrefix(t.Context(), prefix); n != 0 || err == nil {
			t.Errorf("DeletePrefix(%q): %d, %v, want an error", prefix, n, err)
		}
	}
	if got := objectKeys(t, store); !slices.Equal(got, []string{"jobs/a"}) {
		t.Errorf("left: %q", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unavailable also checks that the error contains no query string.
func unavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("%s: %v, want ErrUnavailable", what, err)
	} else if strings.Contains(err.Error(), "?") {
		t.Errorf("%s: the error has a query string: %v", what, err)
	}
}

func random(size int) []byte {
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	_, _ = source.Read(data) // never fails
	return data
}

func write(t *testing.T, w *objects.Writer, data []byte) {
	t.Helper()
	if n, err := w.Write(data); n != len(data) || err != nil {
		t.Fatalf("Write: %d of %d, %v", n, len(data), err)
	}
}

func put(t *testing.T, store *objects.Store, key string, data []byte) {
	t.Helper()
	_, err := attempt(t.Context(), store, key, data)
	must(t, err)
}

// attempt writes an object.
func attempt(ctx context.Context, store *objects.Store, key string, data []byte) (objects.Stored, error) {
	w := store.Create(ctx, key, "application/octet-stream")
	if _, err := w.Write(data); err != nil {
		return objects.Stored{}, err
	}
	return w.Commit()
}

func read(t *testing.T, store *objects.Store, key string, offset, length int64) []byte {
	t.Helper()
	r, err := store.Open(t.Context(), key, offset, length)
	must(t, err)
	data, err := io.ReadAll(r)
	must(t, errors.Join(err, r.Close()))
	return data
}

func objectKeys(t *testing.T, store *objects.Store) []string {
	t.Helper()
	var keys []string
	must(t, store.List(t.Context(), "", func(o objects.Info) error { keys = append(keys, o.Key); return nil }))
	return keys
}

func uploadKeys(t *testing.T, store *objects.Store) []string {
	t.Helper()
	var keys []string
	must(t, store.Uploads(t.Context(), func(u objects.Upload) error { keys = append(keys, u.Key); return nil }))
	slices.Sort(keys)
	return keys
}

func nothingLeft(t *testing.T, store *objects.Store) {
	t.Helper()
	if keys := objectKeys(t, store); len(keys) > 0 {
		t.Errorf("objects left: %q", keys)
	}
	if keys := uploadKeys(t, store); len(keys) > 0 {
		t.Errorf("unfinished uploads left: %q", keys)
	}
}
