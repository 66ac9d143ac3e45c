package objects_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
)

// The MinIO server of the tests has one key, sluice-test.
func TestServerSideEncryption(t *testing.T) {
	for serverSide, want := range map[string]string{"": "", "s3": "AES256", "kms:sluice-test": "aws:kms"} {
		s := newShelf(t)
		s.cfg.ServerSide = serverSide
		store := s.store(nil)
		for key, size := range map[string]int{"small": 100, "parts": objects.MinPartSize + 1} {
			plain := bytes.Repeat([]byte{'x'}, size)
			put(t, store, key, plain)
			if got, err := readAll(t, store, key, 0); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%q, %s: read %d bytes, which differ, or error %v", serverSide, key, len(got), err)
			}
			info, err := s.outside.StatObject(t.Context(), s.cfg.Bucket, key, minio.StatObjectOptions{})
			must(t, err)
			if got := info.Metadata.Get("X-Amz-Server-Side-Encryption"); got != want {
				t.Errorf("%q, %s: stored with encryption %q, want %q", serverSide, key, got, want)
			}
		}
	}
}

// The store refuses an unknown key with its own error, and nothing is stored.
func TestServerSideEncryptionRefused(t *testing.T) {
	s := newShelf(t)
	s.cfg.ServerSide = "kms:no-such-key"
	store := s.store(nil)
	for _, size := range []int{100, objects.MinPartSize + 1} {
		w := store.Create(t.Context(), "refused", "")
		_, err := w.Write(make([]byte, size))
		if err == nil {
			_, err = w.Commit()
		}
		if err == nil || errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), "key ID does not exist") {
			t.Errorf("%v, want the error text of the store, and not an outage", err)
		}
		must(t, s.store(nil).List(t.Context(), "", func(o objects.Info) error { t.Errorf("%s is left", o.Key); return nil }))
		must(t, s.store(nil).Uploads(t.Context(), func(u objects.Upload) error {
			t.Errorf("an upload of %s is left", u.Key)
			return nil
		}))
	}
}

// Responses of a store without key management, and of one that ignores the header.
func TestServerSideEncryptionUnknownToTheStore(t *testing.T) {
	s := newShelf(t)
	direct := s.cfg.Endpoint
	s.cfg.ServerSide = "s3"
	for what, change := range map[string]func(reply *http.Response){
		"the store has no key management": func(reply *http.Response) {
			if reply.Request.Method != http.MethodPut && reply.Request.Method != http.MethodPost {
				return
			}
			const answer = "<Error><Code>NotImplemented</Code><Message>KMS is not configured</Message></Error>"
			reply.StatusCode, reply.ContentLength = http.StatusNotImplemented, int64(len(answer))
			reply.Header.Set("Content-Type", "application/xml")
			reply.Header.Del("Content-Length")
			reply.Body = io.NopCloser(strings.NewReader(answer))
		},
		"the store does not know the header": func(reply *http.Response) {
			reply.Header.Del("X-Amz-Server-Side-Encryption")
		},
	} {
		proxy := objectstest.NewProxy(t, direct)
		proxy.OnReply(func(reply *http.Response) error { change(reply); return nil })
		s.cfg.Endpoint = proxy.Endpoint()
		w := s.store(nil).Create(t.Context(), "unknown", "")
		_, err := w.Write([]byte("x"))
		must(t, err)
		_, err = w.Commit()
		if err == nil || errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%s: %v, want an error that is not an outage", what, err)
		}
	}
}
