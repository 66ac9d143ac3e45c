package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// Info describes one object.
type Info struct {
	Key      string
	Size     int64     // bytes of the plaintext; in a List, stored bytes
	Modified time.Time // by the store's clock, to the second
}

// Open streams length bytes from offset; length < 0 means to the end. A range is cut at the end of the object, and
// empty if it begins at the end or later. It returns export.ErrNotFound for a missing object. The caller closes the
// reader; the stream ends with ctx.
func (s *Store) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 {
		return nil, fmt.Errorf("open object %s: offset %d is negative", key, offset)
	}
	if length == 0 { // HTTP has no empty range
		if _, err := s.Stat(ctx, key); err != nil {
			return nil, err
		}
		return http.NoBody, nil
	}
	dataKey, err := s.dataKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", key, err)
	}
	var body io.ReadCloser
	if dataKey != nil {
		body, err = s.openEncrypted(ctx, key, dataKey, offset, length)
	} else {
		body, _, err = s.get(ctx, key, offset, length)
	}
	if errors.Is(err, errPastEnd) {
		return http.NoBody, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", key, err)
	}
	return body, nil
}

// errPastEnd means that the range begins at the end of the object or later.
var errPastEnd = errors.New("the range begins after the end")

// get streams stored bytes and describes the object. length is positive, or negative for everything to the end.
func (s *Store) get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error) {
	var opts minio.GetObjectOptions
	ranged := offset > 0 || length > 0
	if ranged {
		opts.Set("Range", byteRange(offset, length))
	}
	body, object, header, err := s.client.GetObject(ctx, s.bucket, key, opts)
	if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return nil, Info{}, errPastEnd
	}
	if err != nil {
		return nil, Info{}, failure(ctx, err)
	}
	info := Info{Key: key, Size: object.Size, Modified: object.LastModified.UTC()}
	if ranged {
		answered, total, _ := strings.Cut(header.Get("Content-Range"), "/")
		info.Size, err = strconv.ParseInt(total, 10, 64)
		if err != nil || !strings.HasPrefix(answered, fmt.Sprintf("bytes %d-", offset)) {
			err := errors.New("the store returned a different range")
			return nil, Info{}, errors.Join(err, body.Close())
		}
	}
	return stream{body, body, func(err error) error {
		return fmt.Errorf("read object %s: %w", key, failure(ctx, err))
	}}, info, nil
}

func byteRange(offset, length int64) string {
	if length < 0 {
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// stream wraps the errors of a body.
type stream struct {
	io.Reader
	io.Closer
	wrap func(error) error
}

func (s stream) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = s.wrap(err)
	}
	return n, err
}

// Stat describes the object. It returns export.ErrNotFound for a missing object.
func (s *Store) Stat(ctx context.Context, key string) (Info, error) {
	dataKey, err := s.dataKey(ctx, key)
	if err != nil {
		return Info{}, fmt.Errorf("stat object %s: %w", key, err)
	}
	if dataKey != nil {
		info, err := s.statEncrypted(ctx, key, dataKey)
		if err != nil {
			return Info{}, fmt.Errorf("stat object %s: %w", key, err)
		}
		return info, nil
	}
	info, err := s.client.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, fmt.Errorf("stat object %s: %w", key, failure(ctx, err))
	}
	return Info{Key: key, Size: info.Size, Modified: info.LastModified.UTC()}, nil
}

// List streams the objects whose keys begin with prefix, in the order of their keys, with one page of 1000 in memory.
// It does not use data keys, so it also lists objects that can no longer be read. An error from yield ends the stream
// and is returned unchanged.
func (s *Store) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return s.ListAfter(ctx, prefix, "", yield)
}

// ListAfter is List of the objects whose keys come after the given one.
func (s *Store) ListAfter(ctx context.Context, prefix, after string, yield func(Info) error) error {
	opts := minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, FetchOwner: new(false)}
	for object := range s.client.ListObjectsIter(ctx, s.bucket, opts) {
		if object.Err != nil {
			return fmt.Errorf("list objects below %q: %w", prefix, failure(ctx, object.Err))
		}
		if err := yield(Info{Key: object.Key, Size: object.Size, Modified: object.LastModified.UTC()}); err != nil {
			return err
		}
	}
	// minio-go ends the stream without an error when ctx ends. A truncated list must not look complete.
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list objects below %q: %w", prefix, err)
	}
	return nil
}
