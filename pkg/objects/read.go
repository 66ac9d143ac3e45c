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
	Size     int64     // bytes; of an encrypted object those of the plaintext, but the stored ones in a List
	Modified time.Time // when it became visible, by the store's clock, to the second
}

// Open streams length bytes from offset on; length < 0 is everything to the end. Like a read from a file, what lies
// behind the end is not there: a range is cut at the end of the object and is empty when it begins there or later.
// ErrNotFound when there is no such object. The caller closes the reader; ending ctx ends the stream.
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
	if errors.Is(err, errBehindEnd) {
		return http.NoBody, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", key, err)
	}
	return body, nil
}

// errBehindEnd: the range begins at the end of the object or behind it.
var errBehindEnd = errors.New("the range is behind the end")

// get streams stored bytes, with a length above zero or below for everything to the end, and describes the object.
func (s *Store) get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, Info, error) {
	var opts minio.GetObjectOptions
	ranged := offset > 0 || length > 0
	if ranged {
		opts.Set("Range", byteRange(offset, length))
	}
	body, object, header, err := s.client.GetObject(ctx, s.bucket, key, opts)
	if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return nil, Info{}, errBehindEnd
	}
	if err != nil {
		return nil, Info{}, failure(ctx, err)
	}
	info := Info{Key: key, Size: object.Size, Modified: object.LastModified.UTC()}
	if ranged {
		answered, total, _ := strings.Cut(header.Get("Content-Range"), "/")
		info.Size, err = strconv.ParseInt(total, 10, 64)
		if err != nil || !strings.HasPrefix(answered, fmt.Sprintf("bytes %d-", offset)) {
			err := errors.New("the store answered another range than was asked")
			return nil, Info{}, errors.Join(err, body.Close())
		}
	}
	return &reader{ctx: ctx, key: key, body: body}, info, nil
}

func byteRange(offset, length int64) string {
	if length < 0 {
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// reader gives a broken stream the error that callers know.
type reader struct {
	ctx  context.Context // the request's
	key  string
	body io.ReadCloser
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read object %s: %w", r.key, failure(r.ctx, err))
	}
	return n, err
}

func (r *reader) Close() error { return r.body.Close() }

// Stat describes the object; ErrNotFound when there is none.
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

// List streams the objects whose keys begin with prefix, in the order of their keys, a page of 1000 in memory at a
// time. It needs no keys: what nobody can read any more has to be found, too. An error from yield stops the stream and is
// returned as it is.
func (s *Store) List(ctx context.Context, prefix string, yield func(Info) error) error {
	return s.list(ctx, prefix, true, func(o minio.ObjectInfo) error {
		return yield(Info{Key: o.Key, Size: o.Size, Modified: o.LastModified.UTC()})
	})
}

// Prefixes streams the prefixes one level below prefix, which is "" or ends with a slash: "jobs/" gives "jobs/<id>/"
// for every job that has an object. An error from yield stops the stream and is returned as it is.
func (s *Store) Prefixes(ctx context.Context, prefix string, yield func(prefix string) error) error {
	return s.list(ctx, prefix, false, func(o minio.ObjectInfo) error {
		if !strings.HasSuffix(o.Key, "/") { // an object on this level
			return nil
		}
		return yield(o.Key)
	})
}

func (s *Store) list(ctx context.Context, prefix string, deep bool, yield func(minio.ObjectInfo) error) error {
	opts := minio.ListObjectsOptions{Prefix: prefix, Recursive: deep, FetchOwner: new(false)}
	for object := range s.client.ListObjectsIter(ctx, s.bucket, opts) {
		if object.Err != nil {
			return fmt.Errorf("list objects below %q: %w", prefix, failure(ctx, object.Err))
		}
		if err := yield(object); err != nil {
			return err
		}
	}
	// The library ends the stream silently when ctx ends. A list cut short must never pass for an empty prefix.
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list objects below %q: %w", prefix, err)
	}
	return nil
}
