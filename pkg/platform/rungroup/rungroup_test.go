package rungroup_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken, errClosing = errors.New("broken"), errors.New("closing failed")

func untilStopped(ctx context.Context) error { <-ctx.Done(); return nil }

func TestRunStopsAllWhenOneFails(t *testing.T) {
	err := rungroup.Run(t.Context(),
		rungroup.Component{Name: "first", Run: func(context.Context) error { return errBroken }},
		rungroup.Component{Name: "second", Run: untilStopped},
		rungroup.Component{Name: "third", Run: func(ctx context.Context) error { <-ctx.Done(); return errClosing }},
		rungroup.Component{Name: "fourth", Run: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
	)
	if !errors.Is(err, errBroken) || !errors.Is(err, errClosing) || errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want exactly both errors", err)
	}
	for _, name := range []string{"first: ", "third: "} {
		if !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%v does not name %q", err, name)
		}
	}
}

func TestRunStopsAllWhenOneReturns(t *testing.T) {
	err := rungroup.Run(t.Context(),
		rungroup.Component{Name: "first", Run: func(context.Context) error { return nil }},
		rungroup.Component{Name: "second", Run: untilStopped},
	)
	if err != nil {
		t.Error(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := rungroup.Run(ctx,
		rungroup.Component{Name: "first", Run: untilStopped},
		rungroup.Component{Name: "second", Run: func(context.Context) error { cancel(); return nil }},
	)
	if err != nil {
		t.Error(err)
	}
	if err := rungroup.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRunReportsAPartThatEndsAsIfItHadBeenTold(t *testing.T) {
	err := rungroup.Run(t.Context(),
		rungroup.Component{Name: "first", Run: func(context.Context) error {
			return fmt.Errorf("a call of its own: %w", context.Canceled)
		}},
		rungroup.Component{Name: "second", Run: untilStopped},
	)
	if !errors.Is(err, context.Canceled) || !strings.Contains(fmt.Sprint(err), "first: ") {
		t.Errorf("got %v: nobody had told the part to stop", err)
	}
}
