package objects

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	deletesAtOnce = 8
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

// DeletePrefix deletes all objects and aborts all unfinished uploads below prefix, and repeats that until it finds
// none. It returns the number of removed objects and uploads, also with an error; it can be called again. The prefix
// must end with a slash, so that "jobs/a" does not include "jobs/ab/". It returns export.ErrConflict if objects keep
// appearing.
func (s *Store) DeletePrefix(ctx context.Context, prefix string) (deleted int, err error) {
	if prefix == "/" || !strings.HasSuffix(prefix, "/") {
		return 0, fmt.Errorf("delete below %q: the prefix is empty or does not end with a slash", prefix)
	}
	for range deletePasses {
		// Uploads first: an aborted upload cannot become an object later.
		// MinIO lists uploads of one exact key or of the whole bucket, not below a prefix.
		uploads, err := s.abortListed(ctx, "", func(key string) bool { return strings.HasPrefix(key, prefix) })
		deleted += uploads
		if err != nil {
			return deleted, fmt.Errorf("delete below %s: %w", prefix, err)
		}
		objects, err := s.deleteBelow(ctx, prefix)
		deleted += objects
		if err != nil {
			return deleted, fmt.Errorf("delete below %s: %w", prefix, err)
		}
		if uploads+objects == 0 {
			return deleted, nil
		}
	}
	return deleted, fmt.Errorf("delete below %s: objects keep appearing: %w", prefix, export.ErrConflict)
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

func (s *Store) deleteBelow(ctx context.Context, prefix string) (int, error) {
	var deleted atomic.Int64
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(deletesAtOnce)
	listed := s.List(inner, prefix, func(object Info) error {
		group.Go(func() error {
			if err := s.Delete(inner, object.Key); err != nil {
				return err
			}
			deleted.Add(1)
			return nil
		})
		return nil
	})
	err := group.Wait()
	if err == nil { // otherwise the list ended because a delete failed
		err = listed
	}
	return int(deleted.Load()), err
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
