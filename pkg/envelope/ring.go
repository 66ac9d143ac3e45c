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
	// Fresh is how long a key is used without another look at the job: a purge elsewhere counts after so long.
	Fresh = 2 * time.Second
	// Spare is how long a key is used while the job store cannot be reached: workers go on through a short outage.
	Spare = 30 * time.Second

	// heldMost bounds how many jobs' keys are held.
	heldMost = 256
)

// Wrapped returns the wrapped data key of a job, empty if its objects are in plaintext, and export.ErrNotFound when there
// is no such job.
type Wrapped func(ctx context.Context, job export.JobID) ([]byte, error)

// Ring finds the data keys of objects, and holds those of a few jobs for a moment. It may be used from any goroutine.
type Ring struct {
	keys    *Keys
	wrapped Wrapped
	now     func() time.Time

	mu   sync.Mutex
	held map[export.JobID]held
}

type held struct {
	dataKey []byte // nil: the job's objects are in plaintext
	at      time.Time
}

// NewRing returns a ring without keys. now is nil for the clock of the machine.
func NewRing(keys *Keys, wrapped Wrapped, now func() time.Time) *Ring {
	if now == nil {
		now = time.Now
	}
	return &Ring{keys: keys, wrapped: wrapped, now: now, held: map[export.JobID]held{}}
}

// Key returns the data key of the object of that object key, nil if it is in plaintext. What is of no job is an error,
// export.ErrNotFound is one of a job that is no more, and export.ErrUnavailable says that the job store cannot be reached
// or that the master key is not here.
func (r *Ring) Key(ctx context.Context, object string) ([]byte, error) {
	job, ours := export.JobOf(object)
	if !ours {
		return nil, errors.New("the object is of no job")
	}
	now := r.now()
	last, there := r.last(job)
	// Whether a job is encrypted never changes, and of one that is not there is nothing to destroy.
	if there && (last.dataKey == nil || now.Sub(last.at) < Fresh) {
		return last.dataKey, nil
	}
	dataKey, err := r.look(ctx, job)
	if errors.Is(err, errStore) && there && now.Sub(last.at) < Spare {
		return last.dataKey, nil
	}
	if err != nil {
		r.drop(job)
		return nil, err
	}
	r.hold(job, held{dataKey: dataKey, at: now})
	return dataKey, nil
}

// errStore: the job store cannot be reached, and nobody knows whether the job is still there.
var errStore = fmt.Errorf("job store: %w", export.ErrUnavailable)

func (r *Ring) look(ctx context.Context, job export.JobID) ([]byte, error) {
	wrapped, err := r.wrapped(ctx, job)
	if errors.Is(err, export.ErrUnavailable) {
		return nil, fmt.Errorf("%w: %w", errStore, err)
	}
	if err != nil || len(wrapped) == 0 {
		return nil, err
	}
	return r.keys.unwrap(job, wrapped)
}

func (r *Ring) last(job export.JobID) (held, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, there := r.held[job]
	return last, there
}

func (r *Ring) drop(job export.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.held, job)
}

// hold keeps a key. It lets go of those that are past their use, and of any when there are too many.
func (r *Ring) hold(job export.JobID, key held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, of := range r.held {
		if key.at.Sub(of.at) >= Spare || len(r.held) >= heldMost {
			delete(r.held, other)
		}
	}
	r.held[job] = key
}
