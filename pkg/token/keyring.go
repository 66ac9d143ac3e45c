package token

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sluice-fhir/sluice/pkg/export"
)

const (
	// issuerFresh is the age at which an issuer's key set is fetched again, so that a withdrawn key stops working.
	issuerFresh = 5 * time.Minute
	// issuerUsable is how long an issuer's key set is used while the issuer is down. Tokens are short-lived: after an hour
	// nearly all tokens signed with its keys have expired.
	issuerUsable = time.Hour

	// clientFresh is how long a client's key set is used when its response has no caching headers.
	clientFresh = 5 * time.Minute
	// clientFreshMax is the maximum that those headers can set.
	clientFreshMax = time.Hour

	// refetchLimit is the minimum time between two fetches while a usable set is held, however many tokens name unknown
	// keys.
	refetchLimit = time.Minute
	// retryLimit is the minimum time between two fetches while no usable set is held: after a failed one, or when the
	// response must not be cached. An assertion causes a fetch before its signature is checked, so anyone can cause it.
	retryLimit = 5 * time.Second
	// fetchTimeout bounds one fetch, body included.
	fetchTimeout = 10 * time.Second
)

// keyring holds one key set. A fresh set is used without a fetch. A stale set is used while it is fetched again in the
// background.
type keyring struct {
	read func(context.Context) ([]byte, http.Header, error)
	// keep returns how long a set is fresh and how long it is usable, given the header of its response.
	keep    func(http.Header) (fresh, usable time.Duration)
	file    *keyFile // nil unless read reads a file
	now     func() time.Time
	fetches *fetches
	flight  singleflight.Group

	mu        sync.Mutex
	set       keySet    // never modified, only replaced
	stale     time.Time // when the set becomes stale
	unusable  time.Time // when it becomes unusable
	attempted time.Time // start of the last fetch
	problem   error     // of the last fetch; nil when it succeeded
}

// keepIssuer ignores caching headers: an issuer that allows a day would keep a withdrawn key working for a day.
func keepIssuer(http.Header) (fresh, usable time.Duration) { return issuerFresh, issuerUsable }

// keepClient follows the caching headers of the client's server (B-26).
func keepClient(header http.Header) (fresh, usable time.Duration) {
	age := maxAge(header)
	return age, age
}

// find returns the key for an algorithm and a kid. The error is ErrInvalid when the set has none, and
// export.ErrUnavailable when the set cannot be fetched.
func (k *keyring) find(ctx context.Context, alg, kid string) (crypto.PublicKey, error) {
	set, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	key, err := set.find(alg, kid)
	if !errors.Is(err, errUnknownKey) {
		return key, err
	}
	// While the set cannot be fetched the key may exist, so the error is not ErrInvalid.
	if set, err = awaitFetch[keySet](ctx, k.start()); err != nil {
		return nil, err
	}
	return set.find(alg, kid)
}

// current returns the set when it is usable, nil otherwise. It waits for a fetch only when a key file has changed.
func (k *keyring) current(ctx context.Context) (keySet, error) {
	changed := k.file != nil && k.file.changed()
	if changed {
		if _, err := awaitFetch[keySet](ctx, k.start()); err != nil && ctx.Err() != nil {
			return nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if k.file != nil && !changed && k.set != nil && k.problem == nil {
		k.confirm(now, nil) // an unchanged file is always fresh
	}
	if !now.Before(k.unusable) {
		return nil, nil
	}
	if !now.Before(k.stale) && k.due(now) {
		k.start()
	}
	return k.set, nil
}

func (k *keyring) start() <-chan singleflight.Result {
	return startFetch(k.fetches, &k.flight, "", fetchTimeout, k.fetch)
}

// fetch reads the set again if it is due, and returns the newest one or the problem with it.
func (k *keyring) fetch(ctx context.Context) (keySet, error) {
	k.mu.Lock()
	now := k.now()
	if !k.due(now) {
		defer k.mu.Unlock()
		return k.set, k.problem
	}
	k.attempted = now
	k.mu.Unlock()

	data, header, err := k.read(ctx)
	var set keySet
	if err == nil {
		set, err = parseKeySet(data)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problem = nil
	if err != nil {
		k.problem = fmt.Errorf("%w: read key set: %w", export.ErrUnavailable, err)
		return nil, k.problem
	}
	k.set = set
	k.confirm(now, header)
	return set, nil
}

// confirm records that the set was current at the given time. The caller holds the lock.
func (k *keyring) confirm(now time.Time, header http.Header) {
	fresh, usable := k.keep(header)
	k.stale, k.unusable = now.Add(fresh), now.Add(usable)
}

// due reports whether another fetch is allowed. The caller holds the lock.
func (k *keyring) due(now time.Time) bool {
	since := now.Sub(k.attempted)
	switch {
	case k.file != nil && k.file.changed():
		return true
	case now.Before(k.unusable):
		return since >= refetchLimit
	}
	return since >= retryLimit
}

// maxAge returns how long a response may be cached (RFC 9111): the time in its Cache-Control, or else its Expires, minus
// its Age, and at most an hour. A response with malformed values is not cached.
func maxAge(header http.Header) time.Duration {
	age, given := time.Duration(0), false
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return 0
		case "max-age":
			seconds, ok := deltaSeconds(strings.Trim(value, `"`))
			if !ok {
				return 0
			}
			if !given || seconds < age { // the shorter of two values applies
				age, given = seconds, true
			}
		}
	}
	if expires := header.Get("Expires"); !given && expires != "" {
		at, err := http.ParseTime(expires)
		sent, dated := http.ParseTime(header.Get("Date"))
		if err != nil || dated != nil {
			return 0
		}
		age, given = at.Sub(sent), true
	}
	if !given {
		age = clientFresh
	}
	if held := header.Get("Age"); held != "" {
		spent, ok := deltaSeconds(held)
		if !ok {
			return 0
		}
		age -= spent
	}
	return min(max(age, 0), clientFreshMax)
}

// deltaSeconds parses a number of seconds. It returns at most a day.
func deltaSeconds(text string) (time.Duration, bool) {
	const day = 24 * 60 * 60
	seconds, err := strconv.ParseUint(strings.TrimSpace(text), 10, 63)
	if err != nil {
		return 0, false
	}
	return time.Duration(min(seconds, day)) * time.Second, true
}
