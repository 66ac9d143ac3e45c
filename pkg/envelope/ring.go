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

// Wrapped returns the wrapped data key of a job, or an empty one if its objects are in plaintext. It returns
// export.ErrNotFound for an unknown job.
type Wrapped func(ctx context.Context, job export.JobID) ([]byte, error)

// Ring looks up the data keys of objects, with a short-lived cache. It is safe for concurrent use. It is not a
// library's cache, because entries have two ages: Fresh, and Spare during an outage.
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

// NewRing returns a Ring with an empty cache. A nil now is time.Now.
func NewRing(keys *Keys, wrapped Wrapped, now func() time.Time) *Ring {
	if now == nil {
		now = time.Now
	}
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
	last, there := r.cached(job)
	// Whether a job is encrypted never changes, and a plaintext job has no key to destroy.
	if there && (last.dataKey == nil || now.Sub(last.at) < Fresh) {
		return last.dataKey, nil
	}
	dataKey, err := r.load(ctx, job)
	if errors.Is(err, errStore) && there && now.Sub(last.at) < Spare {
		return last.dataKey, nil
	}
	if err != nil {
		r.remove(job)
		return nil, err
	}
	r.store(job, entry{dataKey: dataKey, at: now})
	return dataKey, nil
}

// errStore means that the job store is unavailable, so the job may or may not exist.
var errStore = fmt.Errorf("job store: %w", export.ErrUnavailable)

func (r *Ring) load(ctx context.Context, job export.JobID) ([]byte, error) {
	wrapped, err := r.wrapped(ctx, job)
	if errors.Is(err, export.ErrUnavailable) {
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	if err != nil || len(wrapped) == 0 {
		return nil, err
	}
	return r.keys.unwrap(job, wrapped)
}

func (r *Ring) cached(job export.JobID) (entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, there := r.cache[job]
	return last, there
}

func (r *Ring) remove(job export.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.cache, job)
}

// store caches a key. It removes expired entries, and arbitrary ones when the cache is full.
func (r *Ring) store(job export.JobID, key entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, of := range r.cache {
		if key.at.Sub(of.at) >= Spare || len(r.cache) >= maxCached {
			delete(r.cache, other)
		}
	}
	r.cache[job] = key
}
