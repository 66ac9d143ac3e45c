package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// When key sets are fetched. Tokens of keys that are held never wait for any of it, unless a key file changed.
const (
	// refreshAfter: a set older than this is fetched again behind the back of the token that meets it, so that a
	// withdrawn key stops working.
	refreshAfter = 5 * time.Minute
	// refetchLimit: at most one fetch of an issuer in this time, however many unknown keys tokens name.
	refetchLimit = time.Minute
	// retryLimit: the same while no usable set is held, so that a recovered issuer serves again soon.
	retryLimit = 5 * time.Second
	// staleFor: for so long after it was last confirmed a set serves while its issuer is down. Tokens are
	// short-lived: after an hour there are hardly any left that the set could verify.
	staleFor = time.Hour
	// fetchTimeout bounds one fetch, body included.
	fetchTimeout = 10 * time.Second
)

// origin is where a key set comes from.
type origin interface {
	// read returns the whole set.
	read(ctx context.Context) ([]byte, error)
	// changed reports at little cost whether the set differs from what was read last (yes), is the same for sure
	// (no), or cannot be told (unknown).
	changed() answer
}

type answer int

const (
	unknown answer = iota
	yes
	no
)

// keyring holds the key set of one issuer and keeps it fresh. At most one fetch runs at a time; whoever needs its
// outcome waits for that one.
type keyring struct {
	origin  origin
	now     func() time.Time
	life    context.Context // ends with the Verifier: a fetch outlives the token that started it
	fetches *sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	set       keySet        // what was read last; never altered, only replaced
	confirmed time.Time     // when set was known to be the origin's; zero: never
	attempted time.Time     // when the last fetch began
	problem   error         // why the last fetch brought nothing; nil when it did
	running   chan struct{} // closed when the fetch under way ends; nil when there is none
}

// errUnknownKey says that the set in hand has no key of that name.
var errUnknownKey = errors.New("no such key")

// find returns the key for an algorithm and a kid, ErrInvalid when the issuer has none, or export.ErrUnavailable when
// that cannot be told.
func (k *keyring) find(ctx context.Context, alg, kid string) (crypto.PublicKey, error) {
	set, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	key, err := set.find(alg, kid)
	if !errors.Is(err, errUnknownKey) {
		return key, err
	}
	set, err = k.newest(ctx)
	if err != nil {
		return nil, err
	}
	key, err = set.find(alg, kid)
	if errors.Is(err, errUnknownKey) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return key, err
}

// current returns the set in hand, nil when there is none that may be used, and starts a fetch when the set is old.
func (k *keyring) current(ctx context.Context) (keySet, error) {
	changed := k.origin.changed()
	k.mu.Lock()
	now := k.now()
	if changed == no && k.problem == nil && !k.confirmed.IsZero() {
		k.confirmed = now
	}
	if changed == yes {
		done := k.start(now)
		k.mu.Unlock()
		if err := await(ctx, done); err != nil {
			return nil, err
		}
		k.mu.Lock()
	} else if k.usable(now) && now.Sub(k.confirmed) >= refreshAfter && now.Sub(k.attempted) >= refetchLimit {
		k.start(now)
	}
	defer k.mu.Unlock()
	if !k.usable(now) {
		return nil, nil
	}
	return k.set, nil
}

// newest returns the set after one more fetch, or after the one under way, or as it is when one ended just now.
func (k *keyring) newest(ctx context.Context) (keySet, error) {
	k.mu.Lock()
	now := k.now()
	limit := refetchLimit
	if !k.usable(now) {
		limit = retryLimit
	}
	if k.running != nil || k.attempted.IsZero() || now.Sub(k.attempted) >= limit {
		done := k.start(now)
		k.mu.Unlock()
		if err := await(ctx, done); err != nil {
			return nil, err
		}
		k.mu.Lock()
	}
	defer k.mu.Unlock()
	if k.problem != nil { // the key may well exist: without the set nobody can say
		return nil, fmt.Errorf("%w: %w", export.ErrUnavailable, k.problem)
	}
	return k.set, nil
}

// usable reports whether the set may still be used. The lock is held.
func (k *keyring) usable(now time.Time) bool {
	return !k.confirmed.IsZero() && now.Sub(k.confirmed) <= staleFor
}

// start begins a fetch unless one is under way and returns what is closed at its end. The lock is held.
func (k *keyring) start(now time.Time) <-chan struct{} {
	if k.running != nil {
		return k.running
	}
	done := make(chan struct{})
	if k.closed {
		k.problem = errors.New("verifier is closed")
		close(done)
		return done
	}
	k.running, k.attempted = done, now
	k.fetches.Go(func() {
		set, err := k.fetch()
		k.mu.Lock()
		defer k.mu.Unlock()
		if err == nil {
			k.set, k.confirmed = set, now
		}
		k.problem, k.running = err, nil
		close(done)
	})
	return done
}

func (k *keyring) fetch() (keySet, error) {
	ctx, cancel := context.WithTimeout(k.life, fetchTimeout)
	defer cancel()
	data, err := k.origin.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	return parseKeySet(data)
}

func (k *keyring) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
}

func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: wait for key set: %w", export.ErrUnavailable, ctx.Err())
	}
}
