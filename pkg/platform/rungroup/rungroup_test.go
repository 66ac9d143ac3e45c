package rungroup_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken, errClosing = errors.New("broken"), errors.New("closing failed")

// Run stops all parts when one of them returns or the context ends, and returns the errors of all, with their names.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	returns := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	stopped := func(err error) func(context.Context) error {
		return func(ctx context.Context) error { <-ctx.Done(); return err }
	}
	for name, row := range map[string]struct {
		parts []func(context.Context) error
		want  map[string]error // by the part's name
	}{
		"one fails": {
			[]func(context.Context) error{returns(errBroken), stopped(nil), stopped(errClosing), stopped(context.Canceled)},
			map[string]error{"part 0": errBroken, "part 2": errClosing},
		},
		"one returns": {[]func(context.Context) error{returns(nil), stopped(nil)}, nil},
		"the context ends": {
			[]func(context.Context) error{stopped(nil), func(context.Context) error { cancel(); return nil }}, nil,
		},
		"nothing to run": {},
		"a cancelled call of a part's own": {
			[]func(context.Context) error{returns(fmt.Errorf("call: %w", context.Canceled)), stopped(nil)},
			map[string]error{"part 0": context.Canceled},
		},
	} {
		var components []rungroup.Component
		for i, part := range row.parts {
			components = append(components, rungroup.Component{Name: fmt.Sprint("part ", i), Run: part})
		}
		within := t.Context()
		if name == "the context ends" {
			within = ctx
		}
		err := rungroup.Run(within, components...)
		if (err == nil) != (len(row.want) == 0) || err != nil && strings.Count(err.Error(), "\n") != len(row.want)-1 {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
		for part, want := range row.want {
			if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), part+": ") {
				t.Errorf("%s: %v, want %v of %s", name, err, want, part)
			}
		}
	}
}

func TestAComponentThatServesDuringTheStopIsStoppedLast(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	drain, told := make(chan struct{}), make(chan struct{})
	var order []string
	err := make(chan error, 1)
	go func() {
		err <- rungroup.Run(ctx,
			rungroup.Component{Name: "listener", Stopping: func() { close(told) }, Run: func(ctx context.Context) error {
				<-ctx.Done()
				order = append(order, "listener")
				return errClosing
			}},
			rungroup.Component{Name: "units", Run: func(ctx context.Context) error {
				<-ctx.Done()
				<-drain
				order = append(order, "units")
				return nil
			}},
		)
	}()
	stop()
	<-told // while the units are drained
	close(drain)
	if err := <-err; !errors.Is(err, errClosing) || !slices.Equal(order, []string{"units", "listener"}) {
		t.Errorf("stopped %v, %v", order, err)
	}
}

func TestAComponentThatServesDuringTheStopStopsTheOthersWhenItFails(t *testing.T) {
	err := rungroup.Run(t.Context(),
		rungroup.Component{Name: "listener", Stopping: func() {}, Run: func(context.Context) error { return errBroken }},
		rungroup.Component{Name: "units", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }},
	)
	if !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

func TestEveryCallsItsStepUntilItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed, calls := errors.New("failed"), 0
		begun := time.Now()
		component := rungroup.Every("x", time.Minute, func(context.Context) error {
			if calls++; calls == 3 {
				return failed
			}
			return nil
		})
		if err := component.Run(t.Context()); !errors.Is(err, failed) || calls != 3 || time.Since(begun) != 3*time.Minute {
			t.Errorf("%v after %d calls in %s", err, calls, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := component.Run(ctx); err != nil || calls != 3 {
			t.Errorf("stopped: %v after %d calls", err, calls)
		}
	})
}
