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

// Many who look at once cost one look; what took long is looked at less often; an error is not kept.
func TestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLooks[int](time.Now)
		reads, takes, failure := 0, time.Millisecond, error(nil)
		read := func(context.Context) (int, error) {
			time.Sleep(takes)
			reads++
			return reads, failure
		}
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				if got, err := l.at(t.Context(), "a", read); got != 1 || err != nil {
					t.Errorf("%d %v, want the first look", got, err)
				}
			})
		}
		group.Wait()
		at := func(key string) int {
			got, err := l.at(t.Context(), key, read)
			if !errors.Is(err, failure) {
				t.Errorf("%v, want %v", err, failure)
			}
			return got
		}
		if got := at("b"); got != 2 {
			t.Errorf("another key: look %d, want 2", got)
		}
		time.Sleep(lookLife)
		takes = time.Second
		if got := at("a"); got != 3 {
			t.Errorf("after its time: look %d, want 3", got)
		}
		time.Sleep(lookShare*time.Second - time.Millisecond)
		if got := at("a"); got != 3 {
			t.Errorf("a slow look was repeated too soon: %d", got)
		}
		l.forget()
		failure = errors.New("away")
		at("a")
		failure = nil
		if got := at("a"); got != 5 {
			t.Errorf("after an error: look %d, want 5", got)
		}
		for i := range looksKept + 1 {
			at(strconv.Itoa(i))
		}
		if len(l.kept) > looksKept {
			t.Errorf("%d looks are kept, want at most %d", len(l.kept), looksKept)
		}
	})
}

func TestALookIsNotWaitedForByWhoHasGone(t *testing.T) {
	l := newLooks[int](time.Now)
	l.turn <- struct{}{} // somebody looks and never ends
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.at(ctx, "a", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
}
