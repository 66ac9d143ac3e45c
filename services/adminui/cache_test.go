package adminui

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Concurrent gets share one read, slow reads are repeated less often, and errors are not cached.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newCache[int](time.Now)
		reads, takes, failure := 0, time.Millisecond, error(nil)
		read := func(context.Context) (int, error) {
			time.Sleep(takes)
			reads++
			return reads, failure
		}
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				if got, err := l.get(t.Context(), "a", read); got != 1 || err != nil {
					t.Errorf("%d %v, want the first read", got, err)
				}
			})
		}
		group.Wait()
		at := func(key string) int {
			got, err := l.get(t.Context(), key, read)
			if !errors.Is(err, failure) {
				t.Errorf("%v, want %v", err, failure)
			}
			return got
		}
		if got := at("b"); got != 2 {
			t.Errorf("another key: read %d, want 2", got)
		}
		time.Sleep(cacheLife)
		takes = time.Second
		if got := at("a"); got != 3 {
			t.Errorf("after its time: read %d, want 3", got)
		}
		time.Sleep(cacheFactor*time.Second - time.Millisecond)
		if got := at("a"); got != 3 {
			t.Errorf("a slow read was repeated too soon: %d", got)
		}
		l.clear()
		failure = errors.New("away")
		at("a")
		failure = nil
		if got := at("a"); got != 5 {
			t.Errorf("after an error: read %d, want 5", got)
		}
		for i := range cacheSize + 1 {
			at(strconv.Itoa(i))
		}
		if len(l.values) > cacheSize {
			t.Errorf("%d values are kept, want at most %d", len(l.values), cacheSize)
		}
	})
}

func TestCacheStopsWaitingWithTheContext(t *testing.T) {
	l := newCache[int](time.Now)
	l.turn <- struct{}{} // a read that never ends
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.get(ctx, "a", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}
