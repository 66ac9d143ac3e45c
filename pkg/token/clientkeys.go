package token

import (
	"container/list"
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// How long the key set behind a client's URL is used. The client decides (B-26: not longer than its
// Cache-Control says); these are for those who do not.
const (
	clientSetAge     = 5 * time.Minute // without a word about caching
	clientSetMostAge = time.Hour       // whatever the client says
)

// clientSets are the key sets of clients that were registered by URL: those asked for last, as many as most. The
// others are fetched again when they are needed.
type clientSets struct {
	client  *http.Client
	now     func() time.Time
	life    context.Context // ends with the Assertions: a fetch outlives the request that started it
	fetches *sync.WaitGroup
	most    int

	mu     sync.Mutex
	closed bool // nothing is fetched any more
	byURL  map[string]*clientSet
	used   list.List // of *clientSet, the one asked for last in front
}

// clientSet is the key set of one URL. At most one fetch of it runs at a time.
type clientSet struct {
	remote  remote
	all     *clientSets
	element *list.Element

	mu      sync.Mutex
	set     keySet
	until   time.Time // set may be used before this instant
	began   time.Time // when the last fetch did
	problem error     // why the last fetch brought nothing; nil when it did
	running *flight   // the fetch under way, or nil
}

// flight is a fetch. Its outcome may be read once done is closed.
type flight struct {
	done chan struct{}
	set  keySet
	err  error
}

func (c *clientSets) of(url string) *clientSet {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found, ok := c.byURL[url]; ok {
		c.used.MoveToFront(found.element)
		return found
	}
	added := &clientSet{remote: remote{url: url, client: c.client}, all: c}
	added.element = c.used.PushFront(added)
	c.byURL[url] = added
	if c.used.Len() > c.most {
		if oldest, ok := c.used.Remove(c.used.Back()).(*clientSet); ok {
			delete(c.byURL, oldest.remote.url)
		}
	}
	return added
}

// find returns the key for an algorithm and a kid, ErrInvalid when the set has none, or export.ErrUnavailable when that
// cannot be told. A kid that is not in the set makes it be fetched again, at most once a minute.
func (s *clientSet) find(ctx context.Context, alg, kid string) (crypto.PublicKey, error) {
	s.mu.Lock()
	now := s.all.now()
	fresh := now.Before(s.until)
	if fresh {
		key, err := s.set.find(alg, kid)
		if !errors.Is(err, errUnknownKey) {
			s.mu.Unlock()
			return key, err
		}
	}
	if s.running == nil {
		since := now.Sub(s.began)
		switch {
		case fresh && since < refetchLimit:
			s.mu.Unlock()
			return nil, fmt.Errorf("%w: %w", ErrInvalid, errUnknownKey)
		case !fresh && s.problem != nil && since < retryLimit:
			err := s.problem
			s.mu.Unlock()
			return nil, err
		}
	}
	flight := s.running
	if flight == nil {
		flight = s.start(now)
	}
	s.mu.Unlock()

	if err := await(ctx, flight.done); err != nil {
		return nil, err
	}
	if flight.err != nil { // the key may well exist: without the set nobody can say
		return nil, flight.err
	}
	key, err := flight.set.find(alg, kid)
	if errors.Is(err, errUnknownKey) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return key, err
}

// start begins a fetch. The lock is held. What is fetched serves those who wait for it even when it must not be kept.
func (s *clientSet) start(now time.Time) *flight {
	flight := &flight{done: make(chan struct{})}
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.all.closed {
		flight.err = fmt.Errorf("%w: client's key set: nothing is fetched any more", export.ErrUnavailable)
		close(flight.done)
		return flight
	}
	s.running, s.began = flight, now
	s.all.fetches.Go(func() {
		set, age, err := s.fetch()
		if err != nil {
			err = fmt.Errorf("%w: client's key set: %w", export.ErrUnavailable, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.set, s.until = set, now.Add(age)
		}
		s.problem, s.running = err, nil
		flight.set, flight.err = set, err
		close(flight.done)
	})
	return flight
}

func (c *clientSets) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

func (s *clientSet) fetch() (keySet, time.Duration, error) {
	ctx, cancel := context.WithTimeout(s.all.life, fetchTimeout)
	defer cancel()
	data, header, err := s.remote.get(ctx)
	if err != nil {
		return nil, 0, err
	}
	set, err := parseKeySet(data)
	return set, maxAge(header), err
}

// maxAge returns for how long an answer may be kept (RFC 9111): what its Cache-Control or else its Expires says, less
// the age that it has already, and an hour at most. What cannot be understood is not kept.
func maxAge(header http.Header) time.Duration {
	age, told := time.Duration(0), false
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
			if !told || seconds < age { // stated twice: the shorter one harms nobody
				age, told = seconds, true
			}
		}
	}
	if expires := header.Get("Expires"); !told && expires != "" {
		at, err := http.ParseTime(expires)
		sent, dated := http.ParseTime(header.Get("Date"))
		if err != nil || dated != nil {
			return 0
		}
		age, told = at.Sub(sent), true
	}
	if !told {
		age = clientSetAge
	}
	if held := header.Get("Age"); held != "" {
		spent, ok := deltaSeconds(held)
		if !ok {
			return 0
		}
		age -= spent
	}
	return min(max(age, 0), clientSetMostAge)
}

// deltaSeconds reads plain digits of seconds, more than a day as a day.
func deltaSeconds(text string) (time.Duration, bool) {
	const day = 24 * 60 * 60
	seconds, err := strconv.ParseUint(strings.TrimSpace(text), 10, 63)
	if err != nil {
		return 0, false
	}
	return time.Duration(min(seconds, day)) * time.Second, true
}
