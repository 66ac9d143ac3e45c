package envelope

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// Fresh is how long a cached key is used without reading the job again. A purge by another process takes effect after
	// it.
	Fresh = 2 * time.Second
	// Spare is how long a cached key is used while the job store is unavailable, so that workers survive a short outage.
	Spare = 30 * time.Second

	maxCached = 256 // jobs
)

// Wrapped returns the wrapped data key of a job, or an empty one if its objects are in plaintext, and the job's owner. It
// returns export.ErrNotFound for an unknown job.
type Wrapped func(ctx context.Context, job export.JobID) ([]byte, export.Owner, error)

// Ring looks up the data keys of objects, with a short-lived cache. It is safe for concurrent use. It does not
// use a library's cache, because entries have two lifetimes: Fresh, and Spare during an outage.
type Ring struct {
	keys    *Keys
	wrapped Wrapped
	now     func() time.Time

	mu    sync.Mutex
	cache map[export.JobID]entry
}

type entry struct {
	dataKey []byte // nil: the job's objects are in plaintext
	at      time.Time
}

// NewRing returns a Ring with an empty cache.
func NewRing(keys *Keys, wrapped Wrapped, now func() time.Time) *Ring {
	return &Ring{keys: keys, wrapped: wrapped, now: now, cache: map[export.JobID]entry{}}
}

// Key returns the data key of an object, nil if it is in plaintext. It returns export.ErrNotFound if the object's job
// does not exist, export.ErrUnavailable if the job store is unavailable or the master key is not configured, and
// another error if the object does not belong to a job.
func (r *Ring) Key(ctx context.Context, object string) ([]byte, error) {
	job, ours := export.JobOf(object)
	if !ours {
		return nil, errors.New("the object does not belong to a job")
	}
	now := r.now()
	r.mu.Lock()
	last, there := r.cache[job]
	r.mu.Unlock()
	// Whether a job is encrypted never changes, and a plaintext job has no key to destroy.
	if there && (last.dataKey == nil || now.Sub(last.at) < Fresh) {
		return last.dataKey, nil
	}
	var dataKey []byte
	wrapped, owner, err := r.wrapped(ctx, job)
	switch {
	case errors.Is(err, export.ErrUnavailable):
		if there && now.Sub(last.at) < Spare {
			return last.dataKey, nil
		}
		err = fmt.Errorf("job store: %w: %w", export.ErrUnavailable, err)
	case err == nil && len(wrapped) > 0:
		dataKey, err = r.keys.unwrap(job, owner, wrapped)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.cache, job)
		return nil, err
	}
	for other, of := range r.cache { // evict expired keys, and arbitrary ones while the cache is full
		if now.Sub(of.at) >= Spare || len(r.cache) >= maxCached {
			delete(r.cache, other)
		}
	}
	r.cache[job] = entry{dataKey: dataKey, at: now}
	return dataKey, nil
}
