package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// deleteBatch is how many objects one request deletes: the limit of S3.
	deleteBatch = 1000
	// deletePasses bounds the passes of DeletePrefix: writers below a prefix must be stopped before it is deleted.
	deletePasses = 5
)

// Upload is a multipart upload that has neither been completed nor aborted.
type Upload struct {
	Key     string
	ID      string
	Started time.Time // by the store's clock
}

// Delete deletes the object. It succeeds if the object does not exist.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := failure(ctx, s.client.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}))
	if err != nil && !errors.Is(err, export.ErrNotFound) {
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	return nil
}

// DeleteAll deletes the objects, a thousand with one request. It succeeds if some do not exist. It returns the number of
// deleted objects, also with an error.
func (s *Store) DeleteAll(ctx context.Context, keys ...string) (deleted int, err error) {
	for batch := range slices.Chunk(keys, deleteBatch) {
		targets := func(yield func(minio.ObjectInfo) bool) {
			for _, key := range batch {
				if !yield(minio.ObjectInfo{Key: key}) {
					return
				}
			}
		}
		results, err := s.client.RemoveObjectsWithIter(ctx, s.bucket, targets, minio.RemoveObjectsOptions{})
		if err != nil {
			return deleted, fmt.Errorf("delete objects: %w", failure(ctx, err))
		}
		var failed error
		confirmed := 0
		for result := range results {
			err := failure(ctx, result.Err)
			if err != nil && !errors.Is(err, export.ErrNotFound) {
				failed = fmt.Errorf("delete object %s: %w", result.ObjectName, err)
				continue
			}
			confirmed++
		}
		deleted += confirmed
		switch {
		case failed != nil:
			return deleted, failed
		case ctx.Err() != nil: // minio-go ends early without an error
			return deleted, fmt.Errorf("delete objects: %w", ctx.Err())
		case confirmed < len(batch):
			return deleted, fmt.Errorf("delete objects: the store confirmed %d of %d: %w", confirmed, len(batch),
				export.ErrUnavailable)
		}
	}
	return deleted, nil
}

// DeletePrefix aborts all unfinished uploads below the prefixes and deletes all objects, until it finds no object. It
// returns the number of removed objects and uploads, also with an error; it can be called again. A prefix must end with a
// slash, so that "jobs/a" does not include "jobs/ab/". It returns export.ErrConflict if objects keep appearing. A writer
// that begins an upload meanwhile leaves it, or its object: when it learns that the prefix was deleted, it has to call
// DeletePrefix again.
func (s *Store) DeletePrefix(ctx context.Context, prefixes ...string) (deleted int, err error) {
	for _, prefix := range prefixes {
		if prefix == "/" || !strings.HasSuffix(prefix, "/") {
			return 0, fmt.Errorf("delete below %q: the prefix is empty or does not end with a slash", prefix)
		}
	}
	// Uploads first: an aborted upload cannot become an object later.
	// MinIO lists uploads of one exact key or of the whole bucket, not below a prefix.
	deleted, err = s.abortListed(ctx, "", func(key string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
	})
	if err != nil {
		return deleted, fmt.Errorf("delete below %s: %w", strings.Join(prefixes, ", "), err)
	}
	for _, prefix := range prefixes {
		objects, err := s.deleteBelow(ctx, prefix)
		deleted += objects
		if err != nil {
			return deleted, fmt.Errorf("delete below %s: %w", prefix, err)
		}
	}
	return deleted, nil
}

// abortListed aborts the uploads of the key, or of the bucket for "", that are wanted, and returns their number.
func (s *Store) abortListed(ctx context.Context, key string, wanted func(key string) bool) (aborted int, err error) {
	err = s.uploads(ctx, key, func(u Upload) error {
		if !wanted(u.Key) {
			return nil
		}
		if err := s.AbortUpload(ctx, u.Key, u.ID); err != nil {
			return err
		}
		aborted++
		return nil
	})
	return aborted, err
}

func (s *Store) deleteBelow(ctx context.Context, prefix string) (deleted int, err error) {
	for range deletePasses {
		found := 0
		var batch []string
		flush := func() error {
			n, err := s.DeleteAll(ctx, batch...)
			deleted += n
			batch = batch[:0]
			return err
		}
		err := s.List(ctx, prefix, func(object Info) error {
			found++
			if batch = append(batch, object.Key); len(batch) < deleteBatch {
				return nil
			}
			return flush()
		})
		if err == nil {
			err = flush()
		}
		if err != nil || found == 0 {
			return deleted, err
		}
	}
	return deleted, fmt.Errorf("objects keep appearing: %w", export.ErrConflict)
}

// Uploads streams all unfinished uploads of the bucket. An error from yield ends the stream and is returned unchanged.
// MinIO only lists uploads that began since its start; it removes older ones after a day.
func (s *Store) Uploads(ctx context.Context, yield func(Upload) error) error {
	return s.uploads(ctx, "", yield)
}

func (s *Store) uploads(ctx context.Context, key string, yield func(Upload) error) error {
	keyMarker, idMarker := "", ""
	for {
		page, err := s.client.ListMultipartUploads(ctx, s.bucket, key, keyMarker, idMarker, "", 1000)
		if err != nil {
			return fmt.Errorf("list unfinished uploads: %w", failure(ctx, err))
		}
		for _, u := range page.Uploads {
			if err := yield(Upload{Key: u.Key, ID: u.UploadID, Started: u.Initiated.UTC()}); err != nil {
				return err
			}
		}
		if !page.IsTruncated {
			return nil
		}
		if page.NextKeyMarker == keyMarker && page.NextUploadIDMarker == idMarker {
			return errors.New("list unfinished uploads: the store repeats a page")
		}
		keyMarker, idMarker = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// AbortUpload aborts the upload and deletes its parts. It succeeds if the upload does not exist.
func (s *Store) AbortUpload(ctx context.Context, key, id string) error {
	err := failure(ctx, s.client.AbortMultipartUpload(ctx, s.bucket, key, id))
	if err != nil && !errors.Is(err, export.ErrNotFound) {
		return fmt.Errorf("abort upload of %s: %w", key, err)
	}
	return nil
}
