package adminui

import (
	"context"
	"maps"
	"time"
)

const (
	// lookLife is how long what was read for one browser is shown to others, so that many of them cost what one does.
	lookLife = time.Second
	// lookShare is how much of the time may at most be spent looking: what took long to read is kept so many times longer.
	lookShare = 10
	// lookMost is how old at most: operators act on what they see.
	lookMost = 10 * time.Second
	// looksKept bounds how many different ones are kept.
	looksKept = 64
)

// looks keeps what was read of late. Whoever asks for the same meanwhile gets the same; one reads at a time.
type looks[T any] struct {
	now  func() time.Time
	turn chan struct{} // holds one token while somebody looks
	kept map[string]kept[T]
}

type kept[T any] struct {
	value T
	until time.Time
}

func newLooks[T any](now func() time.Time) *looks[T] {
	return &looks[T]{now: now, turn: make(chan struct{}, 1), kept: map[string]kept[T]{}}
}

// at returns what there is under the key, read anew when it is too old.
func (l *looks[T]) at(ctx context.Context, key string, read func(context.Context) (T, error)) (T, error) {
	var none T
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	defer func() { <-l.turn }()
	begun := l.now()
	if old, there := l.kept[key]; there && begun.Before(old.until) {
		return old.value, nil
	}
	value, err := read(ctx)
	if err != nil {
		return none, err
	}
	ended := l.now()
	maps.DeleteFunc(l.kept, func(_ string, old kept[T]) bool { return !ended.Before(old.until) })
	if len(l.kept) >= looksKept {
		clear(l.kept)
	}
	l.kept[key] = kept[T]{value, ended.Add(min(lookMost, max(lookLife, lookShare*ended.Sub(begun))))}
	return value, nil
}

// forget has everything read anew: something was changed.
func (l *looks[T]) forget() {
	l.turn <- struct{}{}
	clear(l.kept)
	<-l.turn
}
